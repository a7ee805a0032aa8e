"use strict";
// Many runs: how each ended, the table, which are shown, and which is pointed at.
const picker = document.getElementById("picker");
const TROUBLES = ["stopped early", "diverged", "interrupted", "failed"];  // whose runs are named
const STATUSES = ["finished", "training", "waiting", ...TROUBLES];
const NAMED = 6;  // runs of a status by their names
let order = {id: "loss", down: false};
let reference = null;  // the number of the run from which differences are told; null: the best
let opened = new Map();  // whether somebody has opened or closed a group, by its name

const bestLoss = run => run.best_nll ?? run.best?.val_nll ?? Infinity;
const bitsPerByte = run => bits(bestLoss(run)) / run.bytes_per_target;

// Filter: every word is in a run's name, its options, its status or its text.
function isFound(run) {
  const text = [run.name, run.short, run.options, run.status, run.corpus, run.tokenizer];
  const found = text.join(" ").toLowerCase();
  return filter.toLowerCase().split(/\s+/).every(word => found.includes(word));
}

function pick() {
  filter = picker.elements.filter.value.trim();
  drawRuns();
  drawAll();
}

function showOnly(isWanted) {
  page.runs.forEach((run, i) => {
    if (isFound(run)) isWanted ? hidden.delete(i) : hidden.add(i);
  });
  drawRuns();
  drawAll();
}

// How many runs have which status, and the names of those that something happened to.
function drawOverview() {
  const place = byId("overview"), byStatus = new Map();
  place.replaceChildren();
  place.hidden = !isMany() || !page.curves;
  for (const run of page.runs) byStatus.set(run.status, [...byStatus.get(run.status) ?? [], run]);
  for (const status of STATUSES.filter(each => byStatus.has(each))) {
    const runs = byStatus.get(status);
    const line = element("span", "", place);
    line.append(statusOf(status, runs.length));
    if (!TROUBLES.includes(status)) continue;
    const names = runs.slice(0, NAMED).map(run => run.name).join("; ");
    const more = runs.length > NAMED ? `; and ${runs.length - NAMED} more` : "";
    line.append(": ");
    element("span", `${names}${more}`, line, {className: "dim"});
  }
}

function statusOf(status, count = 0) {
  const text = count ? `${count} ${status}` : status;
  return element("span", text, null, {className: `status ${status.replace(" ", "-")}`});
}

// The run from which differences are told: the best of those with the most frequent targets that
// were measured on all of them.
function referenceRun() {
  if (reference !== null && reference in page.runs) return reference;
  if (!page.curves) return 0;
  const numbers = [...page.runs.keys()].filter(i => page.runs[i].target === 0);
  const exact = numbers.filter(i => page.runs[i].best_nll !== null);
  const best = (a, b) => bestLoss(page.runs[b]) < bestLoss(page.runs[a]) ? b : a;
  return (exact.length ? exact : numbers).reduce(best);
}

// How much higher a run's loss is than another's, with the interval where both were evaluated.
function differenceFrom(i, from) {
  for (const {runs: [a, b], value, low, high, ...more} of page.pairs) {
    if (a === from && b === i) return {value, low, high, ...more};
    if (a === i && b === from) return {value: -value, low: -high, high: -low, ...more};
  }
  const [own, other] = [page.runs[i], page.runs[from]];
  const value = bestLoss(own) - bestLoss(other);
  if (i === from || own.target !== other.target || !isFinite(value)) return null;
  return {value, unit: "nats_per_token"};
}

// With half the width of the 95% interval.
function differenceText(i) {
  const from = referenceRun(), found = differenceFrom(i, from);
  if (i === from) return "reference";
  if (!found) return "";
  const {unit, value, low, high} = found;
  const wide = low === undefined ? "" : ` ± ${((high - low) / 2).toFixed(4)}`;
  const sign = value < 0 ? "−" : "+";
  return `${sign}${Math.abs(value).toFixed(4)}${wide}${unit === "nats_per_token" ? "" : " b/byte"}`;
}

const secondsText = value => value < 10 ? value.toFixed(1) : whole.format(value);

