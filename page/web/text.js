"use strict";
// A text, each token coloured by its surprisal; and what the model said before the token that is chosen.
const DEAREST = 10;  // bits, in the strongest colour
const WORSE = "213, 94, 0", BETTER = "0, 114, 178";  // vermillion and blue, which colour-blind people can tell apart
const reading = byId("reading"), heat = byId("tokens"), slider = byId("temperature");
let isChosen = false;  // by somebody, and not as the dearest
let chosen = -1, readingRun = null, others = {};  // the number of a token; the run that the text is of; its costs elsewhere

const runsWithText = () => shownRuns().filter(([run]) => run.texts?.length);
const readText = () => readingRun.texts[0];
const stepsOf = text => text.evaluations.map(each => each.step);
const evaluationNow = () =>
  readText().evaluations[nearest(stepsOf(readText()), momentWanted(readingRun))];
const endsLine = text => /⏎$|<\|eos\|>$/.test(text);
const quote = text => `“${text.replace(/^ | $/g, "␣")}”`;

function paint(span, cost, strongest = DEAREST) {
  const share = Math.min(1, Math.abs(cost) / strongest);
  span.style.background = `rgba(${cost < 0 ? BETTER : WORSE}, ${(0.85 * share).toFixed(3)})`;
}

// Temperatures in order, 1 among them.
const temperatures = () => [...readText().temperatures, 1].sort((a, b) => a - b);

// A run's name, which may be that of a baseline.
const labelOf = run => run.name in readText().others ? `${run.name} (run)` : run.name;

// The NLLs of the same tokens by baselines and other runs, by name.
function otherCosts() {
  const same = runsWithText().filter(([run]) => run !== readingRun && run.texts[0].tokens.join("\0") === readText().tokens.join("\0"));
  return {...readText().others, ...Object.fromEntries(same.map(([run]) => [labelOf(run), run.texts[0].evaluations[bestEvaluation(run)].nll]))};
}

// The evaluation at the step of the lowest validation loss, or the nearest that is there.
const bestEvaluation = run => nearest(momentsOf(run), run.best?.step ?? 0);

// What the address says of a list of choices, once.
function takeWanted(select, name) {
  if (wanted[name] !== undefined) select.value = wanted[name];
  if (!select.value) select.selectedIndex = 0;
  delete wanted[name];
}

// What somebody has chosen, for the address.
function textState() {
  const found = {};
  if (!readingRun) return found;
  if (isChosen) found.token = chosen;
  for (const name of ["run", "versus"]) {
    const select = reading.elements[name];
    if (select.selectedIndex > 0) found[name] = select.value;
  }
  return found;
}

// Fill a list of choices, and keep the choice.
function offer(select, names) {
  const before = select.value;
  select.replaceChildren();
  names.forEach(([value, text]) => element("option", text, select, {value}));
  if (names.some(([value]) => String(value) === before)) select.value = before;
  select.parentElement.hidden = names.length < 2;
}

function drawText() {
  const runs = runsWithText();
  byId("text").hidden = byId("details").hidden = !runs.length;
  if (!runs.length) {
    readingRun = null;
    return;
  }
  const {run: choice, versus} = reading.elements;
  offer(choice, runs.map(([run, i]) => [i, run.name]));
  takeWanted(choice, "run");
  readingRun = page.runs[Number(choice.value)];
  others = otherCosts();
  offer(versus, [["", "surprisal"], ...Object.keys(others).map(name => [name, `difference from ${name}`])]);
  takeWanted(versus, "versus");
  if (wanted.token !== undefined) chosen = Number(wanted.token);
  delete wanted.token;
  if (chosen < 0 && page.versus) versus.value = labelOf(page.runs.at(-1));
  if (chosen < 0 || chosen >= readText().tokens.length) chosen = Math.max(0, evaluationNow().nll.indexOf(Math.max(...evaluationNow().nll)));  // the dearest
  heat.replaceChildren();
  readText().tokens.forEach((text, i) => {
    const span = element("span", text, heat, {role: "option", id: `token${i}`});
    span.dataset.i = i;
    if (endsLine(text)) heat.append("\n");
  });
  if (slider.max !== String(readText().temperatures.length)) {  // the first time; then what somebody chose stays
    slider.max = readText().temperatures.length;
    slider.value = temperatures().indexOf(0.7);
  }
  colourText();
}

// What changes with the evaluation and with what it is compared to.
function colourText() {
  const now = evaluationNow(), other = others[reading.elements.versus.value];
  now.nll.forEach((nll, i) => {
    const span = byId(`token${i}`), known = nll !== null && (!other || other[i] !== null);
    span.classList.toggle("masked", !known);
    paint(span, !known ? 0 : bits(other ? nll - other[i] : nll), other ? DEAREST / 2 : DEAREST);
  });
  drawLegend(byId("legend"), Boolean(other), reading.elements.versus.value);
  choose(chosen);
  drawLines();
}

