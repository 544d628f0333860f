// A trial, whole, alone or beside another; and the table of all trials.
const dialog = byId("trial"), other = byId("trial-other");
let opened = null, listed = [], selected = null;

// A plan's codes by site: [["encoder_self", ["C64", "MH"]], ...].
const sites = (trial) => (trial.codes ? trial.codes.split("; ") : []).map((site) => {
  const [name, ...codes] = site.split(" ");
  return [name, codes];
});

// Codes in a text, each with its choice in words as a title.
const coded = (text) => text.split(/([\s;]+)/).map((part) =>
  Object.hasOwn(data.choices, part) ? make("abbr", part, { title: data.choices[part] }) : part);

function facts(trial) {
  const rows = [["state", trial.state]];
  for (const cost of data.costs) rows.push([cost.words, count(trial.costs[cost.name])]);
  if (trial.loss !== null) {
    rows.push([data.loss, `${fixed(trial.loss)}${trial.noise === null ? "" : ` \u00b1${fixed(trial.noise)}`} (seeds: ${trial.losses.map(fixed).join(", ")})`]);
    rows.push(["compared", against(trial)]);
  }
  if (confirmation(trial)) rows.push(["confirmation", confirmation(trial)]);
  for (const [site, codes] of sites(trial)) rows.push([site, codes.join(" ")]);
  rows.push(["plan", trial.plan]);
  if (trial.duplicate_of !== null) rows.push(["same plan as", `trial ${trial.duplicate_of}`]);
  if (trial.reason) rows.push(["reason", trial.reason]);
  rows.push(["training time", `${Math.round(trial.seconds).toLocaleString("en-US")} s`]);
  if (trial.updates) rows.push(["updates", count(trial.updates)]);
  if (trial.folder) rows.push(["trial folder (commands.sh inside)", trial.folder]);
  return rows;
}

function comparison(trial, beside) {
  const [left, right] = [new Map(facts(trial)), new Map(facts(beside))];
  const table = make("table"), head = make("tr");
  head.append(make("td"), make("th", `trial ${trial.number}`, { scope: "col" }), make("th", `trial ${beside.number}`, { scope: "col" }));
  table.append(head);
  for (const term of new Set([...left.keys(), ...right.keys()])) {
    const [a, b] = [left.get(term) ?? "", right.get(term) ?? ""];
    const row = make("tr", undefined, a === b ? {} : { class: "differs" });
    row.append(make("th", term, { scope: "row" }), make("td", a), make("td", b));
    table.append(row);
  }
  const frame = make("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": "two trials" });
  frame.append(table);
  return frame;
}

function fill() {
  const beside = byNumber.get(Number(other.value));
  const body = byId("trial-body");
  if (other.value !== "" && beside && beside !== opened) {
    body.replaceChildren(comparison(opened, beside));
    return;
  }
  const list = make("dl");
  const named = new Set(sites(opened).map(([site]) => site));
  for (const [term, value] of facts(opened)) {
    const said = make("dd");
    said.append(...(named.has(term) ? coded(value) : [value]));
    list.append(make("dt", term), said);
  }
  body.replaceChildren(list);
  for (const [id, title, text] of [["trial-commands", "Reproduce this training", data.commands[opened.number]],
    ["trial-evaluation", "Evaluate this checkpoint", data.evaluate[opened.number]]]) {
    if (!text) continue;
    const folded = make("details");
    folded.append(make("summary", title), make("button", "copy", { type: "button", "data-copy": id, "aria-label": `copy: ${title}` }), make("pre", text, { id }));
    body.append(folded);
  }
}

function open(number) {
  const trial = byNumber.get(number);
  if (!trial) return;
  opened = trial;
  byId("trial-title").textContent = `Trial ${trial.number}${trial.baseline ? " (baseline)" : ""}`;
  const order = listed.includes(trial) ? listed : trials;
  byId("trial-back").dataset.trial = order[order.indexOf(trial) - 1]?.number ?? "";
  byId("trial-next").dataset.trial = order[order.indexOf(trial) + 1]?.number ?? "";
  for (const id of ["trial-back", "trial-next"]) byId(id).disabled = byId(id).dataset.trial === "";
  fill();
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  if (location.hash !== `#trial-${number}`) history.replaceState(null, "", `#trial-${number}`);
}

