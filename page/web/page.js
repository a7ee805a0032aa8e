"use strict";
// The page: what all of its parts share, the data as it comes, and the state in the address.

// Okabe and Ito's colours, and three more; lighter on a dark ground.
const ON_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f",
                  "#8a5cc2", "#9a7d0a", "#c0392b"];
const ON_DARK = ["#4aa8e0", "#f0803c", "#2cc295", "#e39cc6", "#f0b429", "#a3d8f7", "#a6a6a6",
                 "#b28ae6", "#c9a92f", "#ea6a5e"];
const DASHES = ["solid", "dashed", "dotted", "dotdash"];
const POLL = 2000;  // milliseconds between two readings of the data while a run trains
const form = document.getElementById("options");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let page = null;  // the data
let theme = "";  // light or dark, if somebody has chosen
let hidden = new Set();  // numbers of the runs that somebody has hidden
let filter = "";  // words that a run must have to be shown

const byId = id => document.getElementById(id);

function element(tag, text, parent, look = {}) {
  const made = Object.assign(document.createElement(tag), look);
  made.textContent = text;
  parent?.append(made);
  return made;
}

// A text of names and values, whose lines end after a comma where there is no room.
function breakable(text, parent) {
  for (const [i, part] of text.split(/(?<=,)/).entries()) {
    if (i) element("wbr", "", parent);
    parent.append(part);
  }
  return parent;
}

// The start and the end of a text, and "…" where it is cut.

function startOf(text, most) {
  const letters = Array.from(text);
  return letters.length > most ? `${letters.slice(0, most).join("")}…` : text;
}

function endOf(text, most) {
  const letters = Array.from(text);
  return letters.length > most ? `…${letters.slice(-most).join("")}` : text;
}

// Rows of texts; the first has the titles. Columns in `numbers` stand to the right.
function table(rows, parent, numbers = []) {
  const made = element("table", "", parent);
  for (const [i, cells] of rows.entries()) {
    const row = element("tr", "", made), tag = i ? "td" : "th";
    for (const [column, cell] of cells.entries()) {
      const className = numbers.includes(column) ? "number" : "run";
      element(tag, cell, row, {className});
    }
  }
  return made;
}

// Also from a file, where a browser may refuse navigator.clipboard.
function copy(text, button) {
  const field = element("textarea", "", button.parentElement, {value: text});
  const before = button.textContent;
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  button.textContent = isDone ? "copied" : "cannot copy";
  setTimeout(() => { button.textContent = before; }, 2000);
}

// Numbers as texts.

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const bits = nats => nats / Math.LN2;

function short(value) {
  if (value >= 1e6) return value.toExponential(2).replace("e+", "e");
  return value >= 100 ? whole.format(value) : String(Number(value.toPrecision(4)));
}

function percent(share) {
  if (share >= 0.0995) return `${Math.round(100 * share)}%`;
  return `${Number((100 * share).toPrecision(2))}%`;
}

function duration(seconds) {
  const rounded = Math.round(seconds);
  if (rounded < 60) return `${rounded} s`;
  if (rounded >= 7200) return `${Math.round(seconds / 3600)} hours`;
  const rest = rounded % 60;
  return `${Math.floor(rounded / 60)} min${rest && rounded < 600 ? ` ${rest} s` : ""}`;
}

// Runs, and how each is drawn.

const isMany = () => page.runs.length > 1;
const isShown = (run, i) => !isMany() || (!hidden.has(i) && isFound(run));
const shownRuns = () => page.runs.map((run, i) => [run, i]).filter(([run, i]) => isShown(run, i));
// A run's tokens are called characters if they are.
const tokenWord = run => run.tokenizer === "char" ? "character" : "token";
// Whether any group has runs of several seeds.
const hasSeeds = () => new Set(page.runs.map(run => run.group)).size < page.runs.length;
const showsMeans = () => hasSeeds() && form.elements.mean.checked;