function drawLegend(place, isDifference, name) {
  place.replaceChildren();
  element("small", isDifference ? `bits less (blue) or more (orange) than ${name}: ` : "bits: ", place);
  for (const cost of isDifference ? [-5, -2, -1, 0, 1, 2, 5] : [0, 1, 2, 3, 5, 7, DEAREST])
    paint(element("span", `${cost}${Math.abs(cost) === (isDifference ? 5 : DEAREST) ? "…" : ""}`, place), cost, isDifference ? DEAREST / 2 : DEAREST);
}

// What the model said before token i.
function describeToken(i) {
  const now = evaluationNow(), text = readText(), nll = now.nll[i], place = byId("token");
  place.replaceChildren();
  const title = element("div", "", place), before = text.tokens.slice(Math.max(0, i - 12), i).join("");
  element("strong", quote(text.tokens[i]), title);
  title.append(before ? ` after ${quote("…" + before)}: ` : ": ");
  if (nll === null) return title.append("masked, the model did not have to predict it");
  const costs = now.nll.slice(0, i + 1).filter(cost => cost !== null), sum = costs.reduce((a, b) => a + b, 0);
  title.append(`probability ${percent(Math.exp(-nll))}, ${bits(nll).toFixed(2)} bits, rank ${whole.format(now.rank[i])} of ${whole.format(text.vocab_size)}`);
  if (now.rank[i] <= now.top[i].length && !now.top[i].includes(text.ids[i])) title.append(", as others");
  const likelier = now.top[i].map((token, k) => `${quote(text.names[token])} ${percent(Math.exp(now.log_q[i][k]))}`);
  element("div", `most likely: ${likelier.join(", ")}`, place);
  const elsewhere = Object.entries(others).filter(([, values]) => values[i] !== null).map(([name, values]) => `${name} ${bits(values[i]).toFixed(2)}`);
  element("div", `up to here ${bits(sum).toFixed(1)} bits in ${whole.format(costs.length)} token${costs.length > 1 ? "s" : ""}, ${bits(sum / costs.length).toFixed(2)} each` +
          (elsewhere.length ? `. The same token costs ${elsewhere.join(", ")} bits` : ""), place);
}

function choose(i) {
  const before = byId(`token${chosen}`);
  before?.classList.remove("chosen");
  before?.removeAttribute("aria-selected");
  chosen = i;
  const span = byId(`token${i}`);
  span.classList.add("chosen");
  span.ariaSelected = "true";
  heat.setAttribute("aria-activedescendant", span.id);
  describeToken(i);
  drawSurprise();
  drawLearning();
  drawSoftmax();
}

function pickToken(i) {
  isChosen = true;
  choose(i);
  writeAddress();
}

// What the chosen token cost at each evaluation.
function drawLearning() {
  const known = readText().evaluations.filter(each => each.nll[chosen] !== null), steps = known.map(each => each.step);
  byId("learning").hidden = known.length < 2;
  if (known.length < 2) return;
  const x = axis("step", true), [blue, orange] = colors(), now = evaluationNow(), y = known.map(each => bits(each.nll[chosen]));
  const places = steps.map(x.at);
  plot("learning", [{kind: "line", x: places, y, color: blue},
    {kind: "points", x: places, y, color: known.map(each => each === now ? orange : blue), size: known.map(each => each === now ? 12 : 5),
     tell: i => `${y[i].toFixed(2)} bits at step ${short(steps[i])}`}],
    {x, y: {title: "bits of the chosen token", range: [0, 1.05 * Math.max(...y)]}});
}

// The curve -log2 q, with the tokens of the text on it.
function drawSurprise() {
  const now = evaluationNow(), known = now.nll.map((nll, i) => [nll, i]).filter(([nll]) => nll !== null);
  const qs = Array.from({length: 200}, (_, k) => 2 ** (-16 * (1 - k / 199) ** 2)), [blue, orange] = colors();
  const isChosen = (yes, no) => known.map(([, i]) => i === chosen ? yes : no), y = known.map(([nll]) => bits(nll));
  plot("surprise", [
    {kind: "line", x: qs, y: qs.map(q => -Math.log2(q)), color: blue},
    {kind: "points", x: known.map(([nll]) => Math.exp(-nll)), y, color: orange, size: isChosen(16, 7), alpha: isChosen(1, 0.3),
     tell: k => `${quote(readText().tokens[known[k][1]])}: q = ${Math.exp(-known[k][0]).toFixed(3)}, ${y[k].toFixed(2)} bits`}],
    {x: {title: "probability q of the token that came", range: [-0.02, 1.02]},
     y: {title: "surprisal −log₂ q, bits", range: [-0.4, Math.max(8, ...y) + 0.5]}});
}

