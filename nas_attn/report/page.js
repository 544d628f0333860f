// The report: its trials in words, and the choice by budget.
const trials = data.trials;
const byNumber = new Map(trials.map((trial) => [trial.number, trial]));
const axis = data.costs[0].name;
// From small to large, as the page's own tables and data have them.
const front = trials.filter((trial) => trial.on_front)
  .sort((a, b) => a.costs[axis] - b.costs[axis] || a.number - b.number);
const trained = trials.filter((trial) => trial.loss !== null);
const baseline = trained.find((trial) => trial.baseline);
const words = Object.fromEntries(data.costs.map((cost) => [cost.name, cost.words]));


function against(trial) {
  if (!baseline) return "no trained baseline to compare with";
  if (trial === baseline) return "the baseline itself";
  const saved = trial.costs[axis] / baseline.costs[axis] - 1;
  return `${percent(saved)} ${words[axis]}, ${data.loss} ${signed(trial.change)}${interval(trial.change, trial.interval)} against the baseline`;
}

function confirmation(trial) {
  const found = data.confirmed[trial.number];
  if (!found) return "";
  const change = found.change === null ? "" : `, ${signed(found.change)}${interval(found.change, found.interval)} against the baseline`;
  return `Confirmed by ${found.seeds} seeds: ${data.loss} ${fixed(found.mean)}${change}`;
}

// The best trial within a budget; the slider goes from trial to trial of the front.
const slider = byId("budget-slider"), field = byId("budget-field");
const best = (rows) => rows.reduce((a, b) => (data.maximise ? b.loss > a.loss : b.loss < a.loss) ? b : a);

function choose(budget) {
  predict(budget);
  const within = front.filter((trial) => trial.costs[axis] <= budget);
  if (within.length) return show(best(within));
  byId("budget-commands").hidden = true;
  document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
  byId("budget-answer").textContent = Number.isNaN(budget) ? "Write a number such as 20M or 7,500,000."
    : `No trained model fits ${count(budget)} ${words[axis]}; the smallest has ${count(front[0].costs[axis])}.`;
}

// The plan of least predicted loss within a budget, unless it is trained.
function predict(budget) {
  const found = data.predicted.points.findLast((point) => point.cost <= budget);
  byId("budget-predicted").hidden = !found || found.trial !== null;
  if (!found || found.trial !== null) return;
  byId("predicted-answer").textContent = `${predictedText(found)}. ${predictedSum(found)}`;
  byId("predicted-plan").replaceChildren(drawPlan(found));
  byId("predicted-command").textContent =
    `${data.predicted.convert} --plan ${found.plan} --out converted-${found.cost}.pt`;
}

function predictedText(point) {
  const size = `${count(point.cost)} ${words[axis]} (${percent(point.cost / baseline.costs[axis] - 1)})`;
  if (point.loss === null) return `${size}: ${signed(point.change)} bits per token expected after conversion`;
  return `${size}: ${data.loss} ${fixed(point.loss)} expected after ${data.predicted.remaining === null ? "conversion, without training" : "fine-tuning"}`;
}

// How that is reckoned.
function predictedSum(point) {
  if (point.loss === null) return "";
  const base = `That is the baseline's ${fixed(baseline.loss)}`, change = `${signed(point.change)} bits per token`;
  if (data.predicted.remaining === null) return `${base} and ${change}.`;
  const left = data.predicted.remaining.toFixed(2);
  return `${base} + ${left} \u00d7 ${fixed(point.change)}: ${change} by conversion alone, of which fine-tuning left ${left} in this search's trials (median).`;
}

// As the tables of the page draw plans.
function drawPlan(point) {
  const table = make("table", undefined, { class: "plan", "aria-label": "predicted plan", title: point.words });
  for (const [site, codes] of point.picture) {
    const row = make("tr");
    row.append(make("th", site, { scope: "row" }));
    for (const code of codes) {
      const [title, fill, share] = data.predicted.cells[site][code], cell = make("td", code, { title });
      cell.style.background = `linear-gradient(90deg, ${fill} ${share}%, #fff ${share}%)`;
      row.append(cell);
    }
    table.append(row);
  }
  return table;
}

function show(trial) {
  const text = `Trial ${trial.number}: ${count(trial.costs[axis])} ${words[axis]}, ${data.loss} ${fixed(trial.loss)}` +
    (trial.noise === null ? "" : ` \u00b1${fixed(trial.noise)} (standard error)`);
  const sure = confirmation(trial), lines = [make("b", text), make("br")];
  lines.push(...(sure ? [`${sure}.`, make("br"), `In the search alone: ${against(trial)}.`] : [`${against(trial)}.`]));
  byId("budget-answer").replaceChildren(...lines);
  const row = byId(`front-${trial.number}`), commands = data.commands[trial.number] || "";
  byId("budget-plan").replaceChildren(...(row ? [row.querySelector("table.plan").cloneNode(true)] : []));
  byId("budget-export").textContent = data.export.replaceAll("{trial}", trial.number);
  byId("budget-train").textContent = commands;
  byId("budget-again").hidden = !commands.length;
  byId("budget-commands").hidden = false;
  document.querySelectorAll("tr.chosen").forEach((other) => other.classList.remove("chosen"));
  if (row) row.classList.add("chosen");
  place(trial);
}

function place(trial) {
  const own = front.indexOf(trial);
  slider.value = own >= 0 ? own : front.filter((other) => other.costs[axis] <= trial.costs[axis]).length - 1;
  slider.setAttribute("aria-valuetext", `trial ${trial.number}, ${count(trial.costs[axis])} ${words[axis]}`);
}

function write(trial) {
  field.value = count(trial.costs[axis]);
  predict(trial.costs[axis]);
  show(trial);
}

if (front.length) {
  slider.addEventListener("input", () => write(front[Number(slider.value)]));
  field.addEventListener("input", () => choose(amount(field.value)));
  const first = byNumber.get(data.answer) || best(front);
  byId("budget-reset").addEventListener("click", () => write(first));
  write(first);
}

const near = byId("table-near");
if (near) {
  const update = () => {
    byId("front-table").classList.toggle("no-near", !near.checked);
    byId("near-cut").textContent = near.checked ? "" : "What is within the noise of the front is left out; front.csv has it.";
  };
  near.addEventListener("change", update);
  update();
}
// On paper nothing can be unfolded.
let unfolded = [];
window.addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("main details:not([open])")];
  unfolded.forEach((folded) => { folded.open = true; });
});
window.addEventListener("afterprint", () => unfolded.forEach((folded) => { folded.open = false; }));
