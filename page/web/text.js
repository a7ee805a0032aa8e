"use strict";
// A text, each token coloured by what it cost, or by the difference from what another model paid.
const COSTLIEST = 10;  // bits, in the strongest colour; of a difference, half of them
// Vermillion and blue, which colour-blind people can tell apart.
const WORSE = "213, 94, 0", BETTER = "0, 114, 178";
const BEGINNING = 28;  // characters of a passage that name it
const reading = byId("reading"), heat = byId("tokens");
let readingRun = null;  // whose text is shown
let passage = 0;  // which of its texts
let others = {};  // what baselines and other runs paid for the same tokens, in nats, by name
let chosen = -1;  // the number of a token
let isChosen = false;  // by somebody, and not as the costliest

const hasText = run => page.along ? run === page.runs[0] : run.texts?.length > 0;
const runsWithText = () => shownRuns().filter(([run]) => hasText(run));
const textOf = run => page.along ? partText() : run.texts[passage] ?? run.texts[0];
const readText = () => textOf(readingRun);
const stepsOf = text => text.evaluations.map(each => each.step);
// A passage may have fewer evaluations than the slider has steps.
const evaluationAt = (text, step) => text.evaluations[nearest(stepsOf(text), step)];
const evaluationNow = () => evaluationAt(readText(), momentWanted(readingRun));
const endsLine = text => /⏎$|<\|eos\|>$/.test(text);
const quote = text => `“${text.replace(/^ | $/g, "␣")}”`;

function paint(span, cost, strongest = COSTLIEST) {
  const share = Math.min(1, Math.abs(cost) / strongest);
  span.style.background = `rgba(${cost < 0 ? BETTER : WORSE}, ${(0.85 * share).toFixed(3)})`;
}

// A run's name, which may be that of a baseline.
function labelOf(run) {
  if (page.along) return LEARNING;
  return run.name in readText().others ? `${run.name} (run)` : run.name;
}

function otherCosts() {
  const text = readText(), found = {...text.others}, tokens = text.tokens.join("\0");
  for (const [run] of runsWithText()) {
    const other = textOf(run);
    if (run === readingRun || other.tokens.join("\0") !== tokens) continue;
    found[labelOf(run)] = evaluationAt(other, run.best?.step ?? 0).nll;
  }
  const measured = tablesOf(text);
  if (measured) found[NO_TABLES] = measured.by_longest.map(row => row ? row[0] : null);
  return found;
}

// Fill a list of choices, and keep the choice, or take the one that the address says, once.
function offer(select, names) {
  const before = wanted[select.name] ?? select.value;
  delete wanted[select.name];
  select.replaceChildren();
  for (const [value, text] of names) element("option", text, select, {value});
  if (names.some(([value]) => String(value) === before)) select.value = before;
  select.parentElement.hidden = names.length < 2;
}

function nameOfPassage(text, i, all) {
  const words = text.tokens.join("").replaceAll(/⏎|<\|eos\|>/g, " ").trim();
  return [i, `${i + 1} of ${all.length}: ${startOf(words, BEGINNING)}`];
}

function drawText() {
  const runs = runsWithText(), {run, passage: which, versus} = reading.elements;
  for (const id of ["text", "spread", "details"]) byId(id).hidden = !runs.length;
  if (!runs.length) {
    readingRun = null;
    drawTables();
    return;
  }
  offer(run, runs.map(([each, i]) => [i, each.name]));
  readingRun = page.runs[Number(run.value)];
  offer(which, page.along ? [] : readingRun.texts.map(nameOfPassage));
  passage = Number(which.value);
  others = otherCosts();
  const isFirst = !versus.options.length, says = wanted.versus !== undefined;
  offer(versus, waysToColour());
  const token = numberIn(wanted.token ?? "");
  if (token !== null) {
    chosen = token;
    isChosen = true;
  }
  delete wanted.token;
  if (isFirst && !says) versus.value = usualVersus();
  if (!(chosen in readText().tokens)) chosen = costliest();
  writeTokens();
  drawTemperatures();
  colourText();
  drawTables();
}

function waysToColour() {
  if (page.along) return [[STILL, "what learning changes"], ["", "bits, learning"],
                          [ALONE, "bits, standing still"]];
  const differences = Object.keys(others).map(name =>
    [name, name === NO_TABLES ? "what tables save" : `difference from ${name}`]);
  return [["", "surprisal"], ...differences];
}

// The difference that a page of a text of one's own begins with.
function usualVersus() {
  if (page.along) return STILL;
  return page.versus ? labelOf(page.runs.at(-1)) : "";
}

function costliest() {
  const {nll} = evaluationNow();
  return Math.max(0, nll.indexOf(Math.max(...nll)));
}

function writeTokens() {
  heat.replaceChildren();
  for (const [i, text] of readText().tokens.entries()) {
    const span = element("span", text, heat, {role: "option", id: `token${i}`});
    span.dataset.i = i;
    if (endsLine(text)) heat.append("\n");
  }
}

