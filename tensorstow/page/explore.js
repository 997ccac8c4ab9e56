// How a reader moves in the charts: pointer, fingers, keyboard, the search, the buttons.
const note = element("div", "note", document.body);
const spoken = element("div", "spoken", document.body);
spoken.setAttribute("aria-live", "polite");

function tell(chart, rect, speak) {
  for (const other of shared.charts) if (other !== chart || !rect) other.mark.style.display = "none";
  note.style.display = rect ? "block" : "none";
  if (!rect) return;
  note.replaceChildren(...rect.text.split("\n").map((line, i) => {
    const made = document.createElement(i ? "div" : "b");
    made.textContent = line;
    return made;
  }));
  const [x, y, width, height] = chart.place(rect), stage = chart.stage.getBoundingClientRect();
  Object.assign(chart.mark.style,
    { display: "block", left: `${x - 1}px`, top: `${y - 1}px`, width: `${width + 2}px`, height: `${height + 2}px` });
  const middle = speak ? stage.left + x + width / 2 : chart.pointer.x + stage.left;
  const beneath = speak ? stage.top + y + height : chart.pointer.y + stage.top;
  const size = note.getBoundingClientRect();
  let top = beneath + 14;
  if (top + size.height > innerHeight - 4) top = Math.max(4, beneath - size.height - 14);
  note.style.left = `${Math.max(4, Math.min(middle + 12, innerWidth - size.width - 8))}px`;
  note.style.top = `${top}px`;
  if (speak) spoken.textContent = rect.text.replaceAll("\n", ", ");
}

function hairs(x) {
  for (const { hair, plot } of shared.charts) {
    const shown = x !== null && x >= plot.x && x <= plot.x + plot.width;
    Object.assign(hair.style,
      { display: shown ? "block" : "none", left: `${x}px`, top: `${plot.y}px`, height: `${plot.height}px` });
  }
}

function show(from, to) {
  const end = shared.time.end, width = Math.min(Math.max(to - from, Math.max(end * 1e-7, 1)), end);
  shared.from = Math.min(Math.max(from, 0), end - width);
  shared.to = shared.from + width;
  redraw();
}

function showValues(chart, low, high) {
  if (chart.spec.lanes || !chart.spec.kinds) return;
  const top = chart.spec.top, height = Math.min(Math.max(high - low, 64), top);
  chart.low = Math.min(Math.max(low, 0), top - height);
  chart.high = chart.low + height;
}

// `factor` below one shows less of it; the point (x, y) of the canvas stays where it is.
function zoom(chart, factor, x, y) {
  const time = chart.time(x), value = chart.value(y);
  showValues(chart, value + (chart.low - value) * factor, value + (chart.high - value) * factor);
  show(time + (shared.from - time) * factor, time + (shared.to - time) * factor);
  tell(chart, null);
}

function pan(chart, across, up) {
  const time = across / chart.plot.width * (shared.to - shared.from);
  const value = up / chart.plot.height * (chart.high - chart.low);
  showValues(chart, chart.low + value, chart.high + value);
  show(shared.from - time, shared.to - time);
}

function whole() {
  for (const chart of shared.charts) showValues(chart, 0, chart.spec.top);
  show(0, shared.time.end);
  tell(null, null);
}

function center(chart) { return [chart.plot.x + chart.plot.width / 2, chart.plot.y + chart.plot.height / 2]; }

function buttons(chart) {
  const group = element("span", "zoom", chart.tools);
  const add = (sign, title, action) => {
    const made = element("button", "", group);
    made.textContent = sign;
    made.title = title;
    made.setAttribute("aria-label", title);
    made.onclick = action;
  };
  add("+", "zoom in", () => zoom(chart, 0.5, ...center(chart)));
  add("−", "zoom out", () => zoom(chart, 2, ...center(chart)));
  add("all", "show the whole pass", whole);
}

function pointers(chart) {
  const { canvas } = chart, down = new Map();
  let box = null, apart = 0, moved = false;
  chart.pointer = { x: 0, y: 0 };
  const spot = event => {
    const edge = canvas.getBoundingClientRect();
    return { x: event.clientX - edge.left, y: event.clientY - edge.top };
  };
  const distance = () => {
    const [a, b] = [...down.values()];
    return Math.max(20, Math.hypot(a.x - b.x, a.y - b.y));
  };
  canvas.onpointerdown = event => {
    down.set(event.pointerId, spot(event));
    canvas.setPointerCapture(event.pointerId);
    moved = false;
    if (down.size === 2) { box = null; apart = distance(); }
    else if (event.pointerType !== "touch" && !event.shiftKey) box = spot(event);
  };
  canvas.onpointermove = event => {
    const here = chart.pointer = spot(event), before = down.get(event.pointerId);
    if (!before) {
      tell(chart, chart.at(here.x, here.y));
      hairs(here.x);
      return;
    }
    moved ||= Math.hypot(here.x - (box ?? before).x, here.y - (box ?? before).y) > 4;
    if (!moved) return;
    down.set(event.pointerId, here);
    hairs(null);
    if (down.size === 2) {
      const [a, b] = [...down.values()], now = distance();
      zoom(chart, apart / now, (a.x + b.x) / 2, (a.y + b.y) / 2);
      apart = now;
    } else if (box) outline(chart, box, here);
    else { tell(chart, null); pan(chart, here.x - before.x, here.y - before.y); }
  };
  canvas.onpointerup = canvas.onpointercancel = event => {
    const here = spot(event), tapped = event.type === "pointerup" && !moved;
    down.delete(event.pointerId);
    if (tapped) { chart.pointer = here; tell(chart, chart.at(here.x, here.y)); }
    else if (box && moved && event.type === "pointerup") into(chart, box, here);
    if (!down.size) box = null;
  };
  canvas.onpointerleave = event => {
    if (event.pointerType !== "touch" && !down.size) { tell(chart, null); hairs(null); }
  };
  canvas.ondblclick = whole;
  canvas.addEventListener("wheel", event => {
    const here = spot(event), inside = shared.to - shared.from < shared.time.end;
    if (event.ctrlKey || event.metaKey) zoom(chart, Math.exp(event.deltaY / 200), here.x, here.y);
    else if (inside && (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY))) {
      pan(chart, -(event.deltaX || event.deltaY), 0);
    } else return;
    event.preventDefault();
  }, { passive: false });
}

