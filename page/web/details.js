"use strict";
// Charts of one token: what it cost as the model learned, and what loss and gradient are there.
const LINES_SHOWN = 60;
const slider = byId("temperature");

function drawDetails() {
  const isPredicted = Boolean(evaluationNow().top);
  for (const place of document.querySelectorAll(".predicted")) place.hidden = !isPredicted;
  if (!isPredicted) return;
  drawSurprise();
  drawLearning();
  drawSoftmax();
}

// Temperatures in order, 1 among them.
const temperatures = () => [...readText().temperatures, 1].sort((a, b) => a - b);

// The choice of a temperature; what somebody chose stays.
function drawTemperatures() {
  const most = String(readText().temperatures.length);
  if (slider.max === most) return;
  slider.max = most;
  slider.value = temperatures().indexOf(0.7);
}

// What the chosen token cost at each evaluation.
function drawLearning() {
  const known = readText().evaluations.filter(each => each.nll[chosen] !== null);
  byId("learning").hidden = known.length < 2;
  if (known.length < 2) return;
  const steps = known.map(each => each.step), y = known.map(each => bits(each.nll[chosen]));
  const now = evaluationNow(), [blue, orange] = colors(), x = axis("step", true);
  const places = steps.map(x.at);
  const points = {
    kind: "points", x: places, y,
    color: known.map(each => each === now ? orange : blue),
    size: known.map(each => each === now ? 12 : 5),
    tell: i => `${y[i].toFixed(2)} bits at step ${short(steps[i])}`,
  };
  plot("learning", [{kind: "line", x: places, y, color: blue}, points],
       {x, y: {title: "bits of the chosen token", range: [0, 1.05 * Math.max(...y)]}});
}

// The curve -log2 q, with the tokens of the text on it.
function drawSurprise() {
  const {nll} = evaluationNow(), {tokens} = readText(), [blue, orange] = colors();
  const known = tokens.map((_, i) => i).filter(i => nll[i] !== null);
  const qs = Array.from({length: 200}, (_, k) => 2 ** (-16 * (1 - k / 199) ** 2));
  const x = known.map(i => Math.exp(-nll[i])), y = known.map(i => bits(nll[i]));
  const points = {
    kind: "points", x, y, color: orange,
    size: known.map(i => i === chosen ? 16 : 7),
    alpha: known.map(i => i === chosen ? 1 : 0.3),
    tell: k => `${quote(tokens[known[k]])}: q = ${x[k].toFixed(3)}, ${y[k].toFixed(2)} bits`,
  };
  const curve = {kind: "line", x: qs, y: qs.map(q => -Math.log2(q)), color: blue};
  plot("surprise", [curve, points],
       {x: {title: "probability q of the token that came", range: [-0.02, 1.02]},
        y: {title: "surprisal −log₂ q, bits", range: [-0.4, Math.max(8, ...y) + 0.5]}});
}

// The prediction before the chosen token, also at a temperature, and the gradient of the loss with
// respect to its logits.
function drawSoftmax() {
  const T = temperatures()[Number(slider.value)], isMasked = evaluationNow().nll[chosen] === null;
  slider.nextElementSibling.textContent = T;
  byId("softmax").hidden = byId("gradient").hidden = isMasked;
  if (isMasked) return;
  const {names, logs, came} = expectedTokens();
  const q = withRest(logs.map(Math.exp));
  const norm = normaliser(T);
  const tempered = withRest(logs.map(log => Math.exp(log / T - norm)));
  const shown = [...names.map((name, k) => quote(name) + (k === came ? " ✓" : "")), "others"];
  const count = readText().vocab_size - names.length, [blue, orange, , pink] = colors();
  const bars = (y, shift, width, color, label) => ({
    kind: "bars", x: y.map((_, k) => k + shift), y, width, color,
    tell: k => `${k < names.length ? "" : `${whole.format(count)} `}${shown[k]}: ` +
      `${label} = ${y[k].toFixed(4)}`,
  });
  const ticks = () => shown.map((name, k) => [k, name]);
  const x = {range: [-0.6, shown.length - 0.4], ticks};
  const title = `${(-logs[came] / Math.LN2).toFixed(2)} bits (blue); ` +
    `at T = ${T}, ${(-Math.log2(tempered[came])).toFixed(2)} bits (pink)`;
  const hot = bars(tempered, 0.2, 0.4, pink, `q at temperature ${T}`);
  plot("softmax", [bars(q, -0.2, 0.4, blue, "q"), hot],
       {title, x: {...x, title: "the prediction; ✓: it came"},
        y: {title: "probability q", range: [0, 1.02]}});
  const gradient = q.map((share, k) => share - (k === came));
  const signs = q.map((_, k) => k === came ? blue : orange);
  plot("gradient", [bars(gradient, 0, 0.8, signs, "q − p")],
       {x: {...x, title: "gradient at each logit; p = 1 at ✓"},
        y: {title: "q − p", range: [-1.05, 1.05]}});
}

