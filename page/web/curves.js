"use strict";
// Loss curves beside the baselines, and small ones below.
const UNITS = {nats: "cross-entropy, nats per token", perplexity: "perplexity",
               bits_per_byte: "cross-entropy, bits per byte"};
const AXES = {step: "steps", tokens: "training targets", seconds: "seconds", flops: "FLOPs"};
const FEW = 5;  // runs whose training losses are drawn too
const BEYOND = 1.5;  // times the top of the picture: a loss that has left it
const MARKED = 100;  // evaluations that have a point each: more are hard to see, and slow to draw
const SMALL = {lr: "learning rate", grad_norm: "gradient norm", tokens_per_second: "tokens/s",
               objective: "objective", smoothing: "label smoothing", z_loss: "z-loss",
               distillation: "distillation", kl_gap: "KL(source || model)"};

// A loss in nats per token, in the unit of the picture.
function inUnit(nats, run, unit) {
  if (unit === "perplexity") return Math.exp(nats);
  return unit === "nats" ? nats : bits(nats) / run.bytes_per_target;
}

// An exponential mean without the first point's weight (Adam's correction), of nats, before any
// change of units.
function smooth(values, weight) {
  let mean = 0, sum = 0;
  return values.map(value => (mean = weight * mean + value, sum = weight * sum + 1, mean / sum));
}

// Where a place stands on the x axis: the logarithm begins at the first place above 0, so that
// step 0 has a place too.
function axis(name, log) {
  const all = shownRuns().flatMap(([run]) => [...run.val[name] ?? [], ...run.train[name] ?? []]);
  const places = all.filter(place => place > 0);
  const first = lowest(places), last = Math.max(0, highest(places));
  if (!log || !isFinite(first)) return {at: place => place, title: AXES[name], ticks: evenTicks};
  const at = place => Math.log10(place / first + 1), placeAt = at => first * (10 ** at - 1);
  const power = 10 ** Math.floor(Math.log10(last));
  const round = Math.floor(last / power * 1.001) * power;
  const ticks = (left, right) => {
    const from = placeAt(left), to = placeAt(right), isWhole = to >= last;
    const end = isWhole ? round / 1.8 : to, wanted = from > 0 || !isWhole ? 3 : 1;
    const between = roundNumbers(Math.max(from, first), end, wanted);
    const places = [...from <= 0 ? [0] : [], ...between, ...isWhole ? [round] : []];
    return places.map(place => [at(place), tickText(place)]);
  };
  return {at, title: AXES[name], ticks};
}

function tickText(place) {
  const value = Number(place.toPrecision(6));
  return value >= 1e6 ? value.toExponential().replace("e+", "e")
    : Number.isInteger(value) ? whole.format(value) : String(value);
}

// Places from 0 on that are 1, 2 or 5 times a power of ten apart.
function evenTicks(start, end) {
  const rough = (end - start) / 7, power = 10 ** Math.floor(Math.log10(rough)), found = [];
  const step = power * [1, 2, 5, 10].find(digit => digit * power >= rough * 0.999);
  for (let k = Math.ceil(Math.max(0, start) / step); k * step <= end; k++)
    found.push([k * step, tickText(k * step)]);
  return found;
}

// Round numbers between two: powers of ten or, if these are fewer than wanted, also others.
function roundNumbers(from, to, wanted) {
  if (!(from < to)) return [];
  const isBetween = value => value >= from && value <= to;
  for (const digits of [[1], [1, 2, 5], [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]]) {
    const found = [];
    for (let power = Math.floor(Math.log10(Math.max(from, to / 1e6))); 10 ** power <= to; power++)
      found.push(...digits.map(digit => digit * 10 ** power).filter(isBetween));
    if (found.length >= wanted) return found;
  }
  const step = 10 ** Math.floor(Math.log10((to - from) / 2)), found = [];
  for (let k = Math.ceil(from / step); k * step <= to && found.length < 20; k++)
    found.push(k * step);
  return found;
}

const nameOf = run => hasSeeds() ? page.groups[run.group] : run.short;

// The text and the tokens of a run, as far as they differ between runs.
function ownerOf(run) {
  const parts = ["corpus", "tokenizer"].filter(part =>
    new Set(page.runs.map(each => each[part])).size > 1);
  return parts.map(part => run[part]).join(" ");
}

