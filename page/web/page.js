"use strict";
// The page: what all of its parts share, the data as it comes, and the state in the address.
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];  // Okabe and Ito's
const DASHES = ["solid", "dashed", "dotted"];
const form = document.getElementById("options"), dark = matchMedia("(prefers-color-scheme: dark)");
let page = null;  // the data
let ticked = null;  // numbers of the runs that are shown

const byId = id => document.getElementById(id);
const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const short = value => value >= 1e6 ? value.toExponential(2).replace("e+", "e") : value >= 100 ? whole.format(value)
  : String(Number(value.toPrecision(4)));
const bits = nats => nats / Math.LN2;
const percent = share => share >= 0.0995 ? `${Math.round(100 * share)}%` : `${Number((100 * share).toPrecision(2))}%`;
const pen = i => ({color: COLORS[i % COLORS.length], dash: DASHES[Math.floor(i / COLORS.length) % DASHES.length]});
const shownRuns = () => page.runs.map((run, i) => [run, i]).filter(([, i]) => ticked.has(i));

function options() {
  const found = {};
  for (const field of form.querySelectorAll("select, input")) found[field.name] = field.type === "checkbox" ? field.checked : field.value;
  return found;
}

function element(tag, text, parent, look = {}) {
  const made = Object.assign(document.createElement(tag), look);
  made.textContent = text;
  parent?.append(made);
  return made;
}

// Rows of texts; the first has the titles. Columns in `numbers` stand to the right.
function table(rows, parent, numbers = []) {
  const made = element("table", "", parent);
  for (const [i, cells] of rows.entries()) {
    const row = element("tr", "", made);
    cells.forEach((cell, column) => element(i ? "td" : "th", cell, row, {className: numbers.includes(column) ? "number" : "run"}));
  }
  return made;
}

// What came of a single run: its loss in each unit, and when it passed which baseline.
function writeSummary() {
  const place = byId("summary"), [run] = page.runs, nats = bestLoss(run);
  place.replaceChildren();
  if (page.runs.length > 1 || !isFinite(nats)) return;
  const what = !page.curves ? `Loss on ${whole.format(run.targets)} targets` : run.best_nll !== null ? `Loss of the best model on all ${run.val_kind} targets`
    : `Lowest loss so far, on a part of the ${run.val_kind} targets`;
  element("p", `${what}: ${nats.toFixed(4)} nats per token = ${(bits(nats) / run.bytes_per_target).toFixed(3)} bits per byte = perplexity ${short(Math.exp(nats))}.`, place);
  if (!page.curves) return;
  const uniform = run.baselines.find(({name}) => name.startsWith("uniform")), V = whole.format(uniform.perplexity);
  element("p", `The loss is the mean of −log q, where q is the probability that the model gave the token that came. Before training it is a guess among |V| = ${V} tokens: ` +
          `log|V| = ln ${V} = ${uniform.nats.toFixed(4)} nats = ${bits(uniform.nats).toFixed(3)} bits.`, place);
  const passed = run.passed.map(([name, step]) => `${name} (step ${whole.format(step)})`);
  element("p", [passed.length ? `Beats ${passed.join(", ")}; the steps are those of evaluations on a part of the text.` : "", run.ahead.length ? `Does not beat ${run.ahead.join(", ")}.` : ""].join(" "), place);
}

function writeWords() {
  const place = byId("words"), runs = shownRuns(), several = page.runs.length > 1;
  place.hidden = !page.curves;
  place.replaceChildren();
  const differences = Object.entries(page.differences).map(([name, values]) => [name, ...runs.map(([, i]) => values[i])])
    .filter(([, ...values]) => new Set(values).size > 1);
  if (differences.length && runs.length <= 5) {
    element("h2", "Options that differ", place);
    table([["", ...runs.map(([run]) => run.name)], ...differences], element("div", "", place, {className: "wide"}));
  }
  for (const [run] of runs) {
    if (run.verdict) element("h2", several ? run.name : "What came of it", place), element("pre", run.verdict, place);
    if (!run.samples.length) continue;
    element("h2", "What the model writes, as it learns" + (several ? `: ${run.name}` : ""), place, {id: "samples"});
    table([["step", ""], ...run.samples.map(sample => [whole.format(sample.step), sample.text])], place, [0]);
  }
}

function draw() {
  if (!page) return;
  const state = options(), some = page.runs.length !== ticked.size;
  location.replace("#" + new URLSearchParams(some ? {...state, runs: [...ticked].join(" ")} : state));
  if (page.curves) drawCurves(state);
}

function drawAll() {
  draw();
  drawText();
  drawEvaluation();
  writeSummary();
  writeWords();
  const parts = {curves: "loss curves", text: "what each token costs", evaluation: "calibration", words: page.runs.some(run => run.samples.length) ? "verdict and samples" : "verdict"};
  byId("curves").hidden = !page.curves;
  const nav = document.querySelector("nav");
  nav.replaceChildren();
  for (const [id, title] of Object.entries(parts)) {
    if (!byId(id).hidden) element("button", title, nav, {onclick: () => byId(id).scrollIntoView()});
  }
}

function showStatus() {
  const seconds = Math.round(Date.now() / 1000 - page.written);
  byId("status").textContent = page.status + (page.live ? `; written ${seconds} s ago, this page follows it` : "");
}

// Called by the data, which is a script: a page that is opened as a file may not fetch anything else.
function receive(data) {
  if (page && page.written === data.written) return;
  page = data;
  const known = ticked && [...ticked].filter(i => i in page.runs);
  ticked = known && known.length === ticked.size ? ticked : firstTicks();
  document.title = document.querySelector("h1").textContent = data.title;
  drawRuns();
  drawAll();
  showStatus();
}

function poll() {
  if (page) showStatus();
  if (page && !page.live) return;
  const script = document.createElement("script");
  script.src = "report.js?" + Date.now();
  script.onload = script.onerror = () => { script.remove(); setTimeout(poll, 2000); };
  document.body.append(script);
}

function start() {
  form.addEventListener("input", draw);
  dark.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => plots.forEach((_, place) => show(place)));
  if (!page) poll();
}

for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  const field = form.elements[name];
  if (field) field.type === "checkbox" ? field.checked = value === "true" : field.value = value;
  if (name === "runs") ticked = new Set(value.split(" ").filter(Boolean).map(Number));
}
