"use strict";
// A sweep: what differs, the loss against each option that varies, and a grid of two options.
const SENTENCES = 4;  // that are seen at once
const SPREAD = 8;  // the largest value over the smallest, from which the axis is logarithmic

// The loss of a run in the unit of the sweep: bits per byte, where runs have different tokens.
const inBits = () => page.sweep.unit === "bits per byte";
const sweepLoss = run => inBits() ? bitsPerByte(run) : bestLoss(run);

const varied = () => Object.entries(page.sweep.varied)
  .filter(([name, values]) => name !== "seed" && values.length > 1);

let drawnBefore = false;

function drawSweep() {
  byId("sweep").hidden = !page.sweep;
  byId("effects").hidden = !page.sweep?.unit;
  if (!page.sweep) return;
  if (inBits() && !drawnBefore) form.elements.y.value = "bits_per_byte";
  drawnBefore = true;
  drawProgress();
  drawSentences();
  if (!page.sweep.unit) return;  // the losses do not compare
  drawEffects();
  drawGrid();
}

function drawProgress() {
  const {runs, sweep} = page, place = byId("progress");
  const done = runs.filter(({status}) => !["waiting", "training"].includes(status)).length;
  place.replaceChildren();
  const bar = element("progress", "", place, {max: runs.length, value: done});
  bar.ariaLabel = `${done} of ${runs.length} runs have ended`;
  bar.hidden = !page.live;
  const code = element("code", "", place);
  for (const word of sweep.command.split(" ")) {
    element("span", word, code);
    code.append(" ");
  }
}

// What the differences are worth comes first.
function drawSentences() {
  const {sentences, differences, loss_on, remark} = page.sweep, place = byId("sentences");
  place.replaceChildren();
  const all = sentences.length ? sentences : differences.map(each => each.sentence);
  const isOpen = !all.length && page.sweep.unit && page.groups.length > 1;
  if (isOpen) element("p", "No differences yet: no two settings have ended.", place);
  all.slice(0, SENTENCES).forEach((text, i) =>
    element("p", text, place, {className: i ? "" : "lead"}));
  if (all.length > SENTENCES) {
    const more = element("details", "", place);
    element("summary", `${all.length - SENTENCES} more`, more);
    for (const text of all.slice(SENTENCES)) element("p", text, more);
  }
  element("p", `Losses on ${loss_on}${remark ? `; ${remark}` : ""}.`, place, {className: "dim"});
}

function sweepNotes() {
  const unit = page.sweep.unit ?? "nats per token";
  return [`Loss: mean ± standard deviation over the seeds, ${unit}`, "A row opens to its runs"];
}

// Where the values of an option stand: numbers at their places, or their logarithms if they are
// spread so; others side by side.
function optionAxis(name, values) {
  const numbers = values.map(Number), isNumber = numbers.every(isFinite);
  const low = lowest(numbers), high = highest(numbers);
  const isLog = isNumber && low > 0 && high / low >= SPREAD;
  const at = text => isLog ? Math.log10(Number(text)) : isNumber ? Number(text) : values.indexOf(text);
  const ticks = () => values.map(text => [at(text), text]).sort((a, b) => a[0] - b[0]);
  const places = values.map(at), room = 0.12 * (highest(places) - lowest(places) || 1);
  const range = [lowest(places) - room, highest(places) + room];
  return {at, axis: {title: isLog ? `${name} (log)` : name, ticks, range}};
}

// The loss against each option: points for the seeds, their mean, and its 95% interval. Groups that
// share all other options are joined by a line.
function drawEffects() {
  const place = byId("effects"), shown = varied();
  for (const [name] of shown) {
    const id = `effect of ${name}`;
    if (!byId(id)) element("div", "", byId("charts"), {id});
  }
  place.hidden = !shown.length;
  for (const [name, values] of shown) plot(`effect of ${name}`, ...effect(name, values));
}

