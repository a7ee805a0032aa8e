"use strict";
// The panel beside the text: what the model said before a token, and what that token cost.
const LEAST_WIDEST = 12;  // bits of the widest bar, at least
const BEFORE = 18, AFTER = 8;  // characters of the context that are shown
const COSTS_SHOWN = 8;  // baselines and other runs

// A row of a small chart: a name, a bar as long as a share, and a number.
function barRow(name, share, number, parent, look = "") {
  const row = element("div", "", parent, {className: `bar ${look}`});
  element("span", name, row, {className: "name", title: name});
  const track = element("span", "", row, {className: "track"});
  element("i", "", track).style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  element("span", number, row, {className: "number"});
  return row;
}

// What the model said before token i, and what that cost.
function describeToken(i) {
  const place = byId("token");
  const paid = Object.keys(others).filter(name => name !== NO_TABLES);
  const lines = Math.min(COSTS_SHOWN, paid.length) + ("gzip" in others ? 1 : 0);
  place.style.setProperty("--costs", lines);
  byId("passage").style.setProperty("--tables", heightOfTables(readText()));
  place.replaceChildren();
  describeContext(i, place);
  const isMasked = evaluationNow().nll[i] === null;
  describeCost(i, place);
  if (isMasked) return;
  if (evaluationNow().top) drawPrediction(i, place);
  drawTokenTables(i, place);
  drawCosts(i, place);
  describeSum(i, place);
}

function describeContext(i, place) {
  const {tokens} = readText(), line = element("div", "", place, {className: "context text"});
  const before = tokens.slice(0, i).join(""), after = tokens.slice(i + 1).join("");
  element("span", endOf(before, BEFORE), line);
  element("strong", tokens[i], line);
  element("span", startOf(after, AFTER), line, {className: "dim"});
}

function describeCost(i, place) {
  const now = evaluationNow(), text = readText(), nll = now.nll[i];
  const first = element("div", "", place, {className: "cost"}), second = element("div", "", place);
  const third = element("div", "", place);
  if (nll === null) {
    first.textContent = "masked: the model did not have to predict it";
    return;
  }
  element("b", `${bits(nll).toFixed(2)} bits`, first);
  first.append(` = probability ${percent(Math.exp(-nll))}`);
  if (!now.rank) return;
  const isTied = now.rank[i] <= now.top[i].length && !now.top[i].includes(text.ids[i]);
  const rank = `rank ${whole.format(now.rank[i])} of ${whole.format(text.vocab_size)}`;
  second.textContent = isTied ? `${rank}, as others` : rank;
  if (i === costliest()) second.append(`; the costliest of ${whole.format(now.nll.length)}`);
  const entropy = entropyOf(now, i);
  if (entropy === null) return;
  const expected = bits(entropy).toFixed(1), came = bits(nll).toFixed(1);
  third.textContent = `expected ${expected} bits (its entropy), paid ${came}`;
}

// The same for who hears the page.
function sayToken(i) {
  const {nll, rank} = evaluationNow(), name = quote(readText().tokens[i]);
  if (nll[i] === null) return `${name}: masked`;
  if (!rank) return `${name}: ${bits(nll[i]).toFixed(2)} bits`;
  return `${name}: ${bits(nll[i]).toFixed(2)} bits, rank ${whole.format(rank[i])}`;
}

const visible = token => token.replaceAll(" ", "␣");

// The surprisal that the model expected; null in files of earlier editions, and where it is masked.
const entropyOf = (evaluation, i) => evaluation.entropy[i] ?? null;

// The five likeliest tokens, and the one that came, wherever it ranks.
function drawPrediction(i, place) {
  const now = evaluationNow(), text = readText(), came = text.ids[i];
  element("h3", "Its prediction", place);
  const chart = element("div", "", place, {className: "likely"});
  let rest = 1;
  for (const [k, token] of now.top[i].entries()) {
    const q = Math.exp(now.log_q[i][k]);
    rest -= q;
    barRow(visible(text.names[token]), q, percent(q), chart, token === came ? "came" : "");
  }
  if (!now.top[i].includes(came)) {
    const q = Math.exp(-now.nll[i]);
    rest -= q;
    barRow(visible(text.tokens[i]), q, percent(q), chart, "came");
  }
  barRow("others", rest, percent(Math.max(0, rest)), chart, "rest");
}

// Names and bits of all that was paid for token i, the model's own cost first.
function costsOf(i) {
  const found = [];
  for (const [name, values] of Object.entries(others)) {
    if (values[i] !== null && name !== NO_TABLES) found.push([name, bits(values[i])]);
  }
  return found.slice(0, COSTS_SHOWN);
}

// Bits of the widest bar of the panel: all of its bars share a scale.
function widestBits(i) {
  const now = evaluationNow(), byLongest = tablesOf(readText())?.by_longest[i] ?? [];
  const nats = [now.nll[i], entropyOf(now, i) ?? 0, ...byLongest];
  return Math.max(LEAST_WIDEST, ...nats.map(bits), ...costsOf(i).map(([, cost]) => cost));
}

function drawCosts(i, place) {
  const now = evaluationNow(), entropy = entropyOf(now, i);
  element("h3", "Bits that it cost", place);
  const chart = element("div", "", place);
  const widest = widestBits(i);
  const add = (name, cost, look) => barRow(name, cost / widest, cost.toFixed(2), chart, look);
  const isNamed = page.along || page.runs.length > 1;
  add(isNamed ? labelOf(readingRun) : "this model", bits(now.nll[i]), "own");
  if (entropy !== null) add("its entropy", bits(entropy), "expected");
  for (const [name, cost] of costsOf(i)) add(name, cost, "other");
  if (others.gzip)
    element("div", "gzip pays whole bytes, match by match", place, {className: "dim"});
}

function describeSum(i, place) {
  const costs = evaluationNow().nll.slice(0, i + 1).filter(nll => nll !== null);
  const sum = bits(sumOf(costs)), each = (sum / costs.length).toFixed(2);
  const word = tokenWord(readingRun);
  element("div", `up to here ${sum.toFixed(1)} bits, ${each} a ${word}`, place, {className: "dim"});
}
