"use strict";
// Data, small helpers, filters. Text from the data reaches the page by textContent, or by esc() where plotly takes markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "on") for (const [name, call] of Object.entries(value)) node.addEventListener(name, call);
    else if (key === "style") node.style.cssText = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(9)) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const esc = (text) => String(text).replace(/[&<>"']/g, (c) => "&#" + c.charCodeAt(0) + ";");
const known = (x) => x !== null && x !== undefined && !Number.isNaN(x);
const sum = (list) => list.reduce((a, b) => a + b, 0);
const mean = (list) => (list.length ? sum(list) / list.length : null);
const unique = (list) => [...new Set(list)];
function num(x, digits) {
  return known(x) ? x.toLocaleString("en-US", { maximumFractionDigits: digits ?? 2, minimumFractionDigits: 0 }) : "–";
}
const percent = (x, digits) => (known(x) ? num(100 * x, digits ?? 1) + " %" : "–");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COMPLETE = ["optimal", "feasible", "wrong bound"];
const isPlan = (row) => COMPLETE.includes(row.status) && known(row.value);
const HUES = ["--r0", "--r1", "--r2", "--r3", "--r4", "--r5"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "hexagon", "bowtie"];

// ---- filters ----
const ROWS = DATA.rows || [];
const SUITES = unique(ROWS.map((row) => row.suite));
const SOLVERS = unique(ROWS.map((row) => row.solver));
const GOALS = unique(ROWS.map((row) => row.objective + " on " + row.oracle));
const chosen = {
  suites: new Set(SUITES), solvers: new Set(SOLVERS), goal: GOALS[0],
  asked: DATA.answer ? DATA.answer.solver : null, instance: null, placed: null, length: "rate",
};
const hue = (solver) => css(HUES[SOLVERS.indexOf(solver) % HUES.length]);
const symbol = (solver) => SYMBOLS[SOLVERS.indexOf(solver) % SYMBOLS.length];
const idOf = (row) => row.suite + "/" + row.instance;
function rowsNow() {
  return ROWS.filter((r) => chosen.suites.has(r.suite) && chosen.solvers.has(r.solver) && r.objective + " on " + r.oracle === chosen.goal);
}
function unitNow() {
  const row = rowsNow().find((r) => r.unit);
  return row ? row.unit : "";
}

function boxes(title, names, set, dots) {
  return el("fieldset", {}, el("legend", {}, title), names.map((name) => {
    const box = el("input", { type: "checkbox", checked: true, value: name, "data-filter": title.toLowerCase() });
    box.addEventListener("change", () => { box.checked ? set.add(name) : set.delete(name); draw(); });
    return el("label", {}, box, dots ? el("span", { class: "dot", style: "background:var(" + HUES[names.indexOf(name) % HUES.length] + ")", "aria-hidden": "true" }) : null, name);
  }));
}
function pick(label, names, now, change, id) {
  const list = el("select", { id: id, on: { change: (event) => { change(event.target.value); } } },
    names.map((name) => el("option", { value: name, selected: name === now }, name)));
  return el("label", {}, label + " ", list);
}
function makeFilters() {
  const form = $("filters");
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(boxes("Suites", SUITES, chosen.suites, false), boxes("Solvers", SOLVERS, chosen.solvers, true));
  if (GOALS.length > 1) form.append(pick("Objective", GOALS, chosen.goal, (v) => { chosen.goal = v; draw(); }, "goal"));
}

// Figures that plotly still works on: one must not be taken away before it is done.
let pending = [];

// ---- building blocks ----
function card(id, title, about) {
  const section = el("section", { class: "card", id: id, "aria-labelledby": id + "-title" }, el("h2", { id: id + "-title" }, title), about ? el("p", { class: "faint" }, about) : null);
  return section;
}
function table(titles, rows, options) {
  const head = el("tr", {}, titles.map((title) => el("th", { scope: "col" }, title)));
  const body = rows.map((cells) => el("tr", { class: cells.kind || null }, cells.map((cell) =>
    cell instanceof Node && cell.tagName === "TD" ? cell : el("td", {}, cell instanceof Node ? cell : String(cell)))));
  return el("div", { class: "wrap", tabindex: "0", role: "region", "aria-label": (options || {}).label || "table" },
    el("table", { class: (options || {}).words ? "words" : null }, el("thead", {}, head), el("tbody", {}, body)));
}
function tile(big, what, kind) {
  return el("div", { class: "tile" }, el("div", { class: "big " + (kind || "") }, big), el("div", { class: "what" }, what));
}
function figure(parent, id, label, traces, layout) {
  const box = el("div", { class: "figure", id: id, role: "img", "aria-label": label, style: "min-height:" + ((layout || {}).height || 360) + "px" });
  parent.append(box);
  const axis = { gridcolor: css("--grid"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  const whole = Object.assign({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text"), size: 13 }, height: 360,
    margin: { l: 50, r: 15, t: 15, b: 45 }, legend: { orientation: "h", y: -0.25 }, hoverlabel: { align: "left" },
  }, layout);
  for (const name of ["xaxis", "yaxis"]) whole[name] = Object.assign({}, axis, (layout || {})[name]);
  pending.push(Plotly.newPlot(box, traces, whole, { responsive: true, displayModeBar: false }));
}
