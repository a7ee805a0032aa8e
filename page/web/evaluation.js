"use strict";
// Is the model as sure as it is right, and where does its loss come from?
const GROUPS = {
  "context length": "tokens of context",
  "times in training": "times in the training text",
  "kind of character": "kind of character"};
const COLUMNS = ["", "targets", "mean confidence", "accuracy", "ECE", "temperature that fits best",
                 "which would gain, nats per token"];
const ABOUT_CALIBRATION =
  "The confidence is the probability of the likeliest token. ECE, the expected calibration " +
  "error, is the distance between confidence and accuracy in each of 15 bins, averaged over the " +
  "targets. The temperature was fitted to these targets.";
const FULL = 20;  // targets of a bin whose accuracy is drawn: of fewer it is chance
const SURE = 0.5;  // percentage points between confidence and accuracy that are no difference

const idOf = kind => "of " + kind;

function drawEvaluation() {
  const runs = shownRuns().filter(([run]) => run.evaluation);
  byId("evaluation").hidden = !runs.length;
  if (!runs.length) return;
  writeCalibration(runs.map(([run]) => run));
  const known = Object.keys(GROUPS).filter(kind =>
    runs.some(([run]) => run.evaluation.groups[kind]));
  placeGroups(["confidence", ...known]);
  drawReliability(runs);
  for (const kind of known) drawGroupsOf(kind, runs);
  writePassages(runs[0][0]);
  const [[first]] = runs, isSaid = page.curves && !isMany() && first.best;
  byId("evaluation").querySelector("h2 span").textContent =
    isSaid ? `of the best model, that of step ${whole.format(first.best.step)}` : "";
}

// All first: each is as wide as they leave it room.
function placeGroups(kinds) {
  for (const kind of kinds) {
    if (!byId(idOf(kind))) element("div", "", byId("groups"), {id: idOf(kind)});
  }
  for (const place of byId("groups").children)
    place.hidden = !kinds.some(kind => place.id === idOf(kind));
}

function writeCalibration(runs) {
  const place = byId("calibration");
  place.replaceChildren();
  if (runs.some(run => run.evaluation.targets < page.few_targets))
    element("p", `With fewer than ${page.few_targets} targets, confidence and accuracy differ by ` +
            "chance.", place);
  const rows = runs.map(run => [run.name, ...calibrationRow(run.evaluation)]);
  table([COLUMNS, ...rows], place, [1, 2, 3, 4, 5, 6]);
  element("p", ABOUT_CALIBRATION, place);
  for (const run of runs) element("p", describeCalibration(run), place);
  if (runs.length === 1)
    element("p", "The bars are the loss of some of the targets; the percentages below them are " +
            "their shares of the whole loss.", place);
}

function calibrationRow(evaluation) {
  const {targets, calibration} = evaluation;
  const inPercent = (share, digits) => `${(100 * share).toFixed(digits)}%`;
  return [whole.format(targets), inPercent(calibration.confidence, 1),
          inPercent(accuracyOf(evaluation), 1), inPercent(calibration.ece, 2),
          calibration.temperature.toFixed(3), calibration.nats_gained.toFixed(4)];
}

function accuracyOf({groups}) {
  const bins = groups.confidence ?? [];
  return bins.reduce((sum, bin) => sum + bin.share * bin.top1, 0);
}

function describeCalibration(run) {
  const {confidence, temperature, at_end, nats_gained} = run.evaluation.calibration;
  const more = 100 * (confidence - accuracyOf(run.evaluation));
  const name = isMany() ? run.name : "The model";
  let kind = more > 0 ? "overconfident" : "too careful";
  if (Math.abs(more) < SURE) kind = "about as sure as it is right";
  const side = more > 0 ? "above" : "below";
  const end = at_end ? ", the end of what was tried," : "";
  return `${name} is ${kind}: its mean confidence is ${Math.abs(more).toFixed(1)} points ${side} ` +
    `its accuracy. Logits divided by ${temperature.toFixed(3)}${end} would lower the loss by ` +
    `${nats_gained.toFixed(4)} nats per token.`;
}

