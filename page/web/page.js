"use strict";
// The page: what all of its parts share, the data as it comes, and the state in the address.
// Okabe and Ito's colours, and three more; lighter on a dark ground.
const ON_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f",
                  "#8a5cc2", "#9a7d0a", "#c0392b"];
const ON_DARK = ["#4aa8e0", "#f0803c", "#2cc295", "#e39cc6", "#f0b429", "#a3d8f7", "#a6a6a6",
                 "#b28ae6", "#c9a92f", "#ea6a5e"];
const SILENCE = 30;  // seconds: a sweep writes every 5
const DASHES = ["solid", "dashed", "dotted", "dotdash"];
const form = document.getElementById("options"), dark = matchMedia("(prefers-color-scheme: dark)");
let page = null;  // the data
let hidden = new Set();  // numbers of the runs that somebody has hidden
let filter = "";  // words that a run must have to be shown

const byId = id => document.getElementById(id);
// A text of names and values, whose lines end after a comma where there is no room.
function breakable(text, parent) {
  text.split(/(?<=,)/).forEach((part, i) => parent.append(...i ? [element("wbr")] : [], part));
  return parent;
}

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const short = value => value >= 1e6 ? value.toExponential(2).replace("e+", "e") : value >= 100 ? whole.format(value)
  : String(Number(value.toPrecision(4)));
const bits = nats => nats / Math.LN2;
const percent = share => share >= 0.0995 ? `${Math.round(100 * share)}%` : `${Number((100 * share).toPrecision(2))}%`;
const isMany = () => page.runs.length > 1;
const shownRuns = () => page.runs.map((run, i) => [run, i]).filter(([run, i]) => isShown(run, i));
const isShown = (run, i) => !hidden.has(i) && isFound(run);

// Each run's colour and dashes: the runs of a group share a colour if there are several groups.
const pen = i => pens[i];
const colors = () => dark.matches ? ON_DARK : ON_LIGHT;
const groupPen = group => ({color: colors()[group % colors().length],
                            dash: DASHES[Math.floor(group / colors().length) % DASHES.length]});
const rowPen = i => showsMeans() ? groupPen(page.runs[i].group) : pen(i);
const showsMeans = () => hasSeeds() && form.elements.mean.checked;
let pens = [];
function choosePens() {
  const times = new Map(), byGroup = page.groups.length > 1;
  pens = page.runs.map((run, i) => {
    const color = colors()[(byGroup ? run.group : i) % colors().length], time = times.get(color) ?? 0;
    times.set(color, time + 1);
    return {color, dash: DASHES[time % DASHES.length]};
  });
}

// Whether any group has runs of several seeds.
const hasSeeds = () => new Set(page.runs.map(run => run.group)).size < page.runs.length;

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
  const place = byId("words"), runs = shownRuns().filter(([run]) => run.verdict || run.samples?.length);
  place.hidden = !page.curves || !runs.length;
  place.replaceChildren();
  if (isMany() && runs.length) element("h2", "Verdicts and samples", place);
  for (const [run] of runs) {
    let own = place;
    if (isMany()) {
      own = element("details", "", place, {open: runs.length <= FEW});
      element("summary", run.name, own);
    }
    if (run.verdict) {
      if (!isMany()) element("h2", "What came of it", own);
      element("pre", run.verdict, own);
    }
    if (!run.samples?.length) continue;
    element(isMany() ? "h3" : "h2", "What the model writes, as it learns", own, {id: "samples"});
    const samples = run.samples.map(sample => [whole.format(sample.step), sample.text]);
    table([["step", ""], ...samples], own, [0]);
  }
}

function draw() {
  if (!page) return;
  const state = options(), kept = {...state};
  if (hidden.size) kept.hidden = [...hidden].join(" ");
  if (filter) kept.filter = filter;
  if (reference !== null) kept.reference = reference;
  location.replace("#" + new URLSearchParams(kept));
  if (page.curves) drawCurves(state);
  drawComparison();
}