const isDark = () => theme ? theme === "dark" : prefersDark.matches;
const colors = () => isDark() ? ON_DARK : ON_LIGHT;
const groupPen = group => ({color: colors()[group % colors().length],
                            dash: DASHES[Math.floor(group / colors().length) % DASHES.length]});
// Each run's colour and dashes: the runs of a group share a colour if there are several groups.
const pen = i => pens[i];
const rowPen = i => showsMeans() ? groupPen(page.runs[i].group) : pen(i);
let pens = [];

function choosePens() {
  const times = new Map(), byGroup = page.groups.length > 1;
  pens = page.runs.map((run, i) => {
    const color = colors()[(byGroup ? run.group : i) % colors().length];
    const time = times.get(color) ?? 0;
    times.set(color, time + 1);
    return {color, dash: DASHES[time % DASHES.length]};
  });
}

// What somebody has chosen, and the address that says so.

function options() {
  const found = {};
  for (const field of form.elements) {
    if (!field.name || (field.type === "radio" && !field.checked)) continue;
    found[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  return found;
}

// A value that a field cannot have leaves it as it is.
function setField(field, value) {
  if (field.type === "checkbox") field.checked = value === "true";
  else if (field.type === "range") field.value = numberIn(value) ?? field.value;
  else if (!field.options || [...field.options].some(each => each.value === value))
    field.value = value;
}

// The number that a text of the address has; null for all else.
function numberIn(text) {
  const number = Number(text);
  return text.trim() && Number.isFinite(number) ? number : null;
}

// Before the data comes; what is chosen among its parts waits in `wanted`.
const wanted = {};
let address = "";  // as the page wrote it

function readAddress() {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const field = form.elements.namedItem(name);
    if (field) setField(field, value);
    else wanted[name] = value;
    if (name === "step") moment = numberIn(value);
    if (name === "hidden") hidden = new Set(value.split(" ").map(numberIn));
    if (name === "filter") filter = picker.elements.filter.value = value;
    if (name === "reference") reference = numberIn(value);
    if (name === "theme" && ["light", "dark"].includes(value)) theme = value;
  }
  showTheme();
}

function writeAddress() {
  const kept = {...options(), ...momentState(), ...partState(), ...textState(), ...typing?.state()};
  if (hidden.size) kept.hidden = [...hidden].join(" ");
  if (filter) kept.filter = filter;
  if (reference !== null) kept.reference = reference;
  if (theme) kept.theme = theme;
  address = `#${new URLSearchParams(kept)}`;
  location.replace(address);
}

function showTheme() {
  document.documentElement.style.colorScheme = theme || "light dark";
  document.documentElement.classList.toggle("dark", isDark());
  byId("theme").textContent = isDark() ? "light" : "dark";
}

// Drawing.

function draw() {
  if (!page) return;
  writeAddress();
  if (page.curves) drawCurves(options());
  drawResult();
  showMoment();
  drawComparison();
}

function drawAll() {
  drawAlong();
  drawText();
  drawTimeline();
  draw();
  drawEvaluation();
  drawWords();
  drawTyping();
  byId("curves").hidden = !page.curves;
  byId("training").hidden = !page.curves || isMany();
  drawNavigation();
}

// The parts of a long page; that of one run has its parts in sight.
function drawNavigation() {
  const nav = document.querySelector("nav");
  nav.replaceChildren();
  const hasSamples = page.runs.some(run => run.samples?.length);
  const parts = {curves: "loss curves", text: "what each token costs", evaluation: "calibration",
                 words: hasSamples ? "verdicts and samples" : "verdicts"};
  for (const [id, title] of Object.entries(parts)) {
    const place = byId(id);
    if (place.hidden) continue;
    element("button", title, nav, {type: "button", onclick: () => place.scrollIntoView()});
  }
  nav.hidden = !isMany() || nav.children.length < 2;
}

function drawPage() {
  if (!page) return;
  choosePens();
  drawOverview();
  drawSweep();
  drawRuns();
  drawAll();
}

// What each run's training said at its end; of many runs, also what the models wrote.
function drawWords() {
  const place = byId("words");
  const hasWords = run => run.verdict || (isMany() && run.samples?.length);
  const runs = shownRuns().filter(([run]) => hasWords(run));
  place.hidden = !page.curves || !runs.length;
  place.replaceChildren();
  if (isMany() && runs.length) element("h2", "Verdicts and samples", place);
  for (const [run] of runs) {
    let own = place;
    if (isMany()) {
      own = element("details", "", place, {open: runs.length <= FEW});
      element("summary", run.name, own);
    }
    drawWordsOf(run, own);
  }
}

function drawWordsOf(run, place) {
  if (run.verdict) {
    if (!isMany()) element("h2", "The result, in full", place);
    element("pre", run.verdict, place);
  }
  if (!run.samples?.length || !isMany()) return;
  element("h3", "What the model writes, as it learns", place);
  listSamples(run.samples, place);
}

function listSamples(samples, place) {
  const rows = samples.map(({step, text}) => [whole.format(step), text]);
  table([["step", ""], ...rows], place, [0]);
}

// Data.

// Called by the data, which is a script: a page that is opened as a file may not fetch anything
// else. On a page of many runs, it is also called by the report.js of those that train.
function receive(data) {
  const number = document.currentScript?.dataset.run;
  if (number !== undefined) return follow(page.runs[Number(number)], data);
  if (page && page.written === data.written) return;
  page = data;
  document.title = data.title;
  const title = document.querySelector("h1");
  title.replaceChildren();
  breakable(data.title, title);
  const {classList} = document.body;
  classList.toggle("many", isMany());
  classList.toggle("sweep", Boolean(data.sweep));
  classList.toggle("one", !isMany());
  if (isMany()) byId("left").append(byId("small"));  // there is room under the table
  else byId("headline").append(byId("units"));
  byId("caption").open ||= isMany();
  drawPage();
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
function findSources() {
  const own = location.pathname.split("/").pop().replace(/html$/, "js");
  if (!page || page.live) return [{source: own}];
  return training().map(run =>
    ({source: `${pathOf(run)}/report.js`, number: page.runs.indexOf(run)}));
}

function poll() {
  if (page) showStatus();
  const sources = findSources();
  let waiting = sources.length;
  for (const {source, number} of sources) {
    const script = document.createElement("script");
    script.src = `${source}?${Date.now()}`;
    if (number !== undefined) script.dataset.run = number;
    const end = () => {
      script.remove();
      waiting -= 1;
      if (!waiting) setTimeout(poll, POLL);
    };
    script.addEventListener("load", () => {
      if (!page) byId("status").textContent = `${source} is damaged: it cannot be read`;
      end();
    });
    script.addEventListener("error", () => {
      if (!page) sayMissing(source);
      end();
    });
    document.body.append(script);
  }
}

function setTheme(wantsDark) {
  theme = wantsDark ? "dark" : "light";
  showTheme();
  drawPage();
}

function start() {
  form.addEventListener("input", draw);
  byId("units").addEventListener("input", draw);
  byId("units").addEventListener("input", drawRuns);
  form.elements.mean.addEventListener("input", drawRuns);
  prefersDark.addEventListener("change", () => {
    showTheme();
    drawPage();
  });
  // an address that somebody pasted, or went back to
  addEventListener("hashchange", () => { if (location.hash !== address) location.reload(); });
  byId("theme").addEventListener("click", () => setTheme(!isDark()));
  byId("link").addEventListener("click", event => copy(location.href, event.target));
  byId("print").addEventListener("click", printPage);
  addEventListener("beforeprint", preparePrint);
  addEventListener("afterprint", endPrint);
  picker.addEventListener("input", pick);
  picker.addEventListener("submit", event => event.preventDefault());
  if (!page || training().length || page.live) poll();
}
