// Charts of the report.
function hover(trial) {
  const lines = [`<b>trial ${trial.number}</b>${trial.baseline ? " (baseline)" : ""}`];
  lines.push(`${safe(data.loss)} ${fixed(trial.loss)}${trial.noise === null ? "" : ` \u00b1${fixed(trial.noise)}`}`);
  for (const cost of data.costs) lines.push(`${count(trial.costs[cost.name])} ${safe(cost.words)}`);
  if (baseline && trial !== baseline) lines.push(`${percent(trial.costs[axis] / baseline.costs[axis] - 1)}, ${signed(trial.change)}${trial.interval === null ? "" : ` \u00b1${fixed(trial.interval)} (95 %)`} against the baseline`);
  return lines.join("<br>") + "<br>" + safe(trial.plan).replaceAll("; ", "<br>");
}

// How a trial stands to the front, as marks show it: [name, size, opacity, open].
const STANDING = [["dominated", 7, 0.4, false], ["within the noise", 9, 1, true], ["front", 11, 1, false]];
const standing = (trial) => trial.on_front ? 2 : trial.near ? 1 : 0;

function schemeOf(trial, unit) {
  const found = sites(trial).find(([site]) => site === unit.site);
  return found ? data.schemes[found[1][Math.min(unit.layer, found[1].length - 1)]] : null;
}

function markers(rows, kind, x, y, along) {
  const [, size, opacity, isOpen] = STANDING[kind];
  const bars = kind === 2 && y === "loss" && rows.every((trial) => trial.noise !== null)
    ? { type: "data", array: rows.map((trial) => trial.noise), width: 3, color: color("soft"), thickness: 1.2 } : undefined;
  return { x: along(rows, x), y: along(rows, y), mode: "markers", error_y: bars, customdata: rows.map((trial) => trial.number),
    text: rows.map(hover), hovertemplate: "%{text}<extra></extra>", marker: { size, opacity, line: { color: color("ink"), width: isOpen ? 2 : 1 } } };
}

function byCategory(rows, of, x, y, along) {
  const traces = [], named = new Set();
  for (const [scheme, [fill, symbol]] of Object.entries(data.styles)) {
    for (const kind of [0, 1, 2]) {
      const own = rows.filter((trial) => of(trial) === scheme && standing(trial) === kind);
      if (!own.length) continue;
      const trace = markers(own, kind, x, y, along);
      Object.assign(trace.marker, { color: fill, symbol });
      if (kind === 1) trace.marker.line.color = color("accent");
      traces.push({ ...trace, name: scheme, legendgroup: scheme, showlegend: !named.has(scheme) });
      named.add(scheme);
    }
  }
  return traces;
}

function byNumbers(rows, of, title, x, y, along) {
  const values = rows.map(of), scale = { cmin: Math.min(...values), cmax: Math.max(...values), colorscale: ramp() };
  return [0, 1, 2].map((kind) => {
    const own = rows.filter((trial) => standing(trial) === kind);
    const trace = markers(own, kind, x, y, along);
    Object.assign(trace.marker, { color: own.map(of), symbol: kind === 1 ? "circle-open" : "circle", ...scale, showscale: kind === 2 });
    if (kind === 1) trace.marker.line = { width: 2 };
    trace.marker.colorbar = { title: { text: safe(title), side: "right" }, thickness: 12, outlinewidth: 0 };
    return { ...trace, name: STANDING[kind][0], legendgroup: STANDING[kind][0] };
  }).filter((trace) => trace.x.length);
}

function confirmedTrace(x, y, along) {
  const rows = front.concat(trained.filter((trial) => !trial.on_front)).filter((trial) => trial.number in data.confirmed);
  if (!rows.length || y !== "loss" || x === "loss") return [];
  const means = rows.map((trial) => data.confirmed[trial.number]);
  return [{ x: along(rows, x), y: means.map((row) => row.mean), mode: "markers", name: "confirmed", customdata: rows.map((trial) => trial.number),
    text: rows.map((trial) => `<b>trial ${trial.number}</b><br>${safe(confirmation(trial))}`), hovertemplate: "%{text}<extra></extra>",
    error_y: { type: "data", array: means.map((row) => row.error ?? 0), width: 3, color: color("accent"), thickness: 1.2 },
    marker: { symbol: "square-open", size: 9, color: color("accent"), line: { width: 2 } } }];
}

