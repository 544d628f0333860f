"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const trials = data.trials;
  const byNumber = new Map(trials.map((trial) => [trial.number, trial]));
  const axis = data.costs[0].name;
  // From small to large, as the page's own tables and data have them.
  const front = trials.filter((trial) => trial.on_front)
    .sort((a, b) => a.costs[axis] - b.costs[axis] || a.number - b.number);
  const trained = trials.filter((trial) => trial.loss !== null);
  const baseline = trained.find((trial) => trial.baseline);
  const words = Object.fromEntries(data.costs.map((cost) => [cost.name, cost.words]));

  const count = (value) => value === null || value === undefined ? ""
    : Number.isInteger(value) ? value.toLocaleString("en-US") : value.toPrecision(4);
  const signed = (value) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(4);
  const percent = (part) => (part < 0 ? "\u2212" : "+") + (100 * Math.abs(part)).toFixed(1) + " %";
  // Plotly takes a little HTML in its texts, and plans come from files.
  const safe = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

  function make(tag, text, attributes = {}) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  function against(trial) {
    if (!baseline) return "the baseline is not trained";
    if (trial === baseline) return "the baseline itself";
    const saved = trial.costs[axis] / baseline.costs[axis] - 1;
    return `${percent(saved)} ${words[axis]}, ${data.loss} ${signed(trial.loss - baseline.loss)} against the baseline`;
  }

  // A trial, whole.
  const dialog = byId("trial");
  function open(number) {
    const trial = byNumber.get(number);
    if (!trial) return;
    const rows = [["state", trial.state], ["plan", trial.plan]];
    for (const cost of data.costs) rows.push([cost.words, count(trial.costs[cost.name])]);
    if (trial.loss !== null) {
      rows.push([data.loss, `${trial.loss.toFixed(4)} (seeds: ${trial.losses.map((loss) => loss.toFixed(4)).join(", ")})`]);
      rows.push(["compared", against(trial)]);
    }
    if (trial.duplicate_of !== null) rows.push(["same plan as", `trial ${trial.duplicate_of}`]);
    if (trial.reason) rows.push(["reason", trial.reason]);
    rows.push(["training time", `${Math.round(trial.seconds).toLocaleString("en-US")} s`]);
    if (trial.updates) rows.push(["updates", count(trial.updates)]);
    if (trial.folder) rows.push(["files, with commands.sh", trial.folder]);
    const list = make("dl");
    for (const [term, value] of rows) list.append(make("dt", term), make("dd", value));
    byId("trial-title").textContent = `Trial ${trial.number}${trial.baseline ? " (baseline)" : ""}`;
    byId("trial-body").replaceChildren(list);
    for (const command of data.commands[number] || []) byId("trial-body").append(make("pre", command));
    dialog.showModal();
  }
  byId("trial-close").addEventListener("click", () => dialog.close());
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-trial]");
    if (button) open(Number(button.dataset.trial));
    const copied = event.target.closest("[data-copy]");
    if (copied && navigator.clipboard) navigator.clipboard.writeText(byId(copied.dataset.copy).textContent)
      .then(() => { copied.textContent = "copied"; setTimeout(() => { copied.textContent = "copy"; }, 1500); });
  });

  // The best trial within a budget.
  const slider = byId("budget-slider"), field = byId("budget-field");
  function choose(budget) {
    const within = front.filter((trial) => trial.costs[axis] <= budget);
    const answer = byId("budget-answer");
    document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
    if (!within.length) {
      byId("budget-commands").hidden = true;
      answer.textContent = `Nothing was trained within ${count(budget)}; the smallest has ${count(front[0].costs[axis])} ${words[axis]}.`;
      return;
    }
    const best = within.reduce((a, b) => (data.maximise ? b.loss > a.loss : b.loss < a.loss) ? b : a);
    const text = `Trial ${best.number}: ${count(best.costs[axis])} ${words[axis]}, ${data.loss} ${best.loss.toFixed(4)}` +
      (best.noise === null ? "" : ` \u00b1${best.noise.toFixed(4)}`);
    const row = byId(`front-${best.number}`);
    const picture = row.querySelector("table.plan").cloneNode(true);
    answer.replaceChildren(make("b", text), make("br"), document.createTextNode(against(best) + "."));
    byId("budget-plan").replaceChildren(picture);
    byId("budget-export").textContent = data.export.replaceAll("{trial}", best.number);
    byId("budget-train").textContent = (data.commands[best.number] || []).join("\n");
    byId("budget-commands").hidden = false;
    row.classList.add("chosen");
  }
  if (slider && front.length) {
    slider.addEventListener("input", () => { field.value = slider.value; choose(Number(slider.value)); });
    field.addEventListener("input", () => { slider.value = field.value; choose(Number(field.value)); });
    choose(Number(slider.value));
  }

  // The plot library takes longer to start than all the rest, so the page is there before it.
  let hasLibrary = false;
  function startLibrary() {
    if (hasLibrary) return;
    hasLibrary = true;
    const script = make("script", byId("library").textContent);
    document.head.append(script);
  }

  // Charts, each drawn when it comes near.
  const look = { margin: { l: 70, r: 20, t: 10, b: 50 }, font: { size: 13, color: "#1b2430" },
    paper_bgcolor: "#fff", plot_bgcolor: "#fff", hoverlabel: { align: "left" }, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" } };
  const grid = { gridcolor: "#e8ebee", zeroline: false, automargin: true };
  const settings = { displayModeBar: false, responsive: true };
  const column = (rows, name) => rows.map((trial) => trial.costs[name]);
  const hover = (trial) => `<b>trial ${trial.number}</b>${trial.baseline ? " (baseline)" : ""}<br>` + safe(trial.plan).replaceAll("; ", "<br>");

  function drawFront() {
    const x = byId("front-x").value, y = byId("front-y").value;
    const along = (rows, name) => name === "loss" ? rows.map((trial) => trial.loss) : column(rows, name);
    const name = (key) => key === "loss" ? data.quality : words[key];
    const traces = [];
    const onFront = front;
    if (data.costs.length === 1 && x === axis && y === "loss")
      traces.push({ x: along(onFront, x), y: along(onFront, y), mode: "lines", line: { shape: "hv", color: "#0b5cad", width: 1.5 },
        hoverinfo: "skip", name: "front" });
    for (const [scheme, [color, symbol]] of Object.entries(data.styles)) {
      for (const isFront of [false, true]) {
        const rows = trained.filter((trial) => trial.scheme === scheme && trial.on_front === isFront && !trial.baseline);
        if (!rows.length) continue;
        const bars = isFront && y === "loss" && rows.every((trial) => trial.noise !== null) ? { type: "data", array: rows.map((trial) => trial.noise), width: 3, color: "#56606d" } : undefined;
        traces.push({ x: along(rows, x), y: along(rows, y), mode: "markers", name: scheme, legendgroup: scheme, error_y: bars,
          showlegend: isFront || !trained.some((trial) => trial.scheme === scheme && trial.on_front),
          marker: { color, symbol, size: isFront ? 11 : 7, opacity: isFront ? 1 : 0.45, line: { color: "#1b2430", width: 1 } },
          customdata: rows.map((trial) => trial.number), text: rows.map(hover),
          hovertemplate: `%{text}<br>%{x:,} ${safe(name(x))}<br>%{y:.6g} ${safe(name(y))}<extra></extra>` });
      }
    }
    if (baseline) traces.push({ x: along([baseline], x), y: along([baseline], y), mode: "markers", name: "multi-head baseline",
      marker: { color: "#b34700", symbol: "diamond", size: 14, line: { color: "#1b2430", width: 1 } },
      customdata: [baseline.number], text: [hover(baseline)], hovertemplate: "%{text}<br>%{x:,}<br>%{y:.6g}<extra></extra>" });
    const scale = (box) => byId(box).checked ? "log" : "linear";
    Plotly.react("chart-front", traces, { ...look,
      xaxis: { ...grid, title: { text: safe(name(x)) }, type: scale("front-x-log") },
      yaxis: { ...grid, title: { text: safe(name(y)) }, type: scale("front-y-log") } }, settings)
      .then((chart) => {
        chart.removeAllListeners("plotly_click");
        chart.on("plotly_click", (event) => { if (event.points[0].customdata) open(event.points[0].customdata); else if (event.points[0].customdata === 0) open(0); });
      });
  }
  function drawProgress() {
    const bySpent = byId("progress-x").value === "spent";
    const traces = data.progress.map((series, index) => ({ x: bySpent ? series.spent : series.trials, y: series.share, name: series.name,
      mode: "lines", line: { shape: "hv", color: ["#0b5cad", "#56606d"][index], dash: ["solid", "dot"][index] },
      hovertemplate: "%{x:,}: %{y:.1%}<extra></extra>" }));
    Plotly.react("chart-progress", traces, { ...look, showlegend: traces.length > 1,
      xaxis: { ...grid, title: { text: bySpent ? safe(data.progress[0].unit) : "trials trained" } },
      yaxis: { ...grid, title: { text: "share of the final hypervolume" }, tickformat: ".0%", rangemode: "tozero" } }, settings);
  }
  function drawCurves() {
    const kinds = { stopped: ["#b8bfc7", 1, "stopped early"], front: ["#0b5cad", 1.6, "front"], baseline: ["#b34700", 2.4, "multi-head baseline"] };
    const named = new Set();
    const traces = data.curves.map((curve) => {
      const [color, width, name] = kinds[curve.kind];
      const first = !named.has(curve.kind);
      named.add(curve.kind);
      return { x: curve.updates, y: curve.values, mode: curve.updates.length > 1 ? "lines" : "markers", name, legendgroup: name, showlegend: first,
        line: { color, width }, marker: { color }, hovertemplate: `trial ${curve.number}: %{y:.4f} after %{x:,} updates<extra></extra>` };
    });
    Plotly.react("chart-curves", traces, { ...look, xaxis: { ...grid, title: { text: "updates" } },
      yaxis: { ...grid, title: { text: safe(data.quality) }, type: byId("curves-log").checked ? "log" : "linear" } }, settings);
  }
  function drawParallel() {
    const dimensions = data.parallel.map((dimension) => ({ label: safe(dimension.label), values: dimension.values,
      ...(dimension.names ? { tickvals: dimension.names.map((_, index) => index), ticktext: dimension.names.map(safe) } : {}) }));
    const losses = front.map((trial) => trial.loss);
    Plotly.react("chart-parallel", [{ type: "parcoords", dimensions, line: { color: losses, colorscale: "Cividis", showscale: false } }],
      { ...look, margin: { l: 90, r: 90, t: 50, b: 20 } }, settings);
  }
  const charts = [["chart-front", drawFront, ["front-x", "front-y", "front-x-log", "front-y-log"]],
    ["chart-progress", drawProgress, ["progress-x"]], ["chart-curves", drawCurves, ["curves-log"]], ["chart-parallel", drawParallel, []]];
  for (const [id, draw, controls] of charts) {
    const place = byId(id);
    if (!place) continue;
    let drawn = false;
    const now = () => { drawn = true; startLibrary(); draw(); };
    const once = () => { if (!drawn) now(); };
    new IntersectionObserver((entries, observer) => {
      if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); setTimeout(once); }
    }, { rootMargin: "300px" }).observe(place);
    window.addEventListener("beforeprint", once);
    for (const control of controls) byId(control).addEventListener("change", now);
  }

  // All trials: sorted, found, a page at a time.
  const PAGE = 50;
  let order = "number", falling = false, from = 0;
  const value = (trial) => order === "loss" || order === "number" || order === "seconds" || order === "state" || order === "codes"
    ? trial[order] : trial.costs[order];
  function list() {
    const wanted = byId("find").value.toLowerCase();
    const found = trials.filter((trial) => `${trial.number} ${trial.state} ${trial.plan} ${trial.codes}`.toLowerCase().includes(wanted));
    found.sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === right) return a.number - b.number;
      if (left === null || left === undefined) return 1;
      if (right === null || right === undefined) return -1;
      return (left < right ? -1 : 1) * (falling ? -1 : 1);
    });
    from = Math.max(0, Math.min(from, Math.floor((found.length - 1) / PAGE) * PAGE));
    const rows = found.slice(from, from + PAGE).map((trial) => {
      const row = make("tr", undefined, { class: trial.baseline ? "baseline" : trial.on_front ? "front" : "" });
      const number = make("td");
      number.append(make("button", String(trial.number), { class: "plain", type: "button", "data-trial": trial.number, "aria-label": `open trial ${trial.number}` }));
      const state = make("td", trial.state + " ");
      if (trial.on_front) state.append(make("span", "front", { class: "tag" }), " ");
      if (trial.baseline) state.append(make("span", "baseline", { class: "tag base" }), " ");
      const warm = trial.parent === null ? "warm" : `warm from ${trial.parent}`;
      if (trial.warm) state.append(make("span", warm, { class: "tag near" }));
      row.append(number, state, make("td", trial.codes, { title: trial.plan }));
      for (const cost of data.costs) row.append(make("td", count(trial.costs[cost.name]), { class: "number" }));
      row.append(make("td", trial.loss === null ? "" : trial.loss.toFixed(4), { class: "number" }),
        make("td", trial.seconds ? Math.round(trial.seconds).toLocaleString("en-US") : "", { class: "number" }));
      return row;
    });
    byId("all-body").replaceChildren(...rows);
    byId("all-place").textContent = found.length ? `${from + 1} to ${Math.min(from + PAGE, found.length)} of ${found.length.toLocaleString("en-US")}` : "none found";
    document.querySelectorAll("#all th[aria-sort]").forEach((head) =>
      head.setAttribute("aria-sort", head.dataset.order === order ? (falling ? "descending" : "ascending") : "none"));
  }
  byId("find").addEventListener("input", () => { from = 0; list(); });
  byId("all-back").addEventListener("click", () => { from -= PAGE; list(); });
  byId("all-next").addEventListener("click", () => { from += PAGE; list(); });
  document.querySelectorAll("#all th button").forEach((button) => button.addEventListener("click", () => {
    const wanted = button.parentElement.dataset.order;
    [order, falling] = [wanted, order === wanted ? !falling : false];
    from = 0;
    list();
  }));
  list();
  if (/^#trial-\d+$/.test(location.hash)) open(Number(location.hash.slice(7)));
})();
