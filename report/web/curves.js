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

// Where a place stands on the x axis: the logarithm begins at the first evaluation, so that step 0 has a place too.
function axis(name, log) {
  const places = page.runs.flatMap(run => [...run.val[name], ...run.train[name]]);
  const first = Math.min(...places.filter(place => place > 0), Infinity), last = Math.max(...places, 0);
  if (!log || !isFinite(first)) return {at: place => place, shown: {title: {text: AXES[name]}}};
  const at = place => Math.log10(place / first + 1), ticks = [0];
  for (let power = Math.ceil(Math.log10(first)); 10 ** power < last / 1.8; power++) ticks.push(10 ** power);
  ticks.push(last);
  return {at, shown: {title: {text: AXES[name]}, tickvals: ticks.map(at), ticktext: ticks.map(short)}};
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
  const all = [...found.values()], label = each => {
    const same = all.filter(({name}) => name === each.name), owners = new Set(same.map(({owner}) => owner));
    return same.length === 1 ? each.name : `${each.name} (${owners.size === same.length ? each.owner : each.run})`;
  };
  return all.map(each => [label(each), each.value]).sort((a, b) => a[1] - b[1]);
}

function series(run, kind, x, y, look) {
  const text = run[kind][look.place].map(short);
  return {x: run[kind][look.place].map(x.at), y, customdata: text, name: plain(run.name), hovertemplate:
          `%{y:.4f} at %{customdata} ${AXES[look.place]}<extra>${plain(look.label)}</extra>`, ...look.style};
}

function drawCurves(o) {
  const x = axis(o.x, o.logx);
  const shared = {uirevision: [o.x, o.logx, o.y, o.logy].join(), xaxis: {unifiedhovertitle: {text: " "}, ...x.shown}};
  drawLoss(o, x, shared);
  drawSmall(o, x, shared);
}

function drawLoss(o, x, shared) {
  const traces = [], shapes = [], annotations = [];
  for (const [run, i] of shownRuns()) {
    const {color, dash} = pen(i);
    const train = smooth(run.train.train_nll, Number(o.smooth)).map(nats => inUnit(nats, run, o.y));
    const val = run.val.val_nll.map(nats => inUnit(nats, run, o.y));
    if (ticked.size <= FEW) traces.push(series(run, "train", x, train, {place: o.x, label: `training, ${run.name}`, style:
      {mode: "lines", line: {color, width: 1, dash}, opacity: dark.matches ? 0.8 : 0.5}}));
    traces.push(series(run, "val", x, val, {place: o.x, label: `validation, ${run.name}`, style:
      {mode: val.length > MARKED ? "lines" : "lines+markers", line: {color, width: 2.5, dash}, marker: {size: 4}}}));
    if (!run.val.val_nll.length) continue;
    const best = run.val.val_nll.indexOf(Math.min(...run.val.val_nll)), place = run.val[o.x][best];
    const nats = run.best_nll ?? run.val.val_nll[best];
    traces.push({x: [x.at(place)], y: [inUnit(nats, run, o.y)], mode: "markers",
      marker: {symbol: "star", size: 15, color, line: {color: "white", width: 1}},
      hovertemplate: `best: %{y:.4f}${run.best_nll ? " on all validation targets" : ""}<extra>${plain(run.name)}</extra>`});
    if (run.val.val_nll.at(-1) > run.val.val_nll[best] + page.overfitting_rise)
      shapes.push({type: "rect", yref: "paper", y0: 0, y1: 1, x0: x.at(place), x1: x.at(run.val[o.x].at(-1)),
                   fillcolor: color, opacity: 0.1, line: {width: 0}});
  }
  const height = Math.max(200, byId("loss").clientHeight - 75);
  const scale = value => o.logy ? Math.log10(value) : value;
  const lines = o.baselines ? findBaselines(o.y).map(([name, value]) => [name, value, scale(value)]) : [];
  const values = [...traces.flatMap(trace => trace.y.map(scale)), ...lines.map(line => line[2])].filter(isFinite);
  const ceiling = lines.length ? Math.max(...lines.map(line => line[2])) : Math.max(...values);  // log|V|
  const low = Math.min(...values), room = 0.04 * (ceiling - low), range = [low - room, ceiling + room];
  let below = -Infinity;  // labels stand one above the other
  for (const [name, value, at] of lines) {
    const wanted = (at - range[0]) / (range[1] - range[0]) * height, y = Math.max(wanted, below + 15);
    below = y;
    shapes.push({type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: {width: 1, dash: "dot", color: "#888"}});
    annotations.push({xref: "paper", x: 1, xanchor: "left", y: at, ax: 12, ay: wanted - y, arrowhead: 0, arrowwidth: 0.7, font: {size: 12},
                      text: `${plain(name)} ${value.toPrecision(4)}`});
  }
  form.querySelector("output").textContent = o.smooth;
  const width = Math.max(0, ...annotations.map(({text}) => text.length));  // characters
  Plotly.react("loss", traces, layout({...shared, shapes, annotations, hovermode: "x unified", modebar: {bgcolor: "transparent"},
    margin: {l: 60, r: lines.length ? Math.min(30 + 6 * width, 0.42 * byId("loss").clientWidth) : 20, t: 30, b: 45},
    yaxis: {title: {text: UNITS[o.y]}, type: o.logy ? "log" : "linear", tickformat: o.logy ? ",.4~g" : "", range}}), CONFIG);
}

function drawSmall(o, x, shared) {
  const keys = Object.keys(SMALL).filter(key => page.runs.some(run => run.train[key] || run.val[key]));
  for (const key of keys) {  // all of them first: each is as wide as they leave it room
    if (!byId(key)) element("div", "", byId("small"), {id: key});
  }
  for (const key of keys) {
    const traces = shownRuns().flatMap(([run, i]) => ["train", "val"].filter(kind => run[kind][key]).map(kind =>
      series(run, kind, x, run[kind][key], {place: o.x, label: run.name, style: {mode: "lines", line: {...pen(i), width: 1.5}}})));
    plot(key, traces, {...shared, yaxis: {title: {text: SMALL[key]}}, margin: {l: 60, r: 10, t: 10, b: 40}});
  }
}