// The prediction before the chosen token, also at a temperature, and the gradient of the loss with respect to its logits.
function drawSoftmax() {
  const now = evaluationNow(), text = readText(), T = temperatures()[Number(slider.value)], nll = now.nll[chosen], masked = nll === null;
  slider.nextElementSibling.textContent = T;
  byId("softmax").hidden = byId("gradient").hidden = masked;
  if (masked) return;
  const came = text.tokens[chosen], names = now.top[chosen].map(token => text.names[token]), logs = [...now.log_q[chosen]];
  let place = now.top[chosen].indexOf(text.ids[chosen]);
  if (place < 0) place = names.push(came) - 1, logs.push(-nll);
  const norm = T === 1 ? 0 : now.log_z[chosen][text.temperatures.indexOf(T)];
  const withRest = shares => [...shares, Math.max(0, 1 - shares.reduce((a, b) => a + b, 0))];
  const q = withRest(logs.map(Math.exp)), tempered = withRest(logs.map(log => Math.exp(log / T - norm)));
  const shown = [...names.map((name, k) => quote(name) + (k === place ? " ✓" : "")), "others"], [blue, orange] = colors();
  const bars = (y, shift, width, color, label) => ({kind: "bars", x: y.map((_, k) => k + shift), y, width, color,
                                                    tell: k => `${k < names.length ? "" : whole.format(text.vocab_size - k) + " "}${shown[k]}: ${label} = ${y[k].toFixed(4)}`});
  const x = title => ({title, range: [-0.6, shown.length - 0.4], ticks: () => shown.map((name, k) => [k, name])});
  plot("softmax", [bars(q, -0.2, 0.4, blue, "q"), bars(tempered, 0.2, 0.4, orange, `q at temperature ${T}`)],
    {title: `${bits(nll).toFixed(2)} bits (blue); at T = ${T}, ${(-Math.log2(tempered[place])).toFixed(2)} bits (orange)`, x: x("what the model expected; ✓: it came"), y: {title: "probability q", range: [0, 1.02]}});
  plot("gradient", [bars(q.map((share, k) => share - (k === place)), 0, 0.8, q.map((_, k) => k === place ? blue : orange), "q − p")],
    {x: x("gradient at each logit; p = 1 at ✓"), y: {title: "q − p", range: [-1.05, 1.05]}});
}

// The bits of each line by the run and by the others; the lowest of a line is bold.
function drawLines() {
  const text = readText(), columns = {[labelOf(readingRun)]: evaluationNow().nll, ...others}, ends = [];
  text.tokens.forEach((token, i) => { if (endsLine(token) || i === text.tokens.length - 1) ends.push(i + 1); });
  const rows = ends.slice(0, 60).map((end, k) => [text.tokens.slice(ends[k - 1] ?? 0, end).join(""), ends[k - 1] ?? 0, end]);
  const known = i => Object.values(columns).every(values => values[i] !== null);
  const cost = (values, from, to) => values.slice(from, to).reduce((sum, nll, k) => known(from + k) ? sum + bits(nll) : sum, 0);
  rows.push(["all of it", 0, text.tokens.length]);
  const shown = rows.map(([line, from, to]) => [line, Object.values(columns).map(values => cost(values, from, to))]).filter(([, costs]) => costs.some(Boolean));
  const bytes = text.bytes.reduce((sum, count, i) => known(i) ? sum + count : sum, 0), place = byId("lines");
  if (!shown.length) return place.replaceChildren();  // all of it is masked
  shown.push(["bits per byte", shown.at(-1)[1].map(sum => sum / bytes)]);
  place.replaceChildren();
  const texts = shown.map(([, costs], k) => costs.map(sum => sum.toFixed(k === shown.length - 1 ? 3 : 0)));
  const made = table([["line", ...Object.keys(columns)], ...shown.map(([line], k) => [line, ...texts[k]])], place, Object.keys(columns).map((_, k) => k + 1));
  const several = Object.keys(columns).length > 1;
  place.previousElementSibling.textContent = several ? "Where the model wins, and where it loses: bits of each line, the fewest in bold" : "Bits of each line";
  if (several) texts.forEach((row, k) => row.forEach((text, column) =>
    made.rows[k + 1].cells[column + 1].classList.toggle("best", Number(text) === Math.min(...row))));
  if (columns.gzip) element("p", "gzip counts whole bytes, and pays for words that it has seen before at their first character: a line may cost it nothing.", place);
  if (ends.length > 60) element("p", `These are the first 60 of ${whole.format(ends.length)} lines.`, place);
}

reading.elements.run.addEventListener("input", drawAll);
reading.elements.versus.addEventListener("input", () => {
  colourText();
  writeAddress();
});
slider.addEventListener("input", drawSoftmax);
heat.addEventListener("mouseover", event => { if (event.target.dataset.i) describeToken(Number(event.target.dataset.i)); });
heat.addEventListener("mouseleave", () => describeToken(chosen));
heat.addEventListener("click", event => { if (event.target.dataset.i) pickToken(Number(event.target.dataset.i)); });
heat.addEventListener("keydown", event => {
  const last = readText().tokens.length - 1, to = {ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: last}[event.key];
  if (to === undefined || to < 0 || to > last) return;
  event.preventDefault();
  pickToken(to);
  byId(`token${to}`).scrollIntoView({block: "nearest"});
});
