"use strict";
// How the bits of the passage are spread over its tokens: a few costly ones make the mean.
const COSTLY = 0.1;  // a share of the tokens
// Where each bin begins, and its name.
const SURPRISALS = [[0, "below ½"], [0.5, "½ to 1"], [1, "1 to 2"], [2, "2 to 3"], [3, "3 to 5"],
                    [5, "5 to 8"], [8, "8 or more"]];
const RANKS = [[1, "1"], [2, "2 to 5"], [6, "6 to 10"], [11, "11 or more"]];

function drawSpread() {
  const now = evaluationNow(), targets = [];  // those that are not masked
  for (const [i, nll] of now.nll.entries()) {
    if (nll !== null) targets.push({cost: bits(nll), rank: now.rank?.[i]});
  }
  byId("spread").hidden = !targets.length;
  if (!targets.length) return;
  byId("costly").textContent = sayWhoPays(targets.map(({cost}) => cost));
  drawBins("surprisals", "bits of a token", SURPRISALS, targets, ({cost}) => cost);
  byId("ranks").hidden = !now.rank;
  if (now.rank) drawBins("ranks", "rank of a token", RANKS, targets, ({rank}) => rank);
}

function sayWhoPays(costs) {
  const sorted = [...costs].sort((a, b) => b - a);
  const count = Math.max(1, Math.round(COSTLY * sorted.length));
  const all = sumOf(sorted), costly = sumOf(sorted.slice(0, count));
  const median = sorted[Math.floor(sorted.length / 2)], mean = all / sorted.length;
  return `A tenth of the tokens pays ${percent(costly / (all || 1))} of the bits: the ${count} ` +
    `costliest of ${sorted.length} cost ${(costly / count).toFixed(1)} bits each. ` +
    `The mean is ${mean.toFixed(2)} bits; half of the tokens cost at most ${median.toFixed(2)}.`;
}

// For each bin two bars: its share of the tokens, and its share of the bits.
function drawBins(id, title, bins, targets, valueOf) {
  const place = byId(id), counts = bins.map(() => 0), costs = bins.map(() => 0);
  for (const target of targets) {
    const bin = Math.max(0, bins.findLastIndex(([from]) => valueOf(target) >= from));
    counts[bin] += 1;
    costs[bin] += target.cost;
  }
  const all = sumOf(costs);
  place.replaceChildren();
  element("small", `${title}: share of the tokens`, place);
  element("small", "share of the bits", place);
  for (const [k, [, name]] of bins.entries()) {
    const tokens = counts[k] / targets.length, paid = costs[k] / (all || 1);
    barRow(name, tokens, percent(tokens), place, "other");
    barRow(name, paid, percent(paid), place, "own");
  }
}
