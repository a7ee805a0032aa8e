"use strict";
// Many runs: how each ended, the table, which are shown, and which is pointed at.
const picker = document.getElementById("picker");
const TROUBLES = ["stopped early", "diverged", "interrupted", "failed"];  // whose runs are named
const STATUSES = ["finished", "training", "waiting", ...TROUBLES];
const NAMED = 6;  // runs of a status by their names
let order = {id: "loss", down: false};
let reference = null;  // the number of the run from which differences are told; null: the best
let opened = new Map();  // whether somebody has opened or closed a group, by its name

const LOSSES = {nats: "loss, nats", bits_per_byte: "loss, bits/byte", perplexity: "perplexity"};

const bestLoss = run => run.best_nll ?? run.best?.val_nll ?? Infinity;
const isMeasured = run => !page.curves || Number.isFinite(run.best_nll);
// The table has the unit of the curves.
const tableUnit = () => page.curves ? form.elements.y.value : "nats";
const lossIn = (run, unit) => isFinite(bestLoss(run)) ? inUnit(bestLoss(run), run, unit) : null;

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
    breakable(`${names}${more}`, element("span", "", line, {className: "dim"}));
  }
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

// A column has what it sorts by, which is null where there is nothing, and its text; of a group of
// seeds too, if there are groups. Rough values are of runs that were not measured at their end.
function columnsShown() {
  const unit = tableUnit(), isRough = run => !isMeasured(run);
  const soFar = (text, run) => text && isRough(run) ? `${text} so far` : text;
  const name = {id: "name", title: "run", value: run => run.name, of: group => group.name};
  const status = {id: "status", title: "status", value: run => STATUSES.indexOf(run.status),
                  text: run => run.status,
                  of: ({runs}) => highest(runs.map(([run]) => STATUSES.indexOf(run.status)))};
  const spread = page.sweep && hasSeeds() ? " ± SD" : "";
  const loss = {id: "loss", title: LOSSES[unit] + spread, isNumber: true, isRough,
                value: run => lossIn(run, unit), of: group => group.mean,
                text: run => soFar(lossIn(run, unit)?.toFixed(4) ?? "", run),
                group: ({mean, deviation}) => mean === null ? ""
                  : mean.toFixed(4) + (deviation === null ? "" : ` ± ${deviation.toFixed(4)}`)};
  const inBits = run => lossIn(run, "bits_per_byte");
  const bitsColumn = {id: "bits", title: "bits/byte", isNumber: true, isRough, value: inBits,
                      text: run => inBits(run)?.toFixed(3) ?? "", of: group => group.bits,
                      group: each => each.bits?.toFixed(3) ?? ""};
  const seconds = {id: "seconds", title: "seconds", isNumber: true,
                   value: run => run.seconds || null,
                   text: run => run.seconds ? secondsText(run.seconds) : "",
                   of: group => group.seconds,
                   group: each => each.seconds === null ? "" : secondsText(each.seconds)};
  const bitsColumns = unit === "bits_per_byte" ? [] : [bitsColumn];
  if (page.sweep) {
    const seeds = {id: "seeds", title: "seeds", isNumber: true, value: () => null, text: () => "",
                   of: group => group.seeds, group: seedsText};
    return [name, loss, status, seeds, ...bitsColumns, seconds];
  }
  // what differs in most runs comes first
  const usual = ([, values]) => highest(values.map(each => values.filter(v => v === each).length));
  const options = Object.entries(page.options).sort((a, b) => usual(a) - usual(b));
  const optionColumns = options.map(([option, values]) => {
    const isNumber = values.every(value => value === "" || isFinite(value));
    const value = (run, i) => isNumber && values[i] !== "" ? Number(values[i]) : values[i];
    return {id: `option ${option}`, title: option, isNumber, value, text: (run, i) => values[i]};
  });
  const from = referenceRun();
  const difference = {id: "difference", title: "difference", isNumber: true, isRough,
                      value: (run, i) => i === from ? 0 : differenceFrom(i, from)?.value,
                      text: (run, i) => differenceText(i)};
  const speeds = {id: "speed", title: "tokens/s", isNumber: true, value: run => speed(run) || null,
                  text: run => speed(run) ? short(speed(run)) : ""};
  if (!page.curves) return [name, loss, difference, bitsColumn];
  return [name, loss, difference, status, ...optionColumns, ...bitsColumns, seconds, speeds];
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
  const shown = shownRuns(), bare = shown.filter(([run]) => page.curves && !run.val.step?.length);
  picker.querySelector("output").textContent = `${shown.length} of ${page.runs.length} runs shown` +
    (bare.length ? `, ${bare.length} without a curve yet` : "");
  drawNotes();
  byId("more").hidden = place.scrollWidth <= place.clientWidth;
  const pointed = document.querySelector("#runs tbody tr:hover, #grid td:hover");
  if (lit && isLitByRow) setLit(pointed?.runs);
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

// Sorts by a value. What has none comes last in both directions, and what is rough before that.
function sortBy(items, value, isRough = () => false) {
  const isMissing = each => each === null || each === undefined || each === "";
  const sign = order.down ? -1 : 1;
  const keyed = items.map(item => {
    const own = value(item);
    return {item, own, rank: isMissing(own) ? 2 : isRough(item) ? 1 : 0};
  });
  keyed.sort((a, b) => a.rank - b.rank || (a.rank < 2 ? sign * compare(a.own, b.own) : 0));
  return keyed.map(({item}) => item);
}

// Numbers within texts are compared as numbers: learning_rate=0.003 comes before 0.01.
function compare(a, b) {
  const [own, others] = [a, b].map(each => String(each).split(/[,=]/));
  for (let i = 0; i < Math.min(own.length, others.length); i++) {
    const numbers = [Number(own[i]), Number(others[i])], areNumbers = numbers.every(isFinite);
    const [left, right] = areNumbers ? numbers : [own[i], others[i]];
    if (left !== right) return left < right ? -1 : 1;
  }
  return own.length - others.length;
}

// Runs on other targets come after the others: their losses are not comparable.
function drawSections(body, columns, found) {
  const column = columns.find(({id}) => id === order.id) ?? columns[0];
  const isRough = ([run]) => column.isRough?.(run);
  const sorted = sortBy(found, ([run, i]) => column.value(run, i), isRough);
  for (const target of page.targets.keys()) {
    const own = sorted.filter(([run]) => run.target === target);
    if (!own.length) continue;
    if (target > 0) {
      const row = element("tr", "", body, {className: "section"});
      const text = `Other targets, not ranked with the runs above: ${page.targets[target]}`;
      element("th", text, row, {colSpan: columns.length + 1});
    }
    const best = lowest(own.map(([run]) => run).filter(isMeasured).map(bestLoss));
    if (page.sweep) drawGroups(body, columns, own, column);
    else for (const [run, i] of own) drawRun(body, columns, run, i, best);
  }
}

function drawGroups(body, columns, own, {of}) {
  const groups = page.sweep.groups.map((group, number) => {
    const runs = own.filter(([run]) => run.group === number);
    const ticked = runs.filter(([, i]) => !hidden.has(i));
    return {...figuresOf(number, ticked.length ? ticked : runs), number, runs, name: group.name};
  }).filter(({runs}) => runs.length);
  const means = groups.map(({mean}) => mean).filter(each => each !== null);
  const best = lossesCompare() && means.length > 1 ? lowest(means) : NaN;
  for (const group of sortBy(groups, of)) drawGroup(body, columns, group, group.mean === best);
}

// Whether something went wrong in some of a group's runs: these are seen at once.
const hasTrouble = runs => new Set(runs.map(run => run.status)).size > 1 &&
  runs.some(run => TROUBLES.includes(run.status));

function drawGroup(body, columns, group, isBest) {
  const {name, number, runs, isPart} = group, numbers = runs.map(([, i]) => i);
  const isEven = new Set(runs.map(([run]) => run.status)).size === 1;
  const isOpen = opened.get(name) ?? hasTrouble(numbersOf(number).map(i => page.runs[i]));
  const row = element("tr", "", body, {className: isPart ? "group part" : "group", runs: numbers});
  drawTick(element("td", "", row), name, numbers, groupPen(number));
  for (const {id, group: text, isNumber} of columns) {
    const look = isNumber ? "number" : `of-${id}`, strong = isBest && id === "loss" ? " best" : "";
    const cell = element("td", "", row, {className: look + strong});
    if (id === "name") drawToggle(cell, name, isOpen);
    else if (id === "status" && isEven) cell.append(statusOf(runs[0][0].status));
    else if (id === "status") drawStatuses(cell, runs);
    else cell.textContent = text(group);
    if (isNumber && group.seeds < group.total) cell.title = `${seedsText(group)} runs${
      isPart ? " are shown and" : ""} measured`;
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
  breakable(`${isOpen ? "▾" : "▸"}\u00a0${name}`, element("button", "", cell, look));
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
  for (const {id, value, text = value, isNumber, isRough} of columns) {
    const cell = element("td", "", row, {className: isNumber ? "number" : `of-${id}`});
    if (isRough?.(run)) cell.classList.add("dim");
    if (id === "name") drawName(cell, run);
    else if (id === "status") drawStatus(cell, run);
    else cell.textContent = cell.title = text(run, i);
    if (id === "loss" && isMeasured(run) && bestLoss(run) === best) cell.classList.add("best");
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
  if (!run.hasReport) return breakable(text, element("span", "", cell, {title: run.name}));
  const look = {href: `${pathOf(run)}/report.html`, title: `${run.name}: its own page`};
  breakable(text, element("a", "", cell, look));
}

function drawStatus(cell, run) {
  const far = howFar(run);
  cell.append(statusOf(run.status));
  cell.title = run.reason || `${run.status} ${far}`.trim();
  if (far) element("div", far, cell, {className: "dim far"});
  if (run.reason) element("div", run.reason, cell, {className: "dim reason"});
}

// How far a run has come that has not ended.
function howFar({status, step, max_iters: last}) {
  if (!last || !["training", "interrupted"].includes(status)) return "";
  if (step < last) return `at step ${whole.format(step)} of ${whole.format(last)}`;
  return `after its last step, ${status === "training" ? "being" : "before it was"} measured`;
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
  row.onpointerenter = row.onfocus = () => setLit(row.runs, true);
  row.onpointerleave = row.onblur = () => setLit(null);
}

function lightRows() {
  for (const row of document.querySelectorAll("#runs tbody tr, #grid td")) {
    const isLit = Boolean(lit && row.runs?.some(run => lit.includes(run)));
    row.classList.toggle("lit", isLit);
  }
  const first = document.querySelector("#runs tr.lit");
  const place = document.querySelector("#runs .wide");
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
  const nor = page.sweep ? ", nor in a mean" : "";
  if (isPart)
    notes.push("So far: the lowest on a part of that text; the run has not been measured at its " +
               `end, and is not ranked${nor}`);
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