function speed(run) {
  const speeds = [...run.train.tokens_per_second ?? []].sort((a, b) => a - b);
  return speeds[speeds.length >> 1] ?? 0;  // the median
}

// A column has what it sorts by, and its text; of a group of seeds too, if there are groups.
function columnsShown() {
  const isExact = run => !page.curves || run.best_nll !== null;
  const lossOf = run => page.sweep ? sweepLoss(run) : bestLoss(run);
  const lossText = run => !isFinite(lossOf(run)) ? ""
    : lossOf(run).toFixed(4) + (isExact(run) ? "" : " *");
  const name = {id: "name", title: "run", value: run => run.name};
  const status = {id: "status", title: "status", value: run => run.status};
  const loss = {id: "loss", title: page.sweep && inBits() ? "loss, bits/byte" : "loss, nats", isNumber: true,
                value: lossOf, text: lossText,
                group: ({mean, deviation}) => mean === null ? ""
                  : mean.toFixed(4) + (deviation === null ? "" : ` ± ${deviation.toFixed(4)}`)};
  const bitsColumn = {id: "bits", title: "bits/byte", isNumber: true, value: bitsPerByte,
                      text: run => isFinite(bitsPerByte(run)) ? bitsPerByte(run).toFixed(3) : "",
                      group: each => each.bits_per_byte?.toFixed(3) ?? ""};
  const seconds = {id: "seconds", title: "seconds", isNumber: true, value: run => run.seconds,
                   text: run => run.seconds ? secondsText(run.seconds) : "",
                   group: each => each.seconds === null ? "" : secondsText(each.seconds)};
  if (page.sweep) {
    const seeds = {id: "seeds", title: "seeds", isNumber: true, value: run => -run.seeds,
                   text: () => "", group: each => String(each.seeds)};
    return [name, loss, status, seeds, ...inBits() ? [] : [bitsColumn], seconds];
  }
  // what differs in most runs comes first
  const usual = ([, values]) => highest(values.map(each => values.filter(v => v === each).length));
  const options = Object.entries(page.options).sort((a, b) => usual(a) - usual(b));
  const optionColumns = options.map(([option, values]) => {
    const isNumber = values.every(value => value === "" || isFinite(value));
    const value = (run, i) => isNumber ? Number(values[i]) : values[i];
    return {id: `option ${option}`, title: option, isNumber, value, text: (run, i) => values[i]};
  });
  const difference = {id: "difference", title: "difference", isNumber: true,
                      value: (run, i) => differenceFrom(i, referenceRun())?.value ?? 0,
                      text: (run, i) => differenceText(i)};
  const speeds = {id: "speed", title: "tokens/s", isNumber: true, value: speed,
                  text: run => speed(run) ? short(speed(run)) : ""};
  if (!page.curves) return [name, loss, difference, bitsColumn];
  return [name, loss, difference, status, ...optionColumns, bitsColumn, seconds, speeds];
}

function drawRuns() {
  const section = byId("runs"), place = section.querySelector(".wide");
  section.hidden = !isMany();
  if (section.hidden) return;
  const focused = document.activeElement?.closest?.("#runs th")?.dataset.id;
  const scrolled = [place.scrollTop, place.scrollLeft], columns = columnsShown();
  place.replaceChildren();
  const made = element("table", "", place), head = element("tr", "", element("thead", "", made));
  element("th", "", head);
  for (const column of columns) drawHead(head, column);
  const body = element("tbody", "", made), found = page.runs.map((run, i) => [run, i]);
  drawSections(body, columns, found.filter(([run]) => isFound(run)));
  if (focused) place.querySelector(`th[data-id="${CSS.escape(focused)}"] button`)?.focus();
  [place.scrollTop, place.scrollLeft] = scrolled;
  const shown = shownRuns().length;
  picker.querySelector("output").textContent = `${shown} of ${page.runs.length} runs shown`;
  drawNotes();
  lightRows();
}