// Predicted plans, of which a click asks the budget box; hidden at first beside a trained front.
function predictedTrace(x, y) {
  const rows = data.predicted.points.filter((point) => point.loss !== null);
  if (!rows.length || x !== axis || y !== "loss") return [];
  return [{ x: rows.map((row) => row.cost), y: rows.map((row) => row.loss), mode: "lines+markers", name: "predicted, not trained",
    visible: front.length < 3 ? true : "legendonly", customdata: rows.map((row) => -row.cost), line: { dash: "dot", width: 1, color: color("accent") },
    marker: { symbol: "circle-open-dot", size: 6, color: color("accent") },
    text: rows.map((row) => `<b>predicted, not trained</b><br>${safe(predictedText(row))}<br>${safe(predictedSum(row)).replace(": ", ":<br>")}<br>` + safe(row.words).replaceAll("; ", "<br>")), hovertemplate: "%{text}<extra></extra>" }];
}

function drawFront() {
  const x = byId("front-x").value, y = byId("front-y").value, by = byId("front-color").value;
  const along = (rows, name) => rows.map((trial) => name === "loss" ? trial.loss : trial.costs[name]);
  const name = (key) => key === "loss" ? data.quality : words[key];
  const rows = trained.filter((trial) => !trial.baseline), traces = [];
  if (data.costs.length === 1 && x === axis && y === "loss")
    traces.push({ x: along(front, x), y: along(front, y), mode: "lines", line: { shape: "hv", color: color("accent"), width: 1.5 }, hoverinfo: "skip", name: "front", legendgroup: "front" });
  const isDrawn = traces.length > 0;
  if (by === "scheme") traces.push(...byCategory(rows, (trial) => trial.scheme, x, y, along));
  else if (by === "most") traces.push(...byCategory(rows, (trial) => trial.most, x, y, along));
  else if (by.startsWith("unit-")) traces.push(...byCategory(rows, (trial) => schemeOf(trial, data.units[Number(by.slice(5))]), x, y, along));
  else traces.push(...byNumbers(rows, by === "order" ? (trial) => trial.number : (trial) => trial.costs[by], by === "order" ? "trial" : words[by], x, y, along));
  if (isDrawn) for (const trace of traces.slice(1)) if (trace.name === "front") trace.showlegend = false;  // the line stands for it
  traces.push(...predictedTrace(x, y), ...confirmedTrace(x, y, along));
  if (baseline) traces.push({ ...markers([baseline], 2, x, y, along), name: "multi-head baseline",
    marker: { color: color("base"), symbol: "diamond", size: 14, line: { color: color("ink"), width: 1 } } });
  const scale = (box) => byId(box).checked ? "log" : "linear";
  // Zoom and legend stay as they are until an axis changes.
  return Plotly.react("chart-front", traces, look({ dragmode: byId("front-drag").value, uirevision: x + y + scale("front-x-log") + scale("front-y-log"),
    xaxis: { title: { text: safe(name(x)) }, type: scale("front-x-log") },
    yaxis: { title: { text: safe(name(y)) }, type: scale("front-y-log") } }), settings)
    .then((chart) => {
      for (const kind of ["plotly_click", "plotly_selected", "plotly_deselect"]) chart.removeAllListeners(kind);
      chart.on("plotly_click", (event) => { pick(event.points[0].customdata); });
      chart.on("plotly_selected", (event) => { if (event) select(event.points.map((point) => point.customdata).filter((number) => number >= 0)); });
      chart.on("plotly_deselect", () => select(null));
    });
}

// A point stands for a trial, or by its cost with a minus for a predicted plan.
function pick(number) {
  if (number >= 0) open(number);
  if (!(number < 0)) return;
  field.value = count(-number);
  choose(-number);
  byId("choose").scrollIntoView();
}

// Trials in the box are those of the table and of the parallel coordinates.
function select(numbers) {
  selected = numbers && numbers.length ? new Set(numbers) : null;
  byId("selected").hidden = !selected;
  if (selected) byId("selected").firstElementChild.textContent = `${selected.size} trials selected; the table and the parallel coordinates show these alone.`;
  from = 0;
  list();
  if (byId("chart-parallel")?.data) drawParallel();
}
byId("selected").querySelector("button").addEventListener("click", () => {
  select(null);
  Plotly.restyle("chart-front", { selectedpoints: null }).then(() => Plotly.relayout("chart-front", { selections: [] }));
});

function drawProgress() {
  const bySpent = byId("progress-x").value === "spent";
  const looks = { "this search": ["accent", "solid"], "random proposals": ["soft", "dash"] };
  const traces = data.progress.flatMap((series) => {
    const x = bySpent ? series.spent : series.trials, [hue, dash] = looks[series.name] ?? ["soft", "dot"];
    const line = { x, y: series.share, name: series.name, mode: "lines", line: { shape: "hv", color: color(hue), dash }, hovertemplate: "%{x:,}: %{y:.1%}<extra></extra>" };
    const edge = { x, mode: "lines", line: { shape: "hv", width: 0 }, hoverinfo: "skip", showlegend: false };
    return series.low ? [{ ...edge, y: series.low }, { ...edge, y: series.high, fill: "tonexty", fillcolor: "rgba(128,128,128,.2)" }, line] : [line];
  });
  return Plotly.react("chart-progress", traces, look({ showlegend: traces.length > 1,
    xaxis: { title: { text: bySpent ? safe(data.progress[0].unit) : "trials trained" } },
    yaxis: { title: { text: "share of the final hypervolume" }, tickformat: ".0%", rangemode: "tozero" } }), settings);
}

