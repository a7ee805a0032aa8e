"use strict";
// The loss along a text that a model learned as it read it: where new words come in, what they cost
// the first time and later, and each part of the text, standing still and learning.
const STILL = "standing still", LEARNING = "learning", ALONE = "alone";
const AROUND = 4;  // parts to each side of a part whose mean a thick line has
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const STEPS_A_BIT = 100, MASKED = DIGITS.length ** 2 - 1;  // of a packed cost
const turning = byId("turning");
let part = null;  // the number of the part of the text that is shown
let unpacked = null;  // that part, token by token

const stopOf = k => page.along.start[k + 1] ?? page.along.end;
const partAt = byte => Math.max(0, page.along.start.findLastIndex(start => start <= byte));
// Where each token is one byte, bytes are characters.
const isOfBytes = () => tokenWord(page.runs[0]) !== "character"
  || page.along.parts.some(each => each.bytes);
const unitOf = () => isOfBytes() ? "byte" : "character";
const sayPlace = k =>
  `${unitOf()}s ${whole.format(page.along.start[k])} to ${whole.format(stopOf(k))}`;

function drawAlong() {
  const places = ["along", "newcomers", "turning"];
  for (const id of places) byId(id).hidden = !page.along;
  document.body.classList.toggle("learns", Boolean(page.along));
  if (!page.along) return;
  part ??= partIn(wanted.part) ?? partOfMostGain();
  delete wanted.part;
  writeReading();
  listMarks();
  drawPlaces();
  drawNewcomers();
  writePart();
}

function partIn(text = "") {
  const number = numberIn(text);
  return number !== null && page.along.parts[number - 1] ? number - 1 : null;
}

// The part that learning helped most.
function partOfMostGain() {
  const {bits_per_byte: losses} = page.along;
  const gains = losses[STILL].map((loss, k) => loss - losses[LEARNING][k]);
  return gains.indexOf(Math.max(...gains));
}

// How the picture is read.
function writeReading() {
  const {start, marks, masks, bits_per_byte: losses} = page.along, unit = unitOf();
  const size = whole.format((start[1] ?? page.along.end) - start[0]);
  const [run] = page.runs, stride = whole.format(run.evaluation.stride);
  const begins = "At a dotted line many new words come in, as where a play or a chapter begins. " +
    "A model that stands still pays their full price each time; one that learns pays less and " +
    "less.";
  byId("reading-it").textContent =
    `The lower a line, the better the text was predicted there. Thin lines have parts of about ` +
    `${size} ${unit}s, thick ones the mean of up to ${2 * AROUND + 1} parts. The shaded area is ` +
    `what learning saves. ${marks.length ? begins : ""}`;
  const isOfOne = isMany() ? `of ${run.name}` : "";
  byId("along").querySelector("h2 span").textContent = isOfOne;
  writeLines(losses, stride);
  const place = byId("more-of-it");
  place.replaceChildren();
  if (marks.length)
    element("li", "The mean of a thick line does not reach across a dotted line. There many of " +
            "the words that follow are new: the text before does not have them, and here they " +
            "soon come again and again. Nothing else says where something begins: it may also " +
            "be that new persons or a new subject come in.", place);
  if (Object.keys(losses).length < 3)
    element("li", masks ? "PPMd has no line here, because parts of this text are masked."
      : "PPMd has no line here: it has one only on text of the run's own corpus, if pyppmd is " +
        "installed.", place);
  place.parentElement.hidden = !place.children.length;
}

// What each line is, in its colour.
function writeLines(losses, stride) {
  const place = byId("lines-of-it"), word = tokenWord(page.runs[0]);
  const about = {
    [STILL]: "the model as its training left it",
    [LEARNING]: `a copy of it that takes a step after each ${stride} ${word}s, once they are ` +
      "predicted and counted"};
  const compressor = "a compressor that has read the training text too, and goes on counting as " +
    "it reads";
  place.replaceChildren();
  for (const name of Object.keys(losses)) {
    const line = element("li", "", place);
    element("b", name, line).style.color = colorOf(name);
    line.append(`, ${meanOf(name).toFixed(2)} on average: ${about[name] ?? compressor}`);
  }
}

// Orange is what is paid without learning, blue the model that learns, grey a baseline.
function colorOf(name) {
  const [blue, orange] = colors();
  if (name === STILL) return orange;
  return name === LEARNING ? blue : isDark() ? "#a6a6a6" : "#6b6b6b";
}

const by = name => [STILL, LEARNING].includes(name) ? name : `by ${name}`;

// Means of neighbouring parts between the same two marks.
function smoothed(values) {
  const borders = [0, ...page.along.marks.map(mark => partAt(mark.start)), values.length];
  return values.map((_, k) => {
    const next = borders.findIndex(border => border > k);
    const from = Math.max(borders[next - 1], k - AROUND);
    return mean(values.slice(from, Math.min(borders[next], k + AROUND + 1)));
  });
}

function meanOf(name) {
  const {start, end, bits_per_byte: losses} = page.along;
  return sumOf(losses[name].map((loss, k) => loss * (stopOf(k) - start[k]))) / (end - start[0]);
}