function drawHead(head, {id, title, isNumber}) {
  const isSorted = id === order.id, arrow = order.down ? " ▾" : " ▴";
  const sorting = !isSorted ? "none" : order.down ? "descending" : "ascending";
  const cell = element("th", "", head, {className: isNumber ? "number" : "", ariaSort: sorting});
  cell.dataset.id = id;
  const sort = () => {
    order = {id, down: isSorted && !order.down};
    drawRuns();
  };
  element("button", title + (isSorted ? arrow : ""), cell, {onclick: sort});
}

// Runs on other targets come after the others: their losses are not comparable.
function drawSections(body, columns, found) {
  const {value} = columns.find(({id}) => id === order.id) ?? columns[0];
  const sign = order.down ? -1 : 1;
  const compare = (a, b) => sign * (a < b ? -1 : a > b ? 1 : 0);
  const sorted = [...found].sort(([a, i], [b, k]) => compare(value(a, i), value(b, k)));
  for (const target of page.targets.keys()) {
    const own = sorted.filter(([run]) => run.target === target);
    if (!own.length) continue;
    if (target > 0) {
      const row = element("tr", "", body, {className: "section"});
      const text = `Other targets, not ranked with the runs above: ${page.targets[target]}`;
      element("th", text, row, {colSpan: columns.length + 1});
    }
    const measured = own.map(([run]) => run).filter(run => !page.curves || run.best_nll !== null);
    const best = lowest(measured.map(bestLoss));
    if (page.sweep) drawGroups(body, columns, own, {value, compare});
    else for (const [run, i] of own) drawRun(body, columns, run, i, best);
  }
}

function drawGroups(body, columns, own, {value, compare}) {
  const groups = page.sweep.groups.map((group, number) => {
    const runs = own.filter(([run]) => run.group === number);
    return {...group, number, runs, name: group.name};
  }).filter(({runs}) => runs.length);
  if (order.id !== "loss" || order.down) {
    const sorting = ({runs, ...group}) => order.id === "loss" ? group.mean ?? Infinity
      : order.id === "seeds" ? group.seeds : value(...runs[0]);
    groups.sort((a, b) => compare(sorting(a), sorting(b)));
  }
  for (const group of groups) drawGroup(body, columns, group, page.sweep.unit && group.number === 0);
}

function drawGroup(body, columns, group, isBest) {
  const {name, number, runs} = group, numbers = runs.map(([, i]) => i);
  const isEven = new Set(runs.map(([run]) => run.status)).size === 1;
  const hasTrouble = !isEven && runs.some(([run]) => TROUBLES.includes(run.status));
  const isOpen = opened.get(name) ?? hasTrouble;
  const row = element("tr", "", body, {className: "group", runs: numbers});
  drawTick(element("td", "", row), name, numbers, groupPen(number));
  for (const {id, group: text, isNumber} of columns) {
    const look = isNumber ? "number" : `of-${id}`, strong = isBest && id === "loss" ? " best" : "";
    const cell = element("td", "", row, {className: look + strong});
    if (id === "name") drawToggle(cell, name, isOpen);
    else if (id === "status" && isEven) cell.append(statusOf(runs[0][0].status));
    else if (id === "status") drawStatuses(cell, runs);
    else cell.textContent = text(group);
  }
  listenRow(row);
  if (isOpen) for (const [run, i] of runs) drawRun(body, columns, run, i, NaN);
}

function drawToggle(cell, name, isOpen) {
  const toggle = () => {
    opened.set(name, !isOpen);
    drawRuns();
  };
  const look = {className: "toggle", ariaExpanded: isOpen, onclick: toggle};
  element("button", `${isOpen ? "▾" : "▸"} ${name}`, cell, look);
}

function drawStatuses(cell, runs) {
  const statuses = runs.map(([run]) => run.status);
  for (const status of new Set(statuses))
    cell.append(statusOf(status, statuses.filter(each => each === status).length), " ");
}

