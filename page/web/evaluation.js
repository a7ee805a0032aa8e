"use strict";
// Is the model as sure as it is right, and where does its loss come from?
const GROUPS = {"context length": "tokens of context", "times in training": "times that the token was a target in the last 8 million tokens of training text", "kind of character": "kind of character"};

function drawEvaluation() {
  const runs = shownRuns().filter(([run]) => run.evaluation);
  byId("evaluation").hidden = !runs.length;
  if (!runs.length) return;
  const place = byId("calibration"), few = runs.some(([run]) => run.evaluation.targets < page.few_targets);
  place.replaceChildren();
  if (few) element("p", `With fewer than ${page.few_targets} targets, confidence and accuracy differ by chance.`, place);
  table([["", "targets", "mean confidence", "accuracy", "ECE", "temperature that fits best", "which would gain, nats per token"],
         ...runs.map(([run]) => [run.name, ...calibrationRow(run.evaluation)])], place, [1, 2, 3, 4, 5, 6]);
  element("p", "The confidence is the probability of the likeliest token. ECE, the expected calibration error, is the distance between confidence and accuracy in each of 15 bins, averaged over the targets. The temperature was fitted to these targets.", place);
  for (const [run] of runs) {
    const {confidence, temperature, at_end, nats_gained} = run.evaluation.calibration, accuracy = accuracyOf(run.evaluation), more = 100 * (confidence - accuracy);
    element("p", `${page.runs.length > 1 ? run.name : "The model"} is ${Math.abs(more) < 0.5 ? "about as sure as it is right" : more > 0 ? "overconfident" : "too careful"}: ` +
            `its mean confidence is ${Math.abs(more).toFixed(1)} points ${more > 0 ? "above" : "below"} its accuracy. ` +
            `Logits divided by ${temperature.toFixed(3)}${at_end ? ", the end of what was tried," : ""} would lower the loss by ${nats_gained.toFixed(4)} nats per token.`, place);
  }
  if (runs.length === 1) element("p", "The bars are the loss of some of the targets; the percentages below them are their shares of the whole loss.", place);
  const kinds = ["confidence", ...Object.keys(GROUPS).filter(kind => runs.some(([run]) => run.evaluation.groups[kind]))];
  for (const kind of kinds) {  // all first: each is as wide as they leave it room
    if (!byId(idOf(kind))) element("div", "", byId("groups"), {id: idOf(kind)});
  }
  for (const each of byId("groups").children) each.hidden = !kinds.some(kind => each.id === idOf(kind));
  const reliability = runs.flatMap(([run, i]) => {
    const bins = run.evaluation.groups.confidence ?? [], x = bins.map(bin => bin.confidence), y = bins.map(bin => bin.top1), {color, dash} = pen(i);
    return [{kind: "line", x, y, color, dash},
            {kind: "points", x, y, color, alpha: 0.7, size: bins.map(bin => 5 + 25 * Math.sqrt(bin.share)),
             tell: k => `${run.name}: confidence ${x[k].toFixed(3)}, accuracy ${y[k].toFixed(3)}, ${percent(bins[k].share)} of the targets`}];
  });
  plot(idOf("confidence"), [{kind: "line", x: [0, 1], y: [0, 1], color: "#888", dash: "dotted"}, ...reliability],
       {x: {title: "confidence, in 15 bins", range: [0, 1.02]}, y: {title: "accuracy", range: [0, 1.02]}});
  for (const kind of kinds.slice(1)) {
    const some = runs.filter(([run]) => run.evaluation.groups[kind]), width = 0.8 / some.length;
    const names = [...new Set(some.flatMap(([run]) => run.evaluation.groups[kind].map(each => each.name)))];
    plot(idOf(kind), some.map(([run, i], n) => {
      const groups = run.evaluation.groups[kind], y = groups.map(each => bits(each.nats_per_token));
      return {kind: "bars", x: groups.map(each => names.indexOf(each.name) - 0.4 + width * (n + 0.5)), y, width, color: pen(i).color,
              tell: k => `${groups[k].name}: ${y[k].toFixed(3)} bits, ${percent(groups[k].share)} of the targets, ${percent(groups[k].share_of_nats)} of the loss: ${run.name}`};
    }), {x: {title: GROUPS[kind], range: [-0.6, names.length - 0.4], ticks: () => names.map((name, k) =>
        [k, some.length > 1 ? name : `${name}: ${percent(some[0][0].evaluation.groups[kind][k].share_of_nats)}`])}, y: {title: "bits per token", fromZero: true}});
  }
  writePassages(runs[0][0]);
}

const accuracyOf = ({groups}) => (groups.confidence ?? []).reduce((sum, bin) => sum + bin.share * bin.top1, 0);

function calibrationRow(evaluation) {
  const {targets, calibration} = evaluation;
  return [whole.format(targets), `${(100 * calibration.confidence).toFixed(1)}%`, `${(100 * accuracyOf(evaluation)).toFixed(1)}%`,
          `${(100 * calibration.ece).toFixed(2)}%`, calibration.temperature.toFixed(3), calibration.nats_gained.toFixed(4)];
}

const idOf = kind => "of " + kind;

function writePassages(run) {
  const place = byId("passages");
  place.replaceChildren();
  for (const [kind, title] of [["hardest", "The hardest passages"], ["easiest", "The easiest passages"]]) {
    const passages = run.evaluation.passages[kind];
    if (!passages?.length) continue;
    element("h3", `${title}${page.runs.length > 1 ? ` of ${run.name}` : ""}`, place);
    for (const {nats_per_token, tokens, nll} of passages) {
      element("small", `${bits(nats_per_token).toFixed(2)} bits per token`, place);
      const text = element("div", "", place, {className: "text small"});
      tokens.forEach((token, i) => {
        const span = element("span", token, text, {className: nll[i] === null ? "masked" : "", title: nll[i] === null ? "" : `${bits(nll[i]).toFixed(2)} bits`});
        paint(span, bits(nll[i] ?? 0));
      });
    }
  }
}
