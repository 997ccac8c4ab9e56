// What the charts of a page share: the part of the pass that is shown, what is sought, one note at the pointer.
// Each chart is a canvas of its own; all have the same left edge and the same time axis, and zoom as one.
const shared = { charts: [], from: 0, to: 1, left: 60, time: null, waiting: false };
const SPACE = { right: 12, top: 24, bottom: 38 };
const FONT = "12px system-ui, sans-serif";

function styled(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function element(tag, className, parent) {
  const made = document.createElement(tag);
  made.className = className;
  parent?.append(made);
  return made;
}

// Round numbers between `low` and `high`, about `count` of them, and how many digits they need.
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough) ?? rough;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { at: found, text: value => value.toFixed(Math.min(digits, 12)) };
}

function redraw() {
  if (shared.waiting) return;
  shared.waiting = true;
  requestAnimationFrame(() => {
    shared.waiting = false;
    for (const chart of shared.charts) chart.draw();
  });
}

class Chart {
  constructor(place, spec) {
    this.spec = spec;
    this.low = 0;
    this.high = spec.top;
    this.hidden = new Set();
    this.rects = [];
    for (const [kind, k] of (spec.kinds ?? []).entries()) {
      const { name, color, start, end, low, high, text } = k;
      for (let i = 0; i < start.length; i++) {
        this.rects.push({ kind, name, color, start: start[i], end: end[i], low: low[i], high: high[i],
          text: text[i], found: true });
      }
    }
    this.tools = element("div", "tools", place);
    this.stage = element("div", "stage", place);
    this.stage.style.height = `${spec.height}px`;
    this.canvas = element("canvas", "", this.stage);
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `${spec.about} Arrows go from one to the next, plus and minus zoom.`);
    this.hair = element("div", "hair", this.stage);
    this.mark = element("div", "mark", this.stage);
    this.legend();
    new ResizeObserver(redraw).observe(this.stage);
  }

  legend() {
    for (const [kind, { name, color, line }] of (this.spec.kinds ?? this.spec.lines).entries()) {
      const key = element(this.spec.kinds ? "button" : "span", "key", this.tools);
      const swatch = element("i", line ? "dashed" : "", key);
      swatch.style.setProperty("--color", color);
      key.append(name);
      if (!this.spec.kinds) continue;
      key.setAttribute("aria-pressed", "true");
      key.title = `show or hide: ${name}`;
      key.onclick = () => {
        if (!this.hidden.delete(kind)) this.hidden.add(kind);
        key.setAttribute("aria-pressed", String(!this.hidden.has(kind)));
        redraw();
      };
    }
  }

  get plot() {
    const width = this.stage.clientWidth - shared.left - SPACE.right;
    return { x: shared.left, y: SPACE.top, width, height: this.spec.height - SPACE.top - SPACE.bottom };
  }
  x(time) { return this.plot.x + (time - shared.from) / (shared.to - shared.from) * this.plot.width; }
  y(value) { return this.plot.y + (this.high - value) / (this.high - this.low) * this.plot.height; }
  time(x) { return shared.from + (x - this.plot.x) / this.plot.width * (shared.to - shared.from); }
  value(y) { return this.high - (y - this.plot.y) / this.plot.height * (this.high - this.low); }

  // Where a rectangle is on the canvas: [x, y, width, height], cut at the plot.
  place(rect) {
    const p = this.plot, cut = (v, from, size) => Math.min(Math.max(v, from), from + size);
    const x0 = cut(this.x(rect.start), p.x, p.width), x1 = cut(this.x(rect.end), p.x, p.width);
    const y0 = cut(this.y(rect.high), p.y, p.height), y1 = cut(this.y(rect.low), p.y, p.height);
    return [x0, y0, x1 - x0, y1 - y0];
  }

  shows(rect) {
    return !this.hidden.has(rect.kind) && rect.end >= shared.from && rect.start <= shared.to
      && rect.high >= this.low && rect.low <= this.high;
  }

  draw() {
    const ratio = devicePixelRatio || 1, width = this.stage.clientWidth, height = this.spec.height;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = FONT;
    this.axes(pen);
    const p = this.plot;
    pen.save();
    pen.beginPath();
    pen.rect(p.x, p.y, p.width, p.height);
    pen.clip();
    if (this.spec.kinds) this.rectangles(pen);
    else this.steps(pen);
    pen.restore();
  }

  axes(pen) {
    const p = this.plot, ink = styled("--soft"), line = styled("--line"), { scale, label } = shared.time;
    pen.strokeStyle = line;
    pen.fillStyle = ink;
    pen.lineWidth = 1;
    pen.textAlign = "center";
    const across = ticks(shared.from / scale, shared.to / scale, p.width / 70);
    for (const at of across.at) {
      this.rule(pen, this.x(at * scale), p.y, 0, p.height);
      pen.fillText(across.text(at), this.x(at * scale), p.y + p.height + 15);
    }
    pen.fillText(label, p.x + p.width / 2, p.y + p.height + 32, p.width);
    pen.textAlign = "left";
    pen.fillText(this.spec.label, 2, 14);
    pen.textAlign = "right";
    if (this.spec.lanes) {
      for (const [i, name] of this.spec.lanes.entries()) {
        pen.fillText(name, p.x - 6, this.y(this.spec.lanes.length - i - 0.5) + 4, p.x - 8);
      }
    } else {
      const up = ticks(this.low / this.spec.scale, this.high / this.spec.scale, p.height / 45);
      for (const at of up.at) {
        this.rule(pen, p.x, this.y(at * this.spec.scale), p.width, 0);
        pen.fillText(up.text(at), p.x - 6, this.y(at * this.spec.scale) + 4);
      }
    }
  }

  rule(pen, x, y, across, down) {
    pen.beginPath();
    pen.moveTo(Math.round(x) + 0.5, Math.round(y) + 0.5);
    pen.lineTo(Math.round(x + across) + 0.5, Math.round(y + down) + 0.5);
    pen.stroke();
  }

  rectangles(pen) {
    const edge = styled("--back"), least = this.spec.least;
    pen.strokeStyle = edge;
    pen.lineWidth = 0.6;
    for (const rect of this.rects) {
      if (!this.shows(rect)) continue;
      const [x, y, width, height] = this.place(rect);
      pen.fillStyle = rect.color;
      pen.globalAlpha = rect.found ? (rect.text ? 0.88 : 0.5) : 0.08;
      pen.fillRect(x, y, Math.max(width, least), Math.max(height, least));
      if (width > 4 && height > 4) pen.strokeRect(x, y, width, height);
    }
    pen.globalAlpha = 1;
  }

  steps(pen) {
    const { at, nbytes, lines, room } = this.spec;
    const bottom = this.y(0);
    pen.beginPath();
    pen.moveTo(this.x(at[0]), bottom);
    for (let i = 0; i < at.length; i++) {
      pen.lineTo(this.x(at[i]), this.y(nbytes[i]));
      pen.lineTo(this.x(at[i + 1] ?? this.spec.end), this.y(nbytes[i]));
    }
    pen.lineTo(this.x(this.spec.end), bottom);
    pen.fillStyle = lines[0].color;
    pen.globalAlpha = 0.35;
    pen.fill();
    pen.globalAlpha = 1;
    pen.strokeStyle = lines[0].color;
    pen.lineWidth = 1.2;
    pen.stroke();
    if (!room) return;
    pen.setLineDash([6, 4]);
    pen.strokeStyle = lines[1].color;
    pen.lineWidth = 1.5;
    this.rule(pen, this.plot.x, this.y(room), this.plot.width, 0);
    pen.setLineDash([]);
  }

  // What lies at a point of the canvas; the last that is drawn is on top. Two pixels beside it are near enough.
  at(x, y) {
    const p = this.plot;
    if (x < p.x || x > p.x + p.width || y < p.y || y > p.y + p.height) return null;
    if (!this.spec.kinds) return this.held(this.time(x));
    const time = this.time(x), value = this.value(y), near = (shared.to - shared.from) / p.width * 2;
    let best = null;
    for (const rect of this.rects) {
      if (!rect.text || !this.shows(rect) || value < rect.low || value >= rect.high) continue;
      if (time >= rect.start && time < rect.end) best = rect;
      else if (!best && time >= rect.start - near && time < rect.end + near) best = rect;
    }
    return best;
  }

  // The bytes that are held at a time, as a rectangle with a text.
  held(time) {
    const { at, nbytes, scale, unit, end } = this.spec;
    let i = at.findIndex(start => start > time) - 1;
    if (i < -1) i = at.length - 1;
    if (i < 0) return null;
    const until = at[i + 1] ?? end, digits = v => Number(v.toPrecision(5));
    const span = `from ${digits(at[i] / shared.time.scale)} to ${digits(until / shared.time.scale)} ${shared.time.unit}`;
    return { start: at[i], end: until, low: 0, high: nbytes[i], text: `${digits(nbytes[i] / scale)} ${unit}\n${span}` };
  }
}
