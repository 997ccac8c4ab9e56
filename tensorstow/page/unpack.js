"use strict";
// What the page carries is packed, so that it is small and that no name in it can end the script.
async function unpacked(id) {
  const packed = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
// When the first screen was drawn, and when all was: milliseconds since the page was asked for.
function stamp(name) { document.body.dataset[name] = String(Math.round(performance.now())); }
// After the browser has put on the screen what was drawn.
function painted() { return new Promise(done => requestAnimationFrame(() => setTimeout(done))); }
function begin(main) {
  main().catch(error => {
    document.getElementById("trouble").textContent = "The figures cannot be drawn in this browser: " + error;
  });
}
