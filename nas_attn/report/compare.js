// Several searches: their fronts in one chart, and the table of their points.
// Okabe and Ito's colours, as the figure for print has them; the last is the text's own.
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const SYMBOLS = ["circle", "square", "triangle-up", "pentagon", "triangle-down", "cross", "star"];
const DASHES = ["solid", "dash", "dashdot", "dot", "longdash", "longdashdot", "solid"];

function marks(rows, study, index, more) {
  return { x: rows.map((row) => row.cost), y: rows.map((row) => row.loss), legendgroup: String(index), name: safe(study.name),
    text: rows.map((row) => `<b>${safe(study.name)}, trial ${row.trial}</b><br>${safe(data.loss)} ${fixed(row.loss)}` +
      `${row.noise === null ? "" : ` \u00b1${fixed(row.noise)}`}<br>${count(row.cost)} ${safe(data.axis)}<br>${safe(row.plan).replaceAll("; ", "<br>")}`),
    hovertemplate: "%{text}<extra></extra>", ...more };
}

function bars(rows, fill) {
  if (rows.some((row) => row.noise === null)) return undefined;
  return { type: "data", array: rows.map((row) => row.noise), width: 3, thickness: 1.2, color: fill };
}

function tracesOf(study, index) {
  const place = index % (COLORS.length + 1), fill = COLORS[place] ?? color("ink"), symbol = SYMBOLS[place];
  const traces = [marks(study.front, study, index, { mode: "lines+markers", error_y: bars(study.front, fill),
    line: { shape: "hv", color: fill, width: 1.6, dash: DASHES[place] }, marker: { color: fill, symbol, size: 8 } })];
  if (byId("compare-rest").checked)
    traces.unshift(marks(study.rest, study, index, { mode: "markers", showlegend: false, marker: { color: fill, symbol, size: 6, opacity: 0.3 } }));
  if (study.baseline) {
    const row = [study.baseline];
    traces.push(marks(row, study, index, { mode: "markers", showlegend: false, error_y: bars(row, fill),
      marker: { color: fill, symbol: "diamond", size: 13, line: { color: color("ink"), width: 2 } } }));
  }
  return traces;
}

function drawCompared() {
  const [x, y] = data.reference;
  const corner = { x: [x], y: [y], mode: "markers", name: "reference of the hypervolume", visible: "legendonly", hovertemplate: "%{x:,}, %{y:.4f}<extra></extra>",
    marker: { symbol: "x-thin", size: 11, line: { width: 2, color: color("ink") } } };
  return Plotly.react("chart-compare", [...data.studies.flatMap(tracesOf), corner], look({ uirevision: "studies", showlegend: true,
    xaxis: { title: { text: safe(data.axis) }, type: byId("compare-x-log").checked ? "log" : "linear" },
    yaxis: { title: { text: safe(data.quality) }, type: byId("compare-y-log").checked ? "log" : "linear" } }), settings);
}
watchCharts([["chart-compare", drawCompared, ["compare-rest", "compare-x-log", "compare-y-log"]]]);

function listPoints() {
  const study = byId("compare-study").value, isCommon = byId("compare-common").checked;
  for (const row of byId("compare-points").rows)
    row.hidden = (study !== "" && row.dataset.study !== study) || (isCommon && !("common" in row.dataset));
}
for (const id of ["compare-study", "compare-common"]) byId(id).addEventListener("change", listPoints);