function drawAll() {
  draw();
  drawText();
  drawEvaluation();
  writeSummary();
  writeWords();
  drawTyping();
  const hasSamples = page.runs.some(run => run.samples?.length);
  const parts = {curves: "loss curves", text: "what each token costs", evaluation: "calibration",
                 words: hasSamples ? "verdict and samples" : "verdict", typing: "type a text"};
  byId("curves").hidden = !page.curves;
  const nav = document.querySelector("nav");
  nav.replaceChildren();
  const shown = Object.entries(parts).filter(([id]) => !byId(id).hidden);
  nav.hidden = shown.length < 2;
  for (const [id, title] of shown)
    element("button", title, nav, {onclick: () => byId(id).scrollIntoView()});
}

function showStatus() {
  const seconds = Math.round(Date.now() / 1000 - page.written), followed = training().length;
  if (page.live && page.sweep && seconds > SILENCE) {
    silence();
    byId("status").textContent = `${ended().length} of ${page.runs.length} runs have ended; ` +
      `nothing was written for ${duration(seconds)}: the sweep seems to have been stopped`;
    return;
  }
  const age = `written ${seconds} s ago, this page follows it`;
  byId("status").textContent = page.live ? `${page.status}; ${age}`
    : isMany() && followed ? `${followed} of ${page.runs.length} runs train; this page follows them`
    : page.status;
}

const duration = seconds => seconds < 120 ? `${seconds} s` : seconds < 7200
  ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} hours`;

// A sweep that was killed could not write that its runs do not train any more.
function silence() {
  if (page.isSilent) return;
  page.isSilent = true;
  for (const run of page.runs.filter(({status}) => status === "training")) run.status = "interrupted";
  drawPage();
}

// Called by the data, which is a script: a page that is opened as a file may not fetch anything
// else. On a page of many runs, it is also called by the report.js of those that train.
function receive(data) {
  const number = document.currentScript?.dataset.run;
  if (number !== undefined) return follow(page.runs[Number(number)], data);
  if (page && page.written === data.written) return;
  page = data;
  document.title = data.title;
  document.querySelector("h1").replaceChildren();
  breakable(data.title, document.querySelector("h1"));
  document.body.classList.toggle("many", isMany());
  document.body.classList.toggle("sweep", Boolean(data.sweep));
  if (isMany()) byId("left").append(byId("small"));  // there is room under the table
  drawPage();
  showStatus();
}

function drawPage() {
  choosePens();
  drawOverview();
  drawSweep();
  drawRuns();
  drawAll();
}

// What a run's own page shows of it, from now on also here.
function follow(run, data) {
  if (run.written === data.written) return;
  const {name, short, group, target} = run;
  Object.assign(run, data.runs[0], {name, short, group, target, written: data.written});
  drawOverview();
  drawRuns();
  drawAll();
}

// A run's folder in an address.
const pathOf = run => run.folder.split("/").map(encodeURIComponent).join("/");
const training = () => page.runs.filter(run => run.hasData && run.status === "training");

// The data of a page is beside it: report.js, or sweep.js. That of the runs is in their folders.
function poll() {
  if (page) showStatus();
  const sources = [], own = location.pathname.split("/").pop().replace(/html$/, "js");
  if (!page || page.live) sources.push([own]);
  else for (const run of training()) sources.push([`${pathOf(run)}/report.js`, page.runs.indexOf(run)]);
  if (!sources.length) return;
  let waiting = sources.length;
  for (const [source, run] of sources) {
    const script = document.createElement("script");
    script.src = `${source}?${Date.now()}`;
    if (run !== undefined) script.dataset.run = run;
    script.onload = script.onerror = () => {
      script.remove();
      waiting -= 1;
      if (!waiting) setTimeout(poll, 2000);
    };
    document.body.append(script);
  }
}

function start() {
  form.addEventListener("input", draw);
  for (const name of ["mean", "y"]) form.elements[name].addEventListener("input", drawRuns);
  dark.addEventListener("change", () => { if (page) drawPage(); });
  addEventListener("beforeprint", () => plots.forEach((_, place) => show(place)));
  picker.addEventListener("input", pick);
  picker.addEventListener("submit", event => event.preventDefault());
  if (!page || training().length) poll();
}

// The state in the address; before the data comes.
function readAddress() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = form.elements[name];
    if (field) field.type === "checkbox" ? field.checked = value === "true" : field.value = value;
    if (name === "hidden") hidden = new Set(value.split(" ").filter(Boolean).map(Number));
    if (name === "filter") filter = picker.elements.filter.value = value;
    if (name === "reference") reference = Number(value);
  }
}
