"use strict";
// What tables of n-grams are worth: the cost of a token, and of a passage, as they are left out.
const NO_TABLES = "without tables";  // its name among those that paid for the same tokens

// The evaluation of the best model with tables left out, which is made when a training ends; its
// row of a token has the nats with n-grams of at most 1, 2, ... tokens. Undefined without tables.
const tablesOf = text => text.evaluations.findLast(each => each.by_longest);

// From the longest n-grams to none.
const fromLongest = row => row.map((value, k) => ({n: k + 1, value})).reverse();

// What n-grams of 2, 3, ... tokens save of the costs without them.
const savedByEach = row => row.slice(1).map((value, k) => row[k] - value);

// The last n tokens before token i; those before the passage are not known.
function ngramBefore(i, n) {
  const text = visible(readText().tokens.slice(Math.max(0, i - n), i).join(""));
  return i < n ? `…${text}` : text;
}

function drawTokenTables(i, place) {
  const measured = tablesOf(readText());
  if (!measured) return;
  const row = measured.by_longest[i].map(bits), saved = savedByEach(row);
  const step = whole.format(measured.step), isNow = measured === evaluationNow();
  const changes = saved.map(Math.abs), most = changes.indexOf(Math.max(...changes)) + 2;
  element("h3", `${isNow ? "Bits with" : `Step ${step}:`} n-grams of at most`, place);
  const chart = element("div", "", place, {className: "ngrams"}), widest = widestBits(i);
  for (const {n, value} of fromLongest(row)) {
    const name = n > 1 ? ngramBefore(i, n) : "none", look = n === most ? "own most" : "own";
    barRow(name, value / widest, value.toFixed(2), chart, look);
  }
  const change = saved[most - 2], says = change < 0 ? "costs" : "saves";
  const text = `${quote(ngramBefore(i, most))} ${says} ${Math.abs(change).toFixed(2)} bits`;
  element("div", text, place, {className: "dim"});
}

// The height of this in the panel.
function heightOfTables(text) {
  const rows = tablesOf(text)?.by_longest.find(row => row).length;
  return rows ? `${(3.25 + 1.1 * rows).toFixed(2)}rem` : "0rem";
}

// What the whole passage costs with n-grams of at most n tokens.
function drawTables() {
  const place = byId("tables"), measured = readingRun && tablesOf(readText());
  place.hidden = !measured;
  if (!measured) return;
  const {y: unit} = options(), word = tokenWord(readingRun), row = meansOf(measured.by_longest);
  const titles = {nats: `nats a ${word}`, bits_per_byte: "bits a byte", perplexity: "perplexity"};
  const values = row.map(nats => inUnit(nats, readingRun, unit)), saved = savedByEach(values);
  const most = Math.max(...saved), number = value => value.toFixed(3);
  const first = number(values.at(-1));
  const all = unit === "perplexity" ? `perplexity ${first}` : `${first} ${titles[unit]}`;
  byId("leans").textContent =
    `This passage has ${all} with all tables, and ${number(values[0])} without tables. ` +
    `The n-grams of ${saved.indexOf(most) + 2} ${word}s save most: ${number(most)}.`;
  const chart = byId("ngrams");
  chart.replaceChildren();
  element("small", `${titles[unit]}, with n-grams of at most`, chart);
  for (const {n, value} of fromLongest(values)) {
    const name = n > 1 ? `${n} ${word}s` : "none";
    barRow(name, value / Math.max(...values), number(value), chart, "own");
  }
}

function meansOf(rows) {
  const known = rows.filter(row => row !== null);
  return known[0].map((_, k) => sumOf(known.map(row => row[k])) / known.length);
}

byId("units").addEventListener("input", drawTables);