// The baselines of the runs that are shown, from the lowest; of many runs, those of the most
// frequent targets. A name that means several losses says whose each is: by the text and its tokens
// or, where these are the same, by the first of the runs.
function findBaselines(unit) {
  const found = new Map(), shown = shownRuns();
  const first = lowest(shown.map(([run]) => run.target));
  for (const [run] of shown) {
    if (shown.length > FEW && run.target !== first) continue;
    const uniforms = run.baselines.filter(({name}) => name.startsWith("uniform"));
    const uniform = highest(uniforms.map(each => each[unit]));
    for (const baseline of run.baselines.filter(each => each[unit] <= uniform)) {
      const name = starred(baseline), value = baseline[unit];
      const key = `${name} ${value.toPrecision(4)}`;
      if (!found.has(key)) found.set(key, {name, value, owner: ownerOf(run), run: nameOf(run)});
    }
  }
  if (unit === "perplexity") {
    for (const each of found.values()) each.name = each.name.replace("log|V|", "|V|");
  }
  const all = [...found.values()], label = each => {
    const same = all.filter(({name}) => name === each.name);
    const owners = new Set(same.map(({owner}) => owner));
    if (same.length === 1) return each.name;
    return `${each.name} (${owners.size === same.length ? each.owner : each.run})`;
  };
  return all.map(each => [label(each), each.value]).sort((a, b) => a[1] - b[1]);
}

// One curve of a run, as a mark of a plot; pointing at it tells its points, and nothing between.
function curve(run, kind, x, place, y, name, look, digits = short) {
  const at = i => `at ${short(run[kind][place][i])} ${AXES[place]}`;
  return {kind: "line", x: (run[kind][place] ?? []).map(x.at), y, ...look,
          tell: i => ({value: y[i], text: digits(y[i]), name, at: at(i)})};
}

function drawCurves(o) {
  drawLoss(o);
  drawSmall(o);
}

const fourDigits = value => value.toFixed(4);

function drawLoss(o) {
  const x = axis(o.x, o.logx), shown = shownRuns(), byGroup = showsMeans();
  const withTrain = shown.length <= FEW && !byGroup;
  const {marks, spans} = byGroup ? markGroups(shown, o, x) : markRuns(shown, o, x, withTrain);
  const levels = !o.baselines ? [] : findBaselines(o.y)
    .map(([name, value]) => [`${name} ${value.toPrecision(4)}`, value]);
  form.elements.smooth.nextElementSibling.textContent = Number(o.smooth) ? o.smooth : "";
  form.elements.smooth.parentElement.hidden = !withTrain;
  byId("smoothed").hidden = !Number(o.smooth);
  byId("signs").hidden = isMany();
  form.elements.mean.parentElement.hidden = !hasSeeds();
  form.elements.fit.parentElement.hidden = !isMany();
  byId("shaded").hidden = !spans.length;
  for (const place of document.querySelectorAll("#curves .kind")) place.textContent = page.val_kind;
  byId("thin").hidden = !withTrain;
  byId("unlike").hidden = !shown.some(([run]) => run.target > 0);
  byId("banded").hidden = !marks.some(({kind}) => kind === "band");
  byId("lagging").hidden = !marks.some(({isBehind}) => isBehind);
  byId("starred").hidden = byGroup;
  if (!byGroup) marks.push(...markMoment(o, x));
  const isEmpty = isMany() && !marks.some(({x}) => x.length), nothing = byId("nothing");
  nothing.hidden = !isEmpty;
  byId("caption").hidden = isEmpty;
  nothing.textContent = shown.length ? "no run that is shown has a curve yet" : "no runs shown";
  if (isEmpty) return hidePlot("loss");
  const range = isMany() ? fitted(shown, o, marks, x) : withBaselines(marks, levels, o);
  const most = highest(marks.flatMap(mark => mark.y).filter(isFinite));
  if (!isMany() && most > BEYOND * range[1]) {
    nothing.hidden = false;
    nothing.textContent = `The loss left this picture: it rose to ${short(most)}.`;
  }
  const words = new Set(shown.map(([run]) => tokenWord(run)));
  const title = words.size === 1 ? UNITS[o.y].replace("token", ...words) : UNITS[o.y];
  plot("loss", marks, {key: [o.x, o.logx, o.y, o.fit], zoom: true, together: true, levels, spans, x,
                       y: {title, log: o.logy, range}});
}

