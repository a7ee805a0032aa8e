"use strict";
// Is the model as sure as it is right, and where does its loss come from?
const GROUPS = {"context length": "tokens of context", "times in training": "times that the token came in training", "kind of character": "kind of character"};

function drawEvaluation() {
  const runs = shownRuns().filter(([run]) => run.evaluation);
  byId("evaluation").hidden = !runs.length;
  if (!runs.length) return;
  const place = byId("calibration");
  place.replaceChildren();
  table([["", "targets", "mean confidence", "accuracy", "ECE", "temperature that fits best", "which would gain, nats per token"],
         ...runs.map(([run]) => [run.name, ...calibrationRow(run.evaluation)])], place, [1, 2, 3, 4, 5, 6]);
  element("p", "The confidence is the probability of the likeliest token. ECE, the expected calibration error, is the mean distance between confidence and accuracy in 15 bins. The temperature was fitted to these targets.", place);
  for (const [run] of runs) {
    const {confidence, temperature, at_end, nats_gained} = run.evaluation.calibration, accuracy = accuracyOf(run.evaluation), more = 100 * (confidence - accuracy);
    element("p", `${page.runs.length > 1 ? run.name : "The model"} is ${Math.abs(more) < 0.5 ? "about as sure as it is right" : more > 0 ? "overconfident" : "too careful"}: ` +
            `its mean confidence is ${Math.abs(more).toFixed(1)} points ${more > 0 ? "above" : "below"} its accuracy. ` +
            `Logits divided by ${temperature.toFixed(3)}${at_end ? ", the end of what was tried," : ""} would lower the loss by ${nats_gained.toFixed(4)} nats per token.`, place);
  }
  const kinds = ["confidence", ...Object.keys(GROUPS).filter(kind => runs.some(([run]) => run.evaluation.groups[kind]))];
  byId("groups").replaceChildren();
  for (const kind of kinds) element("div", "", byId("groups"), {id: idOf(kind)});  // all first: each is as wide as they leave it room
  const reliability = runs.map(([run, i]) => {
    const bins = run.evaluation.groups.confidence ?? [];
    return {x: bins.map(bin => bin.confidence), y: bins.map(bin => bin.top1), text: bins.map(bin => percent(bin.share)), mode: "lines+markers",
            line: pen(i), marker: {size: bins.map(bin => 5 + 25 * Math.sqrt(bin.share)), opacity: 0.7},
            hovertemplate: `confidence %{x:.3f}, accuracy %{y:.3f}, %{text} of the targets<extra>${plain(run.name)}</extra>`};
  });
  plot(idOf("confidence"), [{x: [0, 1], y: [0, 1], mode: "lines", line: {color: "#888", dash: "dot"}, hoverinfo: "skip"}, ...reliability],
            {xaxis: {title: {text: "confidence, in 15 bins"}, range: [0, 1.02]}, yaxis: {title: {text: "accuracy"}, range: [0, 1.02]}, hovermode: "closest"});
  for (const kind of kinds.slice(1)) {
    plot(idOf(kind), runs.filter(([run]) => run.evaluation.groups[kind]).map(([run, i]) => {
      const groups = run.evaluation.groups[kind];
      return {type: "bar", x: groups.map(each => each.name), y: groups.map(each => bits(each.nats_per_token)), marker: {color: pen(i).color},
              text: groups.map(each => `${percent(each.share)} of the targets, ${percent(each.share_of_nats)} of the loss`), textposition: "none",
              hovertemplate: `%{x}: %{y:.3f} bits, %{text}<extra>${plain(run.name)}</extra>`};
    }), {barmode: "group", xaxis: {type: "category", title: {text: GROUPS[kind]}, automargin: true}, yaxis: {title: {text: "bits per token"}}});
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
