"use strict";
// Loss curves beside the baselines, and small ones below.
const UNITS = {nats: "cross-entropy, nats per token", bits_per_byte: "cross-entropy, bits per byte", perplexity: "perplexity"};
const AXES = {step: "steps", tokens: "training targets", seconds: "seconds", flops: "FLOPs"};
const FEW = 5;  // runs whose training losses are drawn too
const MARKED = 100;  // evaluations that have a point each: more are hard to see, and slow to draw
const SMALL = {lr: "learning rate", grad_norm: "gradient norm", tokens_per_second: "tokens/s", objective: "objective",
               smoothing: "label smoothing", z_loss: "z-loss", distillation: "distillation", kl_gap: "KL(source || model)"};

// A loss in nats per token, in the unit of the picture.
function inUnit(nats, run, unit) {
  return unit === "perplexity" ? Math.exp(nats) : unit === "nats" ? nats : bits(nats) / run.bytes_per_target;
}

// An exponential mean without the first point's weight (Adam's correction), of nats, before any change of units.
function smooth(values, weight) {
  let mean = 0, sum = 0;
  return values.map(value => (mean = weight * mean + value, sum = weight * sum + 1, mean / sum));
}

// Where a place stands on the x axis: the logarithm begins at the first place above 0, so that step 0 has a place too.
function axis(name, log) {
  const places = shownRuns().flatMap(([run]) => [...run.val[name], ...run.train[name]]).filter(place => place > 0);
  const first = places.reduce((a, b) => Math.min(a, b), Infinity), last = places.reduce((a, b) => Math.max(a, b), 0);
  if (!log || !isFinite(first)) return {at: place => place, title: AXES[name]};
  const at = place => Math.log10(place / first + 1), placeAt = at => first * (10 ** at - 1);
  const ticks = (start, end) => {
    const from = placeAt(start), to = placeAt(end), ends = [from <= 0 ? [0] : [], to >= last ? [last] : []];
    const between = roundNumbers(Math.max(from, first), to >= last ? last / 1.8 : to, from > 0 || to < last ? 3 : 1);
    return [...ends[0], ...between, ...ends[1]].map(place => [at(place), short(place)]);
  };
  return {at, title: AXES[name], ticks};
}

// Round numbers between two: powers of ten or, if these are fewer than wanted, also others.
function roundNumbers(from, to, wanted) {
  if (!(from < to)) return [];
  for (const digits of [[1], [1, 2, 5], [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(Math.max(from, to / 1e6))); 10 ** power <= to; power++)
      found.push(...digits.map(digit => digit * 10 ** power).filter(value => value >= from && value <= to));
    if (found.length >= wanted) return found;
  }
  const step = 10 ** Math.floor(Math.log10((to - from) / 2)), found = [];
  for (let k = Math.ceil(from / step); k * step <= to && found.length < 20; k++) found.push(k * step);
  return found;
}

// The baselines of the runs that are shown, from the lowest; a name that means several losses says whose each is: by the
// text and its tokens or, where these are the same, by the first of the runs.
function findBaselines(unit) {
  const found = new Map();
  for (const [run] of shownRuns()) {
    const uniform = Math.max(...run.baselines.filter(({name}) => name.startsWith("uniform")).map(each => each[unit]));
    for (const {name, [unit]: value} of run.baselines.filter(each => each[unit] <= uniform)) {
      const key = `${name} ${value.toPrecision(4)}`;
      if (!found.has(key)) found.set(key, {name, value, owner: `${run.corpus} ${run.tokenizer}`, run: run.name});
    }
  }
  if (unit === "perplexity") found.forEach(each => { each.name = each.name.replace("log|V|", "|V|"); });
  const all = [...found.values()], label = each => {
    const same = all.filter(({name}) => name === each.name), owners = new Set(same.map(({owner}) => owner));
    return same.length === 1 ? each.name : `${each.name} (${owners.size === same.length ? each.owner : each.run})`;
  };
  return all.map(each => [label(each), each.value]).sort((a, b) => a[1] - b[1]);
}

// One curve of a run, as a mark of a plot; pointing at it tells its points, and nothing between them.
function curve(run, kind, x, place, y, label, look, text = short) {
  return {kind: "line", x: run[kind][place].map(x.at), y, ...look,
          tell: i => `${text(y[i])} at ${short(run[kind][place][i])} ${AXES[place]}: ${label}`};
}

function drawCurves(o) {
  const x = axis(o.x, o.logx);
  drawLoss(o, x);
  drawSmall(o, x);
}

function drawLoss(o, x) {
  const marks = [], spans = [], digits = value => value.toFixed(4);
  for (const [run, i] of shownRuns()) {
    const {color, dash} = pen(i), {val_nll: nll} = run.val;
    const train = smooth(run.train.train_nll, Number(o.smooth)).map(nats => inUnit(nats, run, o.y));
    const val = nll.map(nats => inUnit(nats, run, o.y));
    if (ticked.size <= FEW) marks.push(curve(run, "train", x, o.x, train, `training, ${run.name}`,
      {color, dash, width: 1, alpha: dark.matches ? 0.8 : 0.5}, digits));
    marks.push(curve(run, "val", x, o.x, val, `${run.val_kind}, ${run.name}`, {color, dash, width: 2.5}, digits));
    if (!nll.length) continue;
    if (nll.length <= MARKED) marks.push({kind: "points", x: marks.at(-1).x, y: val, color, size: 5});
    const place = x.at(run.best[o.x]), best = inUnit(bestLoss(run), run, o.y);
    marks.push({kind: "points", marker: "star", size: 17, x: [place], y: [best], color,
                tell: () => `${digits(best)}${run.best_nll === null ? "" : ` on all ${run.val_kind} targets`}: best, ${run.name}`});
    if (run.overfits) spans.push({from: place, to: x.at(run.val[o.x].at(-1)), color});
  }
  const levels = o.baselines ? findBaselines(o.y).map(([name, value]) => [`${name} ${value.toPrecision(4)}`, value]) : [];
  const heights = [...levels.map(([, value]) => value), ...marks.flatMap(mark => mark.y)].filter(isFinite);
  const stars = marks.filter(({marker}) => marker).flatMap(mark => mark.y);
  const ceiling = levels.length ? Math.max(levels.at(-1)[1], ...stars) : heights.reduce((a, b) => Math.max(a, b), 0);  // log|V|
  form.querySelector("output").textContent = o.smooth;
  byId("shaded").hidden = !spans.length;
  for (const place of document.querySelectorAll("#curves .kind")) place.textContent = page.val_kind;
  plot("loss", marks, {key: [o.x, o.logx, o.y], zoom: true, together: true, levels, spans, x,
    y: {title: UNITS[o.y], log: o.logy, range: padded([heights.reduce((a, b) => Math.min(a, b), ceiling), ceiling], 0.04, o.logy)}});
}

function drawSmall(o, x) {
  const keys = Object.keys(SMALL).filter(key => page.runs.some(run => run.train[key]?.length || run.val[key]?.length));
  for (const key of keys) {  // all of them first: each is as wide as they leave it room
    if (!byId(key)) element("div", "", byId("small"), {id: key});
  }
  for (const key of keys) {
    const marks = shownRuns().flatMap(([run, i]) => ["train", "val"].filter(kind => run[kind][key]).map(kind =>
      curve(run, kind, x, o.x, run[kind][key], run.name, pen(i))));
    plot(key, marks, {key: [o.x, o.logx], together: true, x, y: {title: SMALL[key]}});
  }
}