// The likeliest tokens before the chosen one, and the place among them of the token that came.
function expectedTokens() {
  const now = evaluationNow(), text = readText();
  const names = now.top[chosen].map(token => text.names[token]), logs = [...now.log_q[chosen]];
  let came = now.top[chosen].indexOf(text.ids[chosen]);
  if (came < 0) {
    came = names.length;
    names.push(text.tokens[chosen]);
    logs.push(-now.nll[chosen]);
  }
  return {names, logs, came};
}

const withRest = shares => [...shares, Math.max(0, 1 - sumOf(shares))];

// log sum_v q_v^(1/T), which the page knows at some temperatures.
function normaliser(T) {
  if (T === 1) return 0;
  return evaluationNow().log_z[chosen][readText().temperatures.indexOf(T)];
}

// The bits of each line by the run and by the others; the lowest of a line is bold.
function drawLines() {
  const columns = {[labelOf(readingRun)]: evaluationNow().nll, ...others};
  const names = Object.keys(columns), place = byId("lines"), several = names.length > 1;
  const {rows, count} = costsOfLines(columns);
  place.replaceChildren();
  if (!rows.length) return;  // all of it is masked
  place.previousElementSibling.firstChild.textContent = several
    ? "Where the model wins, and where it loses: bits of each line, the fewest in bold"
    : "Bits of each line";
  const texts = rows.map(({line, costs, digits}) =>
    [line, ...costs.map(cost => cost.toFixed(digits))]);
  const made = table([["line", ...names], ...texts], place, names.map((_, k) => k + 1));
  if (several) markFewest(made, texts);
  if (columns.gzip) {
    element("p", "gzip counts whole bytes, and pays for words that it has seen before at their " +
            "first character: a line may cost it nothing.", place);
  }
  if (count > LINES_SHOWN)
    element("p", `These are the first ${LINES_SHOWN} of ${whole.format(count)} lines.`, place);
}

// What each line costs in each column, and all lines; only tokens count that all have.
function costsOfLines(columns) {
  const {tokens, bytes} = readText(), values = Object.values(columns);
  const isKnown = i => values.every(nll => nll[i] !== null);
  const sum = (from, to, valueOf) => {
    let total = 0;
    for (let i = from; i < to; i++) if (isKnown(i)) total += valueOf(i);
    return total;
  };
  const costs = (from, to) => values.map(nll => sum(from, to, i => bits(nll[i])));
  const rows = [];
  let from = 0, count = 0;
  for (const [i, token] of tokens.entries()) {
    if (!endsLine(token) && i < tokens.length - 1) continue;
    count += 1;
    const line = tokens.slice(from, i + 1).join("");
    if (count <= LINES_SHOWN) rows.push({line, costs: costs(from, i + 1), digits: 0});
    from = i + 1;
  }
  const all = costs(0, tokens.length);
  rows.push({line: "all of it", costs: all, digits: 0});
  const known = rows.filter(row => row.costs.some(Boolean));
  if (!known.length) return {rows: [], count};
  const size = sum(0, tokens.length, i => bytes[i]);
  known.push({line: "bits per byte", costs: all.map(cost => cost / size), digits: 3});
  return {rows: known, count};
}

function markFewest(made, texts) {
  for (const [k, [, ...numbers]] of texts.entries()) {
    const fewest = Math.min(...numbers.map(Number));
    for (const [column, number] of numbers.entries()) {
      const cell = made.rows[k + 1].cells[column + 1];
      cell.classList.toggle("best", Number(number) === fewest);
    }
  }
}

slider.addEventListener("input", drawSoftmax);