// The accuracy in each bin of confidence; on the diagonal, a model is as sure as it is right.
function drawReliability(runs) {
  const marks = [{kind: "line", x: [0, 1], y: [0, 1], color: "#888", dash: "dotted"}];
  for (const [run, i] of runs) {
    const all = run.evaluation.groups.confidence ?? [], {color, dash} = pen(i);
    const full = all.filter(bin => bin.tokens >= FULL), bins = full.length ? full : all;
    const x = bins.map(bin => bin.confidence), y = bins.map(bin => bin.top1);
    const tell = k => `${run.name}: confidence ${x[k].toFixed(3)}, accuracy ${y[k].toFixed(3)}, ` +
      `${percent(bins[k].share)} of the targets`;
    const size = bins.map(bin => 5 + 25 * Math.sqrt(bin.share));
    marks.push({kind: "line", x, y, color, dash});
    marks.push({kind: "points", x, y, color, alpha: 0.7, size, tell});
  }
  const x = {title: `confidence, in bins of ${FULL} or more targets`, range: [0, 1.02]};
  plot(idOf("confidence"), marks, {x, y: {title: "accuracy", range: [0, 1.02]}});
}

// Of a long training text only the end was counted.
function titleOfTimes(some) {
  const [run] = some.find(([{counted, train_tokens: all}]) => counted < all) ?? [];
  if (!run) return GROUPS["times in training"];
  return `times in the last ${whole.format(run.counted)} training tokens`;
}

// The loss of each group of targets, a bar for each run.
function drawGroupsOf(kind, runs) {
  const some = runs.filter(([run]) => run.evaluation.groups[kind]), width = 0.8 / some.length;
  const groupsOf = run => run.evaluation.groups[kind];
  const names = [...new Set(some.flatMap(([run]) => groupsOf(run).map(each => each.name)))];
  const marks = some.map(([run, i], n) => {
    const groups = groupsOf(run), y = groups.map(each => bits(each.nats_per_token));
    const x = groups.map(each => names.indexOf(each.name) - 0.4 + width * (n + 0.5));
    const tell = k => `${groups[k].name}: ${y[k].toFixed(3)} bits, ` +
      `${percent(groups[k].share)} of the targets, ` +
      `${percent(groups[k].share_of_nats)} of the loss: ${run.name}`;
    return {kind: "bars", x, y, width, color: pen(i).color, tell};
  });
  const [[first]] = some;
  const shareOf = k => percent(groupsOf(first)[k].share_of_nats);
  const label = (name, k) => some.length > 1 ? name : `${name}: ${shareOf(k)}`;
  const ticks = () => names.map((name, k) => [k, label(name, k)]);
  const title = kind === "times in training" ? titleOfTimes(some) : GROUPS[kind];
  plot(idOf(kind), marks, {x: {title, range: [-0.6, names.length - 0.4], ticks},
                           y: {title: "bits per token", fromZero: true}});
}

function writePassages(run) {
  const place = byId("passages"), {hardest, easiest} = run.evaluation.passages;
  const ofRun = isMany() ? ` of ${run.name}` : "";
  place.replaceChildren();
  const kinds = [["The hardest passages", hardest], ["The easiest passages", easiest]];
  for (const [title, passages] of kinds) {
    if (!passages?.length) continue;
    element("h3", title + ofRun, place);
    for (const passage of passages) writePassage(passage, place);
  }
}

function writePassage({nats_per_token, tokens, nll}, place) {
  element("small", `${bits(nats_per_token).toFixed(2)} bits per token`, place);
  const text = element("div", "", place, {className: "text small"});
  text.append("…");  // it is cut anywhere
  for (const [i, token] of tokens.entries()) {
    const span = element("span", token, text);
    paint(span, bits(nll[i] ?? 0));
    if (nll[i] === null) span.className = "masked";
    else span.title = `${bits(nll[i]).toFixed(2)} bits`;
  }
  text.append("…");
}
