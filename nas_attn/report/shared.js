// Shared by all pages: the data, texts of numbers, and copying.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const count = (value) => value === null || value === undefined ? ""
  : Number.isInteger(value) ? value.toLocaleString("en-US") : value.toPrecision(4);
const fixed = (value) => value.toFixed(4).replace("-", "\u2212");
const signed = (value) => (value < 0 ? "" : "+") + fixed(value);
const percent = (part) => (part < 0 ? "\u2212" : "+") + (100 * Math.abs(part)).toFixed(1) + " %";
// Plotly takes a little HTML in its texts, and plans come from files.
const safe = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

// A number as people type it: 20M, 7.5M, 7,500,000; NaN for anything else.
function amount(text) {
  const found = /^([\d,_ ]*\.?\d+|[\d,_ ]+\.?)\s*([kmb]?)$/i.exec(text.trim());
  if (!found || !/\d/.test(found[1])) return NaN;
  return Number(found[1].replace(/[,_ ]/g, "")) * { "": 1, k: 1e3, m: 1e6, b: 1e9 }[found[2].toLowerCase()];
}

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function interval(change, half) {
  return half === null || half === undefined ? "" : ` (95 % interval ${signed(change - half)} to ${signed(change + half)})`;
}

// Over plain http from another machine there is no clipboard, but a selection can be copied.
function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = make("textarea", text, { style: "position:fixed;opacity:0" });
  (document.querySelector("dialog[open]") || document.body).append(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  return isDone ? Promise.resolve() : Promise.reject(new Error("not copied"));
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const say = (text) => { button.textContent = text; setTimeout(() => { button.textContent = "copy"; }, 1500); };
  copy(byId(button.dataset.copy).textContent).then(() => say("copied"), () => say("select it by hand"));
});