// What changes with the step and with what the text is compared to.
function colourText() {
  const now = evaluationNow(), name = reading.elements.versus.value, other = others[name];
  const strongest = other ? COSTLIEST / 2 : COSTLIEST;
  const costs = name === ALONE ? others[STILL] : now.nll;
  for (const [i, nll] of costs.entries()) {
    const span = byId(`token${i}`), isKnown = nll !== null && (!other || other[i] !== null);
    span.classList.toggle("masked", !isKnown);
    if (!isKnown) paint(span, 0);
    else paint(span, bits(other ? nll - other[i] : nll), strongest);
  }
  sayWhen(now.step);
  drawLegend(byId("legend"), other ? name : "");
  choose(chosen);
  drawSpread();
  drawLines();
}

// Of which step all that is shown of the passage is: each part says so.
function sayWhen(step) {
  const at = `at step ${whole.format(step)}`, wanted = momentShown();
  for (const place of document.querySelectorAll(".moment"))
    place.textContent = page.curves ? at : "";
  byId("measured").textContent = step === wanted || page.along ? ""
    : `This passage is shown ${at}: it was not measured at ${whole.format(wanted)}.`;
}

function drawLegend(place, name) {
  const strongest = name ? COSTLIEST / 2 : COSTLIEST;
  place.replaceChildren();
  const saves = page.along ? " (blue: learning saves)" : "";
  const title = name ? `bits more than ${name}${saves}: ` : "bits: ";
  element("small", title, place);
  for (const cost of name ? [-5, -2, -1, 0, 1, 2, 5] : [0, 1, 2, 3, 5, 7, 10]) {
    const isOpen = Math.abs(cost) === strongest;
    paint(element("span", `${cost}${isOpen ? "…" : ""}`, place), cost, strongest);
  }
}

function choose(i) {
  const before = byId(`token${chosen}`), span = byId(`token${i}`);
  before?.classList.remove("chosen");
  before?.removeAttribute("aria-selected");
  before?.removeAttribute("aria-label");
  chosen = i;
  span.classList.add("chosen");
  span.ariaSelected = "true";
  span.ariaLabel = sayToken(i);
  heat.setAttribute("aria-activedescendant", span.id);
  describeToken(i);
  drawDetails();
}

// Describe the token under the pointer, and box it.
function pointAt(i) {
  if (i === undefined) return;
  heat.querySelector(".pointed")?.classList.remove("pointed");
  if (i !== chosen) byId(`token${i}`).classList.add("pointed");
  describeToken(i);
}

function pickToken(i) {
  heat.querySelector(".pointed")?.classList.remove("pointed");
  isChosen = true;
  choose(i);
  writeAddress();
}

// What somebody has chosen, for the address.
function textState() {
  const found = {};
  if (!readingRun) return found;
  if (isChosen) found.token = chosen;
  for (const name of ["run", "passage", "versus"]) {
    const select = reading.elements[name], usual = name === "versus" ? usualVersus() : "";
    const isUsual = select.value === usual || (!usual && select.selectedIndex <= 0);
    if (!isUsual) found[name] = select.value;
  }
  return found;
}

// The token of an event in the text; undefined between tokens.
function tokenOf(event) {
  const {i} = event.target.dataset;
  return i === undefined ? undefined : Number(i);
}

// The token below token i, or above it with a direction of -1; i itself at the end of the text.
function tokenBelow(i, direction) {
  const start = byId(`token${i}`), spans = [...heat.children];
  const far = span => direction * (span.offsetTop - start.offsetTop);
  const further = spans.filter(span => far(span) > start.offsetHeight / 2);
  if (!further.length) return i;
  const next = Math.min(...further.map(far));
  const line = further.filter(span => far(span) < next + start.offsetHeight / 2);
  const lefts = line.map(span => span.offsetLeft);
  return Number(line[nearest(lefts, start.offsetLeft)].dataset.i);
}

reading.elements.run.addEventListener("input", drawAll);
reading.elements.passage.addEventListener("input", () => {
  chosen = -1;
  isChosen = false;
  drawAll();
});
reading.elements.versus.addEventListener("input", () => {
  colourText();
  writeAddress();
});
heat.addEventListener("mouseover", event => pointAt(tokenOf(event)));
heat.addEventListener("mouseleave", () => pointAt(chosen));
heat.addEventListener("click", event => {
  const i = tokenOf(event);
  if (i !== undefined) pickToken(i);
});
heat.addEventListener("keydown", event => {
  const last = readText().tokens.length - 1;
  const moves = {ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: last,
                 ArrowDown: tokenBelow(chosen, 1), ArrowUp: tokenBelow(chosen, -1)};
  const to = moves[event.key];
  if (to === undefined || to < 0 || to > last) return;
  event.preventDefault();
  pickToken(to);
  byId(`token${to}`).scrollIntoView({block: "nearest"});
});