// Up to log|V|, and down to the lowest of the baselines.
function withBaselines(marks, levels, o) {
  const heights = [...levels.map(([, value]) => value), ...marks.flatMap(mark => mark.y)];
  const stars = marks.filter(({marker}) => marker).flatMap(mark => mark.y);
  const ceiling = levels.length ? Math.max(levels.at(-1)[1], ...stars) : highest(heights);
  return padded([lowest(heights.filter(isFinite)), ceiling], 0.04, o.logy);
}

const lowest = values => values.reduce((a, b) => Math.min(a, b), Infinity);
const highest = values => values.reduce((a, b) => Math.max(a, b), -Infinity);

// What the runs show, but no loss above that before training: those are of runs that diverge.
function fitted(shown, o, marks, {at}) {
  let ceiling = -Infinity;
  for (const [run] of shown) {
    const {val_nll: nll = []} = run.val, uniform = highest(run.baselines.map(({nats}) => nats));
    if (nll.length) ceiling = Math.max(ceiling, inUnit(Math.max(nll[0], uniform), run, o.y));
  }
  const middle = at(highest(shown.map(([run]) => run.val[o.x]?.at(-1) ?? 0)) / 2), values = [];
  for (const {x, y, low = [], high = []} of marks) {
    const isLate = i => o.fit !== "end" || x[i] >= middle;
    values.push(...[...y.filter((_, i) => isLate(i)), ...low.filter((_, i) => isLate(i)),
                    ...high.filter((_, i) => isLate(i))].filter(isFinite));
  }
  return padded([lowest(values), Math.min(highest(values), ceiling)], 0.04, o.logy);
}

function markRuns(shown, o, x, withTrain) {
  const marks = [], spans = [];
  for (const [run, i] of shown) {
    const {color, dash} = pen(i), {val_nll: nll = []} = run.val, runs = [i];
    const name = kind => {
      if (!isMany()) return kind || run.val_kind;
      return kind ? `${run.short}, ${kind}` : run.short;
    };
    if (withTrain && run.train.train_nll) {
      const train = smooth(run.train.train_nll, Number(o.smooth));
      const y = train.map(nats => inUnit(nats, run, o.y));
      const look = {color, dash, width: 1, alpha: isDark() ? 0.8 : 0.5, runs};
      marks.push(curve(run, "train", x, o.x, y, name("training"), look, fourDigits));
    }
    const val = nll.map(nats => inUnit(nats, run, o.y));
    const look = {color, dash, width: shown.length > FEW ? 1.75 : 2.5, runs};
    if (isMany()) look.label = labelOfCurve(run, run.short);
    marks.push(curve(run, "val", x, o.x, val, name(""), look, fourDigits));
    if (!nll.length) continue;
    if (nll.length <= MARKED && shown.length <= FEW)
      marks.push({kind: "points", x: marks.at(-1).x, y: val, color, size: 5, runs});
    const place = x.at(run.best[o.x]), best = inUnit(bestLoss(run), run, o.y);
    const kind = run.best_nll === null ? "best so far" : `best, on all ${run.val_kind} targets`;
    const at = `at ${short(run.best[o.x])} ${AXES[o.x]}`;
    const star = {kind: "points", marker: "star", size: shown.length > FEW ? 11 : 17, runs, color,
                  x: [place], y: [best]};
    if (shown.length <= FEW)
      star.tell = () => ({value: best, text: fourDigits(best), name: name(kind), at});
    marks.push(star);
    if (run.overfits) spans.push({from: place, to: x.at(run.val[o.x].at(-1)), color});
  }
  return {marks, spans};
}

// A ring at the step that the slider of training shows.
function markMoment(o, x) {
  const run = timedRun(), i = (run.val.step ?? []).indexOf(momentShown());
  if (i < 0 || !isShown(run, page.runs.indexOf(run))) return [];
  const color = isDark() ? "#fff" : "#222";
  return [{kind: "points", x: [x.at(run.val[o.x][i])], size: 13, color, isRing: true,
           y: [inUnit(run.val.val_nll[i], run, o.y)]}];
}

const labelOfCurve = (run, name) => run.target > 0 ? `≠ ${name}` : name;

