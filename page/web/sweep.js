"use strict";
// A sweep: what differs, the loss against each option that varies, and a grid of two options.
const SENTENCES = 4;  // that are seen at once
const SPREAD = 8;  // the largest value over the smallest, from which the axis is logarithmic

// Of Student's t for a 95% interval, by its degrees of freedom; an expansion of it for more.
const STUDENT = [NaN, 12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.306, 2.2622,
                 2.2281];
const student = n => STUDENT[n] ?? 1.96 + 2.3723 / n + 2.8225 / n ** 2 + 2.5558 / n ** 3;

// Where runs have different tokens, only bits per byte compare.
const inBits = () => page.sweep.unit === "bits per byte";
const lossesCompare = () => page.sweep.unit && (!inBits() || tableUnit() === "bits_per_byte");

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
}

// What follows the filter, the ticks and the unit; nothing if the losses do not compare.
function drawComparison() {
  if (!page.sweep?.unit) return;
  drawEffects();
  drawGrid();
}

function drawProgress() {
  const {runs, sweep} = page, place = byId("progress"), done = ended().length;
  place.replaceChildren();
  const bar = element("progress", "", place, {max: runs.length, value: done});
  bar.ariaLabel = `${done} of ${runs.length} runs have ended`;
  bar.hidden = !isRunning();
  const goesOn = !isRunning() && done < runs.length;
  const label = goesOn ? "The same command goes on, and keeps what is done:" : "Made by:";
  const line = element("div", `${label} `, place);
  const code = element("code", "", line);
  for (const word of sweep.command.split(" ")) {
    element("span", word, code);
    code.append(" ");
  }
  element("button", "copy", line, {onclick: event => copy(sweep.command, event.target)});
  const {others} = sweep;
  const what = others > 1 ? "runs that are" : "run that is";
  if (others) element("div", `The folder has ${others} more ${what} not of this sweep.`, place);
}

const isRunning = () => page.live && !page.isSilent;
const ended = () => page.runs.filter(({status}) =>
  !["waiting", "training", "interrupted"].includes(status));

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
  const notes = ["Loss: mean of the measured seeds ± their standard deviation (SD)"];
  const groups = page.sweep.groups.map((_, number) => numbersOf(number).map(i => page.runs[i]));
  if (hasSeeds()) notes.push("▸ opens the runs of a setting" + (groups.some(hasTrouble)
    ? "; those in which something went wrong are open" : ""));
  return notes;
}

// The mean of some runs of a group, in the unit of the table: of those that are measured.
function figuresOf(number, runs) {
  const isKnown = i => isMeasured(page.runs[i]), all = numbersOf(number);
  const own = runs.map(([run]) => run).filter(isMeasured), seeds = own.length;
  const found = {seeds, total: all.length, isPart: seeds < all.filter(isKnown).length,
                 mean: null, deviation: null, low: null, high: null, bits: null, seconds: null};
  if (!seeds) return found;
  const losses = own.map(run => lossIn(run, tableUnit())), middle = mean(losses);
  Object.assign(found, {mean: middle, bits: mean(own.map(run => lossIn(run, "bits_per_byte"))),
                        seconds: median(own.map(run => run.seconds).filter(Boolean))});
  if (seeds === 1) return found;
  const wide = deviation(losses);
  if (wide < 1e-9) return Object.assign(found, {deviation: 0});  // runs of the same steps
  const half = student(seeds - 1) * wide / Math.sqrt(seeds);
  return Object.assign(found, {deviation: wide, low: middle - half, high: middle + half});
}

const seedsText = ({seeds, total}) => seeds < total ? `${seeds} of ${total}` : String(seeds);

function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length ? mean([sorted[half], sorted.at(-half - 1)]) : null;
}

// The groups of the runs that are shown, as far as they are measured.
function shownGroups() {
  const shown = shownRuns(), groups = page.sweep.groups.map((group, number) => {
    const runs = shown.filter(([run]) => run.group === number);
    return {...group, ...figuresOf(number, runs), number, runs};
  });
  return groups.filter(group => group.mean !== null);
}

// Where the values of an option stand: numbers at their places, or their logarithms if they are
// spread so; others side by side.
function optionAxis(name, values) {
  const numbers = values.map(Number), isNumber = numbers.every(isFinite);
  const low = lowest(numbers), high = highest(numbers);
  const isLog = isNumber && low > 0 && high / low >= SPREAD;
  const at = text => {
    if (!isNumber) return values.indexOf(text);
    return isLog ? Math.log10(Number(text)) : Number(text);
  };
  const ticks = () => values.map(text => [at(text), text]).sort((a, b) => a[0] - b[0]);
  const places = values.map(at), room = 0.12 * (highest(places) - lowest(places) || 1);
  const range = [lowest(places) - room, highest(places) + room];
  return {at, axis: {title: isLog ? `${name} (log)` : name, ticks, range}};
}

// The loss against each option: points for the seeds, their mean, and its 95% interval. Groups that
// share all other options are joined by a line.
function drawEffects() {
  const place = byId("effects"), options = varied(), groups = shownGroups();
  for (const [name] of options) {
    const id = `effect of ${name}`;
    if (!byId(id)) element("div", "", byId("charts"), {id});
    if (groups.length) plot(id, ...effect(name, page.sweep.varied[name], groups));
    else hidePlot(id);
  }
  place.hidden = !options.length || !groups.length;
  byId("bars").hidden = groups.every(({low}) => low === null);
  byId("few").hidden = groups.every(({seeds}) => seeds !== 2);
}