other.addEventListener("input", fill);
byId("trial-close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => {
  if (/^#trial-\d+$/.test(location.hash)) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("keydown", (event) => {
  const button = { ArrowLeft: "trial-back", ArrowRight: "trial-next" }[event.key];
  if (button && event.target !== other) byId(button).click();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-trial]");
  if (button && button.dataset.trial !== "") open(Number(button.dataset.trial));
});
const follow = () => { if (/^#trial-\d+$/.test(location.hash)) open(Number(location.hash.slice(7))); };
window.addEventListener("hashchange", follow);

// All trials: sorted, found, a page at a time.
const PAGE = 50;
let order = "number", falling = false, from = 0;
const value = (trial) => ["loss", "number", "seconds", "state", "codes"].includes(order) ? trial[order] : trial.costs[order];
const COMPARED = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };
const FLAGS = { front: "on_front", near: "near", warm: "warm", baseline: "baseline" };

// What one term of the search field asks of a trial.
function wanted(term) {
  const limit = /^([a-z_]+)(<=|>=|<|>|=)(.+)$/.exec(term);
  const name = limit && (limit[1] === data.loss.toLowerCase() ? "loss" : limit[1]);
  if (limit && !Number.isNaN(amount(limit[3])) && (["loss", "number", "seconds"].includes(name) || name in words)) {
    const bound = amount(limit[3]);
    return (trial) => { const own = name in words ? trial.costs[name] : trial[name]; return own !== null && own !== undefined && COMPARED[limit[2]](own, bound); };
  }
  if (term.startsWith("state:")) return (trial) => trial.state.includes(term.slice(6));
  if (term.startsWith("trial:")) return (trial) => trial.number === Number(term.slice(6));
  if (term in FLAGS) return (trial) => trial[FLAGS[term]];
  return (trial) => `${trial.number} ${trial.state} ${trial.plan} ${trial.codes}`.toLowerCase().includes(term);
}

function list() {
  const terms = byId("find").value.toLowerCase().replace(/\btrial\s+(\d+)/g, "trial:$1").split(/\s+/).filter(Boolean).map(wanted);
  const found = trials.filter((trial) => (!selected || selected.has(trial.number)) && terms.every((term) => term(trial)));
  found.sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === right) return a.number - b.number;
    if (left === null || left === undefined) return 1;
    if (right === null || right === undefined) return -1;
    return (left < right ? -1 : 1) * (falling ? -1 : 1);
  });
  listed = found;
  from = Math.max(0, Math.min(from, Math.floor((found.length - 1) / PAGE) * PAGE));
  byId("all-body").replaceChildren(...found.slice(from, from + PAGE).map(tableRow));
  const last = Math.min(from + PAGE, found.length);
  byId("all-place").textContent = found.length ? `${from + 1} to ${last} of ${found.length.toLocaleString("en-US")}` : "none found";
  byId("all-cut").textContent = last - from < trials.length ? `${last - from} of ${trials.length.toLocaleString("en-US")} trials shown; trials.csv has all.` : "";
  document.querySelectorAll("#all th[aria-sort]").forEach((head) =>
    head.setAttribute("aria-sort", head.dataset.order === order ? (falling ? "descending" : "ascending") : "none"));
}

function tableRow(trial) {
  const row = make("tr", undefined, { class: trial.baseline ? "baseline" : trial.on_front ? "front" : trial.near ? "near" : "" });
  const number = make("td");
  number.append(make("button", String(trial.number), { class: "plain", type: "button", "data-trial": trial.number, "aria-label": `open trial ${trial.number}` }));
  const state = make("td", trial.state + " ");
  if (trial.on_front) state.append(make("span", "front", { class: "tag" }), " ");
  if (trial.near) state.append(make("span", "within the noise", { class: "tag near" }), " ");
  if (trial.baseline) state.append(make("span", "baseline", { class: "tag base" }), " ");
  const warm = trial.parent === null ? "warm" : `warm from ${trial.parent}`;
  if (trial.warm) state.append(make("span", warm, { class: "tag near" }));
  row.append(number, state);
  for (const cost of data.costs) row.append(make("td", count(trial.costs[cost.name]), { class: "number", "data-label": cost.words }));
  row.append(make("td", trial.loss === null ? "" : fixed(trial.loss), { class: "number", "data-label": data.loss }),
    make("td", trial.seconds ? Math.round(trial.seconds).toLocaleString("en-US") : "", { class: "number", "data-label": "seconds" }));
  const plan = make("td", undefined, { title: trial.plan });
  plan.append(...coded(trial.codes));
  row.append(plan);
  return row;
}

byId("find").addEventListener("input", () => { from = 0; list(); });
byId("all-back").addEventListener("click", () => { from -= PAGE; list(); });
byId("all-next").addEventListener("click", () => { from += PAGE; list(); });
document.querySelectorAll("#all th button").forEach((button) => button.addEventListener("click", () => {
  const chosen = button.parentElement.dataset.order;
  [order, falling] = [chosen, order === chosen ? !falling : false];
  from = 0;
  list();
}));
list();
follow();