// The mean of each group of runs that share all options but the seed, and a band of one standard
// deviation. Runs that did not come as far as the others are thin lines.
function markGroups(shown, o, x) {
  const marks = [];
  for (const [group, name] of page.groups.entries()) {
    const own = shown.filter(([run]) => run.group === group && run.val.step?.length);
    if (!own.length) continue;
    const last = highest(own.map(([run]) => run.val.step.at(-1)));
    const full = own.filter(([run]) => run.val.step.at(-1) === last);
    const {color, dash} = groupPen(group), runs = own.map(([, i]) => i);
    for (const [run, i] of own.filter(each => !full.includes(each))) {
      const y = run.val.val_nll.map(nats => inUnit(nats, run, o.y));
      const look = {color, dash, width: 1, alpha: 0.6, runs: [i], isBehind: true};
      marks.push(curve(run, "val", x, o.x, y, run.short, look, fourDigits));
    }
    if (full.length > 1) marks.push(...full.map(([run, i]) => memberCurve(run, i, o, x)));
    const mean = meanCurve(full.map(([run]) => run), o);
    if (full.length > 1) {
      const {x: places, y, low, high} = mean;
      marks.push({kind: "band", x: places.map(x.at), y, low, high, color, alpha: 0.16, runs});
    }
    const at = i => `at ${short(mean.x[i])} ${AXES[o.x]}`;
    const text = i => fourDigits(mean.y[i]) +
      (full.length > 1 ? ` ± ${fourDigits(mean.high[i] - mean.y[i])} SD` : "");
    marks.push({kind: "line", x: mean.x.map(x.at), y: mean.y, color, dash, width: 2.5, runs,
                label: labelOfCurve(own[0][0], name),
                tell: i => ({value: mean.y[i], text: text(i), name, at: at(i)})});
  }
  return {marks, spans: []};
}

// A run that is in a mean: its line is seen while it is pointed at.
function memberCurve(run, i, o, x) {
  const y = run.val.val_nll.map(nats => inUnit(nats, run, o.y));
  return {kind: "line", x: run.val[o.x].map(x.at), y, color: groupPen(run.group).color,
          dash: groupPen(run.group).dash, width: 1.5, runs: [i], isInMean: true};
}

// The mean of the validation losses of runs at the steps that all have, and one deviation around.
function meanCurve(runs, o) {
  const found = {x: [], y: [], low: [], high: []};
  const places = runs.map(run => new Map(run.val.step.map((step, i) => [step, i])));
  for (const step of runs[0].val.step) {
    if (!places.every(place => place.has(step))) continue;
    const numbers = places.map(place => place.get(step));
    const losses = runs.map((run, k) => inUnit(run.val.val_nll[numbers[k]], run, o.y));
    const middle = mean(losses), wide = deviation(losses);
    found.x.push(mean(runs.map((run, k) => run.val[o.x][numbers[k]])));
    found.y.push(middle);
    found.low.push(middle - wide);
    found.high.push(middle + wide);
  }
  return found;
}

// The standard deviation of a sample; 0 of a single value.
function deviation(values) {
  const middle = mean(values), squares = values.map(value => (value - middle) ** 2);
  return values.length < 2 ? 0 : Math.sqrt(squares.reduce((a, b) => a + b) / (values.length - 1));
}

// Quantities that no run shown has measured have no chart.
function drawSmall(o) {
  const x = axis(o.x, o.logx), found = new Map();
  for (const key of Object.keys(SMALL)) {
    const marks = [];
    for (const [run, i] of shownRuns()) {
      for (const kind of ["train", "val"].filter(kind => run[kind][key]?.length)) {
        const look = {...pen(i), runs: [i], width: 1.25};
        marks.push(curve(run, kind, x, o.x, run[kind][key], isMany() ? run.short : "", look));
      }
    }
    if (marks.length) found.set(key, marks);
  }
  for (const key of found.keys()) {  // all first: each is as wide as they leave it room
    if (!byId(key)) element("div", "", byId("small"), {id: key});
  }
  for (const key of Object.keys(SMALL)) {
    const marks = found.get(key);
    if (!marks) {
      hidePlot(key);
      continue;
    }
    // those of a run that diverges would leave no room for the others
    const calm = marks.filter(({runs}) => page.runs[runs[0]].status !== "diverged");
    const values = (calm.length ? calm : marks).flatMap(mark => mark.y);
    const y = {title: SMALL[key], range: padded(values, 0.05)};
    plot(key, marks, {key: [o.x, o.logx], together: true, x, y});
  }
}
