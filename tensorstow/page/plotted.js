// The figures that plotly draws.
function coloured(layout) {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const lines = { gridcolor: line, zerolinecolor: line, linecolor: line };
  const axis = given => Object.assign({}, given, lines, { title: { text: given.title?.text, font: { size: 13 } } });
  return Object.assign({}, layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13, family: "system-ui, sans-serif" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
  });
}
// All buttons that there may be: plotly's own set has one that sends the figure to a server.
const BUTTONS = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
begin(async () => {
  await painted();  // the words are on the screen before plotly starts, which takes a second
  const script = document.createElement("script");
  script.textContent = await unpacked("library");
  document.head.append(script);
  const figures = JSON.parse(await unpacked("figures")), ids = Object.keys(figures);
  const draw = id => Plotly.react(
    id, figures[id].data, coloured(figures[id].layout), { responsive: true, displaylogo: false, modeBarButtons: BUTTONS });
  for (const [i, id] of ids.entries()) {
    await draw(id);
    await painted();  // each is on the screen before the next is begun
    const next = document.getElementById(ids[i + 1]);
    if (!document.body.dataset.drawn && (!next || next.getBoundingClientRect().top > innerHeight)) stamp("drawn");
  }
  stamp("complete");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => ids.forEach(draw));
});
