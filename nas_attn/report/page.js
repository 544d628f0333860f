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
  const within = front.filter((trial) => trial.costs[axis] <= budget);
  if (within.length) return show(best(within));
  byId("budget-commands").hidden = true;
  document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
  byId("budget-answer").textContent = Number.isNaN(budget) ? "Write a number such as 20M or 7,500,000."
    : `No trained model fits ${count(budget)} ${words[axis]}; the smallest has ${count(front[0].costs[axis])}.`;
}

function show(trial) {
  const text = `Trial ${trial.number}: ${count(trial.costs[axis])} ${words[axis]}, ${data.loss} ${fixed(trial.loss)}` +
    (trial.noise === null ? "" : ` \u00b1${fixed(trial.noise)} (standard error)`);
  const lines = [make("b", text), make("br"), `${against(trial)}.`];
  if (confirmation(trial)) lines.push(make("br"), `${confirmation(trial)}.`);
  byId("budget-answer").replaceChildren(...lines);
  const row = byId(`front-${trial.number}`), commands = data.commands[trial.number] || [];
  byId("budget-plan").replaceChildren(...(row ? [row.querySelector("table.plan").cloneNode(true)] : []));
  byId("budget-export").textContent = data.export.replaceAll("{trial}", trial.number);
  byId("budget-train").textContent = commands.join("\n");
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
  show(trial);
}

if (front.length) {
  slider.addEventListener("input", () => write(front[Number(slider.value)]));
  field.addEventListener("input", () => choose(amount(field.value)));
  const first = byNumber.get(data.answer) || best(front);
  byId("budget-reset").addEventListener("click", () => write(first));
  write(first);
}