function corners(chart, a, b) {
  const flat = chart.spec.lanes || !chart.spec.kinds, p = chart.plot;
  const [top, bottom] = flat ? [p.y, p.y + p.height] : [Math.min(a.y, b.y), Math.max(a.y, b.y)];
  return { left: Math.min(a.x, b.x), right: Math.max(a.x, b.x), top, bottom };
}

function outline(chart, a, b) {
  const c = corners(chart, a, b);
  note.style.display = "none";
  Object.assign(chart.mark.style, { display: "block", left: `${c.left}px`, top: `${c.top}px`,
    width: `${c.right - c.left}px`, height: `${c.bottom - c.top}px` });
}

function into(chart, a, b) {
  const c = corners(chart, a, b);
  if (c.bottom - c.top > 8) showValues(chart, chart.value(c.bottom), chart.value(c.top));
  if (c.right - c.left > 4) show(chart.time(c.left), chart.time(c.right));
  else redraw();
  tell(chart, null);
}

function keyboard(chart) {
  let here = null;
  const shown = () => chart.rects.filter(r => r.text && r.found && chart.shows(r));
  const middle = r => (Math.max(r.start, shared.from) + Math.min(r.end, shared.to)) / 2;
  // The nearest in the direction: by its start among those of the same row, else by its height among those of its time.
  const next = {
    ArrowRight: r => pick(shown().filter(o => after(o, r)), o => order(o)),
    ArrowLeft: r => pick(shown().filter(o => after(r, o)), o => -order(o)),
    ArrowUp: r => pick(shown().filter(o => o.low >= r.high && meets(o, r)), o => o.low),
    ArrowDown: r => pick(shown().filter(o => o.high <= r.low && meets(o, r)), o => -o.high),
  };
  const order = r => r.start * 2 ** 10 + r.low / (chart.spec.top || 1) * 2 ** 10;
  const after = (a, b) => order(a) > order(b);
  const meets = (a, b) => a.start <= middle(b) && middle(b) < a.end;
  const pick = (from, key) => from.reduce((best, r) => (best === null || key(r) < key(best) ? r : best), null);
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  chart.canvas.onkeydown = event => {
    const zooms = { "+": 0.5, "=": 0.5, "-": 2 };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in zooms) {
      const [x, y, width, height] = here ? chart.place(here) : [...center(chart), 0, 0];
      zoom(chart, zooms[event.key], x + width / 2, y + height / 2);
    } else if (event.key === "0" || event.key === "Escape") { here = null; whole(); }
    else if (event.shiftKey && event.key in steps) pan(chart, -steps[event.key] * chart.plot.width / 4, 0);
    else if (!chart.spec.kinds && event.key in steps) {
      here = chart.held(here ? (steps[event.key] > 0 ? here.end : here.start - 1) : shared.from) ?? here;
      tell(chart, here, true);
    } else if (event.key in next && chart.spec.kinds) {
      here = here && chart.shows(here) ? next[event.key](here) ?? here : pick(shown(), order);
      tell(chart, here, true);
    } else return;
    event.preventDefault();
  };
  chart.canvas.onblur = () => tell(chart, null);
}

function searching() {
  const field = document.getElementById("seek"), said = document.getElementById("sought");
  if (!field) return;
  field.oninput = () => {
    const wanted = field.value.trim().toLowerCase();
    let count = 0;
    for (const chart of shared.charts) {
      for (const rect of chart.rects) {
        rect.found = !wanted || rect.text.toLowerCase().includes(wanted);
        count += rect.found;
      }
    }
    said.textContent = wanted ? (count === 1 ? "1 rectangle" : `${count} rectangles`) : "";
    redraw();
  };
}

begin(async () => {
  const { time, charts } = JSON.parse(await unpacked("charts"));
  Object.assign(shared, { time, from: 0, to: time.end });
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = FONT;
  const names = Object.values(charts).flatMap(spec => spec.lanes ?? []);
  const widest = Math.max(46, ...names.map(name => pen.measureText(name).width + 14));
  const edge = () => { shared.left = Math.min(widest, document.querySelector("main").clientWidth * 0.28); };
  edge();
  for (const [id, spec] of Object.entries(charts)) {
    const chart = new Chart(document.getElementById(id), spec);
    shared.charts.push(chart);
    buttons(chart);
    pointers(chart);
    keyboard(chart);
    chart.draw();
    const seen = chart.stage.getBoundingClientRect().bottom < innerHeight;
    if (!seen && !document.body.dataset.drawn) { await painted(); stamp("drawn"); }
  }
  searching();
  await painted();
  if (!document.body.dataset.drawn) stamp("drawn");
  stamp("complete");
  addEventListener("resize", () => { edge(); redraw(); });
  addEventListener("scroll", () => tell(null, null), { passive: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
});