// Blues by size, so that lines of the front can be told apart.
function shade(number) {
  const place = front.findIndex((trial) => trial.number === number);
  const share = front.length < 2 ? 1 : place / (front.length - 1);
  return `hsl(210, 80%, ${onDark() ? 40 + 40 * share : 68 - 38 * share}%)`;
}

function drawCurves() {
  const kinds = { stopped: [color("faint"), 1, "stopped early"], front: [color("accent"), 1.6, "front"], baseline: [color("base"), 2.4, "multi-head baseline"] };
  const named = new Set();
  const traces = data.curves.map((curve) => {
    const [fill, width, name] = kinds[curve.kind];
    const first = !named.has(curve.kind);
    named.add(curve.kind);
    const own = curve.kind === "front" ? shade(curve.number) : fill;
    return { x: curve.updates, y: curve.values, mode: curve.updates.length > 1 ? "lines" : "markers", name, legendgroup: name, showlegend: first,
      line: { color: own, width }, marker: { color: own }, hovertemplate: `trial ${curve.number}: %{y:.4f} after %{x:,} updates<extra></extra>` };
  });
  const isLog = byId("curves-log").checked, ends = curvesEnd();
  const range = byId("curves-end").checked && ends ? ends.map((end) => isLog ? Math.log10(end) : end) : undefined;
  return Plotly.react("chart-curves", traces, look({ xaxis: { title: { text: "updates" } },
    yaxis: { title: { text: safe(data.quality) }, type: isLog ? "log" : "linear", ...(range ? { range } : {}) } }), settings);
}

// What the last third of the updates spans in y, without the trials that were stopped.
function curvesEnd() {
  const kept = data.curves.filter((curve) => curve.kind !== "stopped");
  const last = Math.max(...kept.map((curve) => curve.updates.at(-1)));
  const values = kept.flatMap((curve) => curve.values.filter((_, index) => curve.updates[index] >= 2 * last / 3));
  if (values.length < 2) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)], slack = 0.05 * (high - low || Math.abs(high));
  return low - slack > 0 || low <= 0 ? [low - slack, high + slack] : [low, high + slack];
}

function drawParallel() {
  const rows = trained.filter((trial) => !selected || selected.has(trial.number)).sort((a, b) => a.on_front - b.on_front);
  const named = new Map();  // no two schemes share a label
  for (const [scheme, short] of Object.entries(data.initials)) named.set(scheme, [...named.values()].includes(short) ? scheme : short);
  byId("initials").textContent = [...named].map(([scheme, short]) => `${short}: ${scheme}`).join(", ");
  const dimensions = [...data.costs.map((cost) => ({ label: safe(cost.name), values: rows.map((trial) => trial.costs[cost.name]) })),
    { label: safe(data.loss), values: rows.map((trial) => trial.loss) }];
  for (const unit of data.units) {
    const schemes = rows.map((trial) => schemeOf(trial, unit)), names = [...new Set(schemes)].filter(Boolean).sort();
    dimensions.push({ label: safe(unit.label), values: schemes.map((scheme) => names.indexOf(scheme)),
      tickvals: names.map((_, index) => index), ticktext: names.map((scheme) => safe(named.get(scheme))) });
  }
  return Plotly.react("chart-parallel", [{ type: "parcoords", dimensions, labelside: "top", unselected: { line: { opacity: 0.05 } },
    line: { color: rows.map((trial) => Number(trial.on_front)), cmin: 0, cmax: 1, colorscale: [[0, color("faint")], [1, color("accent")]], showscale: false },
    tickfont: { size: 12, color: color("ink") }, labelfont: { size: 12, color: color("ink") }, rangefont: { size: 11, color: color("soft") } }],
  look({ margin: { l: 70, r: 50, t: 50, b: 20 } }), settings);
}

const charts = [["chart-front", drawFront, ["front-x", "front-y", "front-color", "front-drag", "front-x-log", "front-y-log"]],
  ["chart-progress", drawProgress, ["progress-x"]], ["chart-curves", drawCurves, ["curves-log", "curves-end"]], ["chart-parallel", drawParallel, []]];
// Where most plans mix schemes, what most of their modules have tells more than one common mark.
if (trained.filter((trial) => trial.scheme === "several schemes").length > trained.length / 2) {
  const most = new Set(trained.filter((trial) => !trial.baseline).map((trial) => trial.most));
  byId("front-color").value = most.size > 1 ? "most" : "order";
}
watchCharts(charts);