function effect(name, values) {
  const {at, axis} = optionAxis(name, values), marks = [], lines = new Map();
  const measured = page.sweep.groups.map((group, i) => [group, i])
    .filter(([group]) => group.mean !== null);
  // the losses of groups that diverge would leave no room: the axis names them
  const shownGroups = measured.filter(([, i]) => !isBroken(i));
  const broken = new Set(measured.filter(([, i]) => isBroken(i)).map(([{options}]) => options[name]));
  for (const [{options}] of shownGroups) broken.delete(options[name]);
  const plain = axis.ticks;
  axis.ticks = () => plain().map(([place, text]) =>
    [place, broken.has(text) ? `${text} (diverged)` : text]);
  for (const [group, i] of shownGroups) {
    const others = Object.entries(group.options).filter(([option]) => option !== name);
    const key = others.map(([option, value]) => `${option}=${value}`).join(",");
    lines.set(key, [...lines.get(key) ?? [], [group, i]]);
  }
  for (const [key, own] of lines) {
    own.sort(([a], [b]) => at(a.options[name]) - at(b.options[name]));
    const x = own.map(([group]) => at(group.options[name])), y = own.map(([group]) => group.mean);
    const colors = own.map(([, i]) => groupPen(i).color);
    const runs = own.flatMap(([, i]) => numbersOf(i));
    if (own.length > 1) {
      const label = lines.size > 1 ? key : undefined;
      marks.push({kind: "line", x, y, color: dark.matches ? "#888" : "#999", width: 1, label, runs});
    }
    const known = own.filter(([group]) => group.low !== null);
    if (known.length) {
      marks.push({kind: "whiskers", x: known.map(([group]) => at(group.options[name])),
                  y: known.map(([group]) => group.mean), low: known.map(([group]) => group.low),
                  high: known.map(([group]) => group.high), width: 2,
                  color: known.map(([, i]) => groupPen(i).color)});
    }
    const tell = k => groupText(own[k][0]);
    marks.push({kind: "points", marker: "diamond", x, y, color: colors, size: 13, tell});
    const seeds = own.flatMap(([group, i]) => numbersOf(i).map(number => [group, i, number]))
      .filter(([, , number]) => page.runs[number].best_nll !== null);
    const run = k => page.runs[seeds[k][2]];
    const shift = 0.02 * (axis.range[1] - axis.range[0]);  // beside the mean
    marks.push({kind: "points", x: seeds.map(([group]) => at(group.options[name]) + shift),
                y: seeds.map((_, k) => sweepLoss(run(k))), size: 5, alpha: 0.8,
                color: seeds.map(([, i]) => groupPen(i).color),
                tell: k => `${sweepLoss(run(k)).toFixed(4)}: ${run(k).name}, ${run(k).status}`});
  }
  return [marks, {key: [name, values], x: axis, y: {title: `loss, ${page.sweep.unit}`}}];
}

// Whether no run of a group came to a loss that can be compared.
function isBroken(group) {
  const own = numbersOf(group).map(i => page.runs[i].status);
  return own.every(status => !["finished", "stopped early", "training"].includes(status));
}

const numbersOf = group => [...page.runs.keys()].filter(i => page.runs[i].group === group);

function groupText({name, mean, low, high, seeds}) {
  const interval = low === null ? "" : `, 95% interval ${low.toFixed(4)} to ${high.toFixed(4)}`;
  return `${mean.toFixed(4)}: ${name}, mean of ${seeds} seed${seeds > 1 ? "s" : ""}${interval}`;
}

// With exactly two options: a colour for each pair of values, the lowest loss the strongest.
function drawGrid() {
  const place = byId("grid"), options = varied();
  place.replaceChildren();
  place.hidden = options.length !== 2;
  if (place.hidden) return;
  const [[first, rows], [second, columns]] = options, {groups} = page.sweep;
  const means = groups.map(group => group.mean).filter(mean => mean !== null);
  const low = lowest(means), high = highest(means), made = element("table", "", place);
  const head = element("tr", "", made);
  element("th", `${first} ↓ ${second} →`, head);
  for (const value of columns) element("th", value, head, {className: "number"});
  for (const value of rows) {
    const row = element("tr", "", made);
    element("th", value, row, {className: "number"});
    for (const other of columns) {
      const number = groups.findIndex(({options}) =>
        options[first] === value && options[second] === other);
      drawCell(row, groups[number], number, {low, high});
    }
  }
}

function drawCell(row, group, number, {low, high}) {
  const isKnown = group && group.mean !== null;
  const cell = element("td", isKnown ? group.mean.toFixed(4) : group?.status ?? "", row);
  if (!isKnown) return cell.classList.add("dim");
  const share = (high - group.mean) / (high - low || 1);  // 1 is the best
  cell.style.background = `rgba(0, 114, 178, ${(0.06 + 0.79 * share ** 2).toFixed(3)})`;
  if (share ** 2 > 0.75) cell.style.color = "#fff";
  if (group.mean === low) cell.classList.add("best");
  if (group.deviation !== null) element("small", ` ± ${group.deviation.toFixed(4)}`, cell);
  cell.title = groupText(group);
  cell.runs = numbersOf(number);
  listenRow(cell);
}
