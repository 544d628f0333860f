// Charts, each drawn when it comes near. The plot library takes longer to start than all the rest,
// so the page is there before it.
let hasLibrary = false;
function startLibrary() {
  if (hasLibrary) return;
  hasLibrary = true;
  document.head.append(make("script", byId("library").textContent));
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const isDark = matchMedia("(prefers-color-scheme: dark)");
const onDark = () => isDark.matches && !document.documentElement.classList.contains("printing");
// Viridis, whose dark end would be lost on a dark page.
const ramp = () => onDark() ? [[0, "#7f8cff"], [0.5, "#2fb5a5"], [1, "#fde725"]] : "Viridis";
const narrow = () => window.innerWidth < 700;
// On a phone the legend is below the title of the x axis, else above the chart.
function look(more = {}) {
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  const grid = { gridcolor: color("grid"), zeroline: false, automargin: true };
  const legend = narrow() ? { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" }
    : { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" };
  return { margin: narrow() ? { l: 55, r: 10, t: 10, b: 110 } : { l: 70, r: 20, t: 10, b: 50 }, font: { size: 13, color: color("ink") },
    paper_bgcolor: color("paper"), plot_bgcolor: color("paper"), hoverlabel: { align: "left", bgcolor: color("tint"), font: { color: color("ink") } },
    legend, ...rest, xaxis: { ...grid, ...xaxis }, yaxis: { ...grid, ...yaxis } };
}
const settings = { displayModeBar: false, responsive: true, showTips: false };

// Below a chart: its size again, and files of it.
function tools(id) {
  const line = make("p", undefined, { class: "tools" }), name = id.replace("chart-", "");
  const add = (text, act) => {
    const button = make("button", text, { type: "button", "aria-label": `${text}, ${name}` });
    button.addEventListener("click", act);
    line.append(button, " ");
  };
  if (id !== "chart-parallel") add("reset zoom", () => Plotly.relayout(id, { "xaxis.autorange": true, "yaxis.autorange": true }));
  for (const format of ["png", "svg"])
    add(format.toUpperCase(), () => Plotly.downloadImage(id, { format, filename: name, scale: format === "png" ? 2 : 1 }));
  return line;
}

// Draw each chart when it comes near or the page is printed, and again when a control changes:
// [[id, draw, ids of controls], ...].
function watchCharts(charts) {
  const redrawn = [];
  for (const [id, draw, controls] of charts) {
    const place = byId(id);
    if (!place) continue;
    let drawn = false;
    const now = () => { drawn = true; startLibrary(); draw(); };
    const once = () => { if (!drawn && place.offsetParent) now(); };
    redrawn.push(() => { if (drawn) draw(); });
    (place.closest(".scroll") || place).after(tools(id));
    new IntersectionObserver((entries, observer) => {
      if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); setTimeout(once); }
    }, { rootMargin: "300px" }).observe(place);
    window.addEventListener("beforeprint", once);
    for (const control of controls) byId(control).addEventListener("change", now);
  }
  const redraw = () => redrawn.forEach((draw) => draw());
  // Paper is light, whatever the screen is.
  const paint = (isPrinting) => { document.documentElement.classList.toggle("printing", isPrinting); if (isDark.matches) redraw(); };
  window.addEventListener("beforeprint", () => paint(true));
  window.addEventListener("afterprint", () => paint(false));
  isDark.addEventListener("change", redraw);
  matchMedia("(max-width: 699px)").addEventListener("change", redraw);
}
