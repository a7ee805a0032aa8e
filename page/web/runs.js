"use strict";
// The table of runs: which are shown, sorted by any column.
const MANY = 8;  // runs whose curves can be told apart at once
let order = {column: -1, down: false};

// All runs, or the best ones where there are many.
function firstTicks() {
  const numbers = page.runs.map((_, i) => i);
  return new Set(numbers.length <= MANY ? numbers : numbers.sort((a, b) => bestLoss(page.runs[a]) - bestLoss(page.runs[b])).slice(0, MANY));
}

const bestLoss = run => run.best_nll ?? run.best?.val_nll ?? Infinity;

// A title, the value to sort by, and the text.
const COLUMNS = [
  ["run", run => run.name, run => run.name],
  ["loss, nats", bestLoss, run => isFinite(bestLoss(run)) ? bestLoss(run).toFixed(4) + (run.best_nll === null ? " *" : "") : ""],
  ["nats above the first", run => run.difference ? run.difference.value : -Infinity, run => run.difference ? difference(run.difference) : ""],
  ["bits/byte", run => bits(bestLoss(run)) / run.bytes_per_target, run => isFinite(bestLoss(run)) ? (bits(bestLoss(run)) / run.bytes_per_target).toFixed(3) : ""],
  ["seconds", run => run.seconds, run => short(run.seconds)],
  ["tokens/s", speed, run => short(speed(run))],
  ["differs from the defaults", run => run.options, run => run.options],
  ["text", run => `${run.corpus} (${run.tokenizer})`, run => `${run.corpus} (${run.tokenizer})`]];
const NUMBERS = ["loss, nats", "nats above the first", "bits/byte", "seconds", "tokens/s"];  // columns that stand to the right

function speed(run) {
  const speeds = [...run.train.tokens_per_second ?? []].sort((a, b) => a - b);
  return speeds[speeds.length >> 1] ?? 0;  // the median
}

// With half the width of the 95% interval, or of 95% of the resamples of one text.
function difference({unit, value, low, high}) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)} ± ${((high - low) / 2).toFixed(4)}${unit === "nats_per_token" ? "" : " b/byte"}`;
}

function drawRuns() {
  const section = byId("runs"), place = section.firstElementChild;
  section.hidden = page.runs.length < 2;
  if (section.hidden) return;
  place.replaceChildren();
  const columns = COLUMNS.filter(([title, value]) => title !== "text" || new Set(page.runs.map(value)).size > 1);
  const made = element("table", "", place), head = element("tr", "", made), value = (columns[order.column] ?? [])[1];
  const look = title => ({className: NUMBERS.includes(title) ? "number" : "run"});
  element("th", "", head);
  columns.forEach(([title], column) => {
    const cell = element("th", "", head, {...look(title), ariaSort: column !== order.column ? "none" : order.down ? "descending" : "ascending"});
    element("button", title + (column !== order.column ? "" : order.down ? " ▾" : " ▴"), cell,
            {onclick: () => { order = {column, down: column === order.column && !order.down}; drawRuns(); place.querySelectorAll("button")[column].focus(); }});
  });
  element("th", page.val_kind, head);
  const sorted = page.runs.map((run, i) => [run, i]);
  if (value) sorted.sort(([a], [b]) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (order.down ? -1 : 1));
  for (const [run, i] of sorted) {
    const row = element("tr", "", made), first = element("td", "", row), label = element("label", "", first);
    label.append(Object.assign(document.createElement("input"), {type: "checkbox", checked: ticked.has(i), ariaLabel: `show ${run.name}`,
      onchange: event => { event.target.checked ? ticked.add(i) : ticked.delete(i); drawAll(); }}));
    const swatch = element("span", "", label, {className: "swatch"}), {color, dash} = pen(i);
    swatch.style.borderTopColor = color;
    swatch.style.borderTopStyle = dash;
    for (const [title, , text] of columns) element("td", text(run), row, look(title));
    element("td", "", row).append(sparkline(run, color));
  }
  const notes = [];
  if (page.curves) notes.push(`The loss is that of the best model on the ${page.val_kind} text`);
  else notes.push(`The loss is that on this text: ${[...new Set(page.runs.map(run => `${whole.format(run.targets)} targets`))].join(", ")}`);
  if (page.runs.some(run => run.targets < page.few_targets)) notes.push(`It is too short to tell whether the difference is noise: fewer than ${page.few_targets} targets`);
  else if (page.runs.some(run => run.difference)) {
    notes.push(page.runs.some(run => run.difference && !run.difference.of_documents)
      ? "± says how much the difference varies over the parts of this text: 95% of resamples of them are within it. Another text or another seed may differ by more"
      : "± gives the 95% interval for other documents of the same source, if these are a random sample of it. Another seed may also differ");
    notes.push(`The first run is ${page.runs[0].name}`);
  }
  if (page.runs.some(run => run.best_nll === null)) notes.push(`* is the lowest loss so far, on a part of the ${page.val_kind} text`);
  if (notes.length) element("p", notes.join(". ") + ".", place);
}

// The validation loss over the logarithm of the steps, small.
function sparkline(run, color) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), line = document.createElementNS(svg.namespaceURI, "polyline");
  const y = run.val.val_nll ?? [], low = Math.min(...y), high = Math.max(...y), end = Math.log1p(run.val.step?.at(-1) || 1);
  const points = y.map((nll, i) => `${100 * Math.log1p(run.val.step[i]) / end},${1 + 20 * (high - nll) / (high - low || 1)}`);
  for (const [name, value] of Object.entries({width: 100, height: 22, role: "img", "aria-label": `${run.val_kind} loss over steps`})) svg.setAttribute(name, value);
  for (const [name, value] of Object.entries({points: points.join(" "), fill: "none", stroke: color, "stroke-width": 1.5})) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}