function drawRun(body, columns, run, i, best) {
  const isReference = !page.sweep && i === referenceRun();
  const row = element("tr", "", body, {runs: [i], className: isReference ? "reference" : ""});
  if (page.sweep) row.classList.add("inner");
  drawTick(element("td", "", row), run.name, [i], rowPen(i));
  for (const {id, value, text = value, isNumber} of columns) {
    const cell = element("td", "", row, {className: isNumber ? "number" : `of-${id}`});
    if (id === "name") drawName(cell, run);
    else if (id === "status") drawStatus(cell, run);
    else cell.textContent = cell.title = text(run, i);
    if (id === "loss" && value(run) === best) cell.classList.add("best");
  }
  listenRow(row);
  if (page.sweep) return;
  const choose = event => {
    if (event.target.closest("a, button, label, input")) return;
    reference = i;
    drawRuns();
    draw();
  };
  row.onclick = choose;
  row.tabIndex = 0;
  row.onkeydown = event => { if (event.key === "Enter") choose(event); };
}

function drawName(cell, run) {
  const text = page.sweep ? run.inner : run.name;
  if (!run.hasReport) return element("span", text, cell, {title: run.name});
  element("a", text, cell, {href: `${pathOf(run)}/report.html`, title: `${run.name}: its own page`});
}

function drawStatus(cell, run) {
  cell.append(statusOf(run.status));
  cell.title = run.reason ?? "";
  if (run.reason) element("div", run.reason, cell, {className: "dim reason"});
}

function drawTick(cell, name, numbers, {color, dash}) {
  const label = element("label", "", cell), some = numbers.some(i => !hidden.has(i));
  const change = event => {
    for (const i of numbers) event.target.checked ? hidden.delete(i) : hidden.add(i);
    drawRuns();
    drawAll();
  };
  const look = {type: "checkbox", checked: some, ariaLabel: `show ${name}`, onchange: change};
  label.append(Object.assign(document.createElement("input"), look), swatch({color, dash}));
}

// Pointing at a row shows its curve, and the reverse.
function listenRow(row) {
  row.onpointerenter = () => setLit(row.runs);
  row.onpointerleave = () => setLit(null);
  row.onfocus = () => setLit(row.runs);
  row.onblur = () => setLit(null);
}

function lightRows() {
  for (const row of document.querySelectorAll("#runs tbody tr, #grid td")) {
    const isLit = Boolean(lit && row.runs?.some(run => lit.includes(run)));
    row.classList.toggle("lit", isLit);
  }
  const first = document.querySelector("#runs tr.lit"), place = document.querySelector("#runs .wide");
  if (!first || place.matches(":hover")) return;
  const row = first.getBoundingClientRect(), box = place.getBoundingClientRect();
  if (row.top < box.top + 30) place.scrollTop -= box.top + 30 - row.top;
  else if (row.bottom > box.bottom) place.scrollTop += row.bottom - box.bottom;
}

// What the numbers of the table are, above it, where they are seen.
function drawNotes() {
  const place = byId("notes"), notes = [];
  place.replaceChildren();
  const isPart = page.runs.some(run => page.curves && run.best_nll === null && run.best);
  if (page.sweep) notes.push(...sweepNotes());
  else if (page.curves) notes.push(`Loss: of the best model, on the ${page.val_kind} text`);
  else {
    const counts = new Set(page.runs.map(run => `${whole.format(run.targets)} targets`));
    notes.push(`Loss: on this text, ${[...counts].join(", ")}`);
  }
  if (isPart) notes.push("*: the lowest so far, on a part of that text");
  if (!page.sweep) notes.push(...differenceNotes());
  element("p", `${notes.join(". ")}.`, place);
}

function differenceNotes() {
  const notes = [], from = page.runs[referenceRun()].name;
  const known = page.pairs.filter(({runs}) => runs.includes(referenceRun()));
  notes.push(`Difference: above the loss of ${from}; click a row to choose another reference`);
  if (page.runs.some(run => run.targets < page.few_targets))
    notes.push("It is too short to tell whether the difference is noise: fewer than " +
               `${page.few_targets} targets`);
  else if (known.some(pair => !pair.of_documents))
    notes.push("±: 95% of resamples of the parts of this text. Another text or another seed may " +
               "differ by more");
  else if (known.length)
    notes.push("±: 95% interval for other documents of the same source, if these are a random " +
               "sample of it. Another seed may also differ");
  return notes;
}