function effect(name, values, measured) {
  const {at, axis} = optionAxis(name, values), marks = [], lines = new Map();
  const placeOf = group => at(group.options[name]), colorOf = ({number}) => groupPen(number).color;
  // the losses of groups that diverge would leave no room: the axis names them
  const groups = measured.filter(({number}) => !isBroken(number));
  const broken = new Set(measured.map(({options}) => options[name]));
  for (const {options} of groups) broken.delete(options[name]);
  const plain = axis.ticks;
  axis.ticks = () => plain().map(([place, text]) =>
    [place, broken.has(text) ? `${text} (diverged)` : text]);
  for (const group of groups) {
    const others = Object.entries(group.options).filter(([option]) => option !== name);
    const key = others.map(([option, value]) => `${option}=${value}`).join(",");
    lines.set(key, [...lines.get(key) ?? [], group]);
  }
  for (const [key, own] of lines) {
    own.sort((a, b) => placeOf(a) - placeOf(b));
    const x = own.map(placeOf), y = own.map(group => group.mean), color = own.map(colorOf);
    if (own.length > 1) {
      // one line of all groups belongs to no run more than to others
      const runs = own.flatMap(({number}) => numbersOf(number));
      const more = lines.size > 1 ? {label: key, runs} : {};
      marks.push({kind: "line", x, y, color: isDark() ? "#888" : "#999", width: 1, ...more});
    }
    const known = own.filter(({low}) => low !== null);
    if (known.length) {
      marks.push({kind: "whiskers", x: known.map(placeOf), y: known.map(group => group.mean),
                  low: known.map(({low}) => low), high: known.map(({high}) => high), width: 2,
                  color: known.map(colorOf)});
    }
    marks.push({kind: "points", marker: "diamond", x, y, color, size: 13,
                tell: k => groupText(own[k])});
    marks.push(seedPoints(own, placeOf, axis.range[1] - axis.range[0]));
  }
  const title = `loss, ${UNITS[tableUnit()].replace("cross-entropy, ", "")}`;
  const y = {title: title.replace("loss, perplexity", "perplexity")};
  return [marks, {key: [name, values], x: axis, y}];
}

// The runs of groups: points beside the mean, each a little further so that equal losses are seen.
function seedPoints(groups, placeOf, width) {
  const points = groups.flatMap(group => {
    const runs = group.runs.map(([run]) => run).filter(isMeasured);
    const shift = k => width * (0.02 + (runs.length > 1 ? 0.035 * k / (runs.length - 1) : 0));
    const loss = run => lossIn(run, tableUnit());
    return runs.map((run, k) => ({run, x: placeOf(group) + shift(k), loss: loss(run)}));
  });
  return {kind: "points", x: points.map(({x}) => x), y: points.map(({loss}) => loss), size: 5,
          alpha: 0.8, color: points.map(({run}) => groupPen(run.group).color),
          tell: k => {
            const {loss, run} = points[k];
            return `${loss.toFixed(4)}: ${run.name}, ${run.status}`;
          }};
}

// Whether no run of a group came to a loss that can be compared.
function isBroken(group) {
  const own = numbersOf(group).map(i => page.runs[i].status);
  return own.every(status => !["finished", "stopped early", "training"].includes(status));
}

const numbersOf = group => [...page.runs.keys()].filter(i => page.runs[i].group === group);

function groupText({name, mean, low, high, seeds, total}) {
  const few = seeds === 2 ? ", wide as there are only 2" : "";
  const of = seeds < total ? ` of ${total}` : "", seed = total > 1 ? "seeds" : "seed";
  const said = `${mean.toFixed(4)}: ${name}, mean of ${seeds}${of} ${seed}`;
  if (low === null) return said;
  return `${said}\n95% interval ${low.toFixed(4)} to ${high.toFixed(4)}${few}`;
}

// With exactly two options: a colour for each pair of values, the lowest loss the strongest.
function drawGrid() {
  const place = byId("grid"), options = varied();
  place.replaceChildren();
  place.hidden = options.length !== 2;
  byId("celled").hidden = place.hidden;
  if (place.hidden) return;
  const [[first, rows], [second, columns]] = options, groups = shownGroups();
  const means = groups.map(group => group.mean);
  const low = lowest(means), high = highest(means), made = element("table", "", place);
  const head = element("tr", "", made);
  element("th", `${first} ↓ ${second} →`, head);
  for (const value of columns) element("th", value, head, {className: "number"});
  for (const value of rows) {
    const row = element("tr", "", made);
    element("th", value, row, {className: "number"});
    for (const other of columns) {
      const isHere = ({options}) => options[first] === value && options[second] === other;
      const group = groups.find(isHere);
      if (group) drawCell(row, group, {low, high});
      else element("td", page.sweep.groups.some(isHere) ? "–" : "", row, {className: "dim"});
    }
  }
}

function drawCell(row, group, {low, high}) {
  const cell = element("td", group.mean.toFixed(4), row);
  const share = (high - group.mean) / (high - low || 1);  // 1 is the best
  cell.style.background = `rgba(0, 114, 178, ${(0.06 + 0.79 * share ** 2).toFixed(3)})`;
  if (share ** 2 > 0.75) cell.style.color = "#fff";
  if (group.mean === low && lossesCompare()) cell.classList.add("best");
  if (group.deviation !== null) element("small", ` ± ${group.deviation.toFixed(4)}`, cell);
  cell.title = groupText(group);
  cell.runs = numbersOf(group.number);
  listenRow(cell);
}