function drawPlaces() {
  const {start, marks, bits_per_byte: losses} = page.along;
  const isNarrow = byId("places").clientWidth < NARROW;
  const middles = start.map((from, k) => (from + stopOf(k)) / 2);
  const lines = Object.entries(losses)
    .map(([name, y]) => ({name, y, color: colorOf(name)}));
  const thick = lines.map(({name, y, color}) => ({
    kind: "line", x: middles, y: smoothed(y), color, width: 2.5,
    label: isNarrow ? name.replace("trained ", "") : `${name} ${meanOf(name).toFixed(2)}`,
  }));
  const thin = lines.map(({name, y, color}) => ({
    kind: "line", x: middles, y, color, width: 1, alpha: 0.3,
    tell: k => ({value: y[k], text: y[k].toFixed(3), name, at: sayPlace(k)}),
  }));
  const saved = {kind: "band", x: middles, low: thick[1].y, y: thick[1].y, high: thick[0].y,
                 color: colorOf(LEARNING), alpha: 0.12};
  const pins = marks.map(({start: at, words}, i) => ({
    at, name: `${i + 1}`, text: words.join(", "), title: `new here: ${words.join(", ")}`,
    pick: () => showPart(partAt(at)),
  }));
  const spans = [{from: start[part], to: stopOf(part), color: "#888"}];
  plot("places", [saved, ...thin, ...thick],
       {x: {title: `${unitOf()}s of the text`, ticks: evenTicks, range: [start[0], page.along.end]},
        y: {title: `bits per ${unitOf()}`}, together: true, zoom: true, spans, pins,
        pick: at => showPart(partAt(at))});
}

// The places where new words come in, which a narrow plot cannot name.
function listMarks() {
  const place = byId("marks"), {marks} = page.along;
  place.replaceChildren();
  if (marks.length) element("span", "New words come in:", place, {className: "dim"});
  for (const [i, {start, words}] of marks.entries()) {
    const chip = element("button", "", place, {type: "button", className: "chip"});
    element("b", `${i + 1} `, chip);
    chip.append(words.join(", "));
    chip.title = `at ${unitOf()} ${whole.format(start)}`;
    chip.onclick = () => showPart(partAt(start));
  }
}

// What new words cost the first time, the second time, and so on.
function drawNewcomers() {
  const found = page.along.new_words, place = byId("newcomers");
  place.hidden = !found.words;
  if (!found.words) return;
  const {bits: costs, words, examples} = found, first = costs[LEARNING][0];
  const times = costs[LEARNING].map((_, k) => k + 1), last = times.length;
  const inEnd = Object.entries(costs).map(([name, y]) => `${y.at(-1).toFixed(1)} ${by(name)}`);
  byId("newcomers-say").textContent =
    `${words} words come ${last} times or more that the text before did not have, such as ` +
    `${examples.join(", ")}. The first time, such a word costs the model that learns ` +
    `${first.toFixed(1)} bits; the ${last}th time it costs ${inEnd.join(", ")}.`;
  const counts = Object.keys(costs).length > 2;
  byId("newcomers-note").textContent = counts
    ? "A compressor writes whole bytes, so its points may be wrong by about a bit." : "";
  const marks = Object.entries(costs).map(([name, y]) => ({
    kind: "line", x: times, y, color: colorOf(name), width: 2.5, label: name,
    tell: k => ({value: y[k], text: y[k].toFixed(2), name, at: `time ${k + 1}`})}));
  plot("times", marks,
       {x: {title: "how many times the word has come", ticks: () => times.map(n => [n, `${n}`])},
        y: {title: "bits a word, mean", fromZero: true}, together: true});
}

// A part of the text, as the text's own parts of the page want it.

function showPart(k) {
  part = Math.max(0, Math.min(page.along.parts.length - 1, k));
  chosen = -1;
  isChosen = false;
  drawText();
  writePart();
  drawPlaces();
  writeAddress();
}

function writePart() {
  const {parts, marks, bits_per_byte: losses} = page.along;
  turning.querySelector("output").textContent =
    `part ${whole.format(part + 1)} of ${whole.format(parts.length)}, ${sayPlace(part)}`;
  turning.elements.earlier.disabled = part === 0;
  turning.elements.later.disabled = part === parts.length - 1;
  const said = Object.entries(losses).map(([name, y]) => `${name} ${y[part].toFixed(2)}`);
  const mark = marks.find(each => partAt(each.start) === part);
  const begins = mark ? ` New here, or soon: ${mark.words.join(", ")}.` : "";
  byId("part-says").textContent = `Bits per ${unitOf()} in this part: ${said.join(", ")}.${begins}`;
}

function unpackCosts(packed) {
  return Array.from({length: packed.length / 2}, (_, i) => {
    const code = DIGITS.length * DIGITS.indexOf(packed[2 * i]) + DIGITS.indexOf(packed[2 * i + 1]);
    return code === MASKED ? null : code / STEPS_A_BIT * Math.LN2;
  });
}

// The part that is shown, as if it were a passage of the run.
function partText() {
  if (unpacked?.part === part) return unpacked;
  const {tokens, bytes, still, learning} = page.along.parts[part], names = [...tokens];
  unpacked = {
    part, tokens: names, bytes: bytes ?? names.map(() => 1), temperatures: [],
    evaluations: [{step: 0, nll: unpackCosts(learning), entropy: []}],
    others: {[STILL]: unpackCosts(still)}};
  return unpacked;
}

const partState = () => page.along && part !== null ? {part: part + 1} : {};

turning.addEventListener("submit", event => event.preventDefault());
turning.elements.earlier.addEventListener("click", () => showPart(part - 1));
turning.elements.later.addEventListener("click", () => showPart(part + 1));
