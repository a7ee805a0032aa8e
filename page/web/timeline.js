"use strict";
// One slider of training: it moves the colours of the text, a dot on the curve, and the sample.
const MOST_LINES = 16;  // of a sample, without scrolling
const FRAME = 350;  // milliseconds of a step that is played
const timeline = byId("timeline");
let moment = null;  // the step that somebody chose; null: the best, or the latest while it trains
let player = null;  // a timer, while the training is played

// The run whose training the slider moves through, and the steps that have a colouring of the text.
const timedRun = () => readingRun ?? page.runs[0];
const momentsOf = run => run.texts?.length ? stepsOf(run.texts[0]) : [];

function bestStep(run) {
  if (page.live) return momentsOf(run).at(-1);
  return run.best?.step ?? 0;
}

const momentWanted = run => moment ?? bestStep(run);
const momentIndex = run => nearest(momentsOf(run), momentWanted(run));

function nearest(steps, wanted) {
  let found = wanted > steps.at(-1) ? steps.length - 1 : 0;
  for (const [i, step] of steps.entries()) {
    if (Math.abs(step - wanted) < Math.abs(steps[found] - wanted)) found = i;
  }
  return found;
}

// The step that is shown; null where there is no text.
function momentShown() {
  const run = timedRun(), steps = momentsOf(run);
  return steps.length ? steps[momentIndex(run)] : null;
}

const momentState = () => moment === null ? {} : {step: momentShown() ?? moment};

function drawTimeline() {
  const run = timedRun(), steps = momentsOf(run), slider = timeline.elements.evaluation;
  timeline.hidden = !page.curves || !readingRun || steps.length < 2;
  if (timeline.hidden) pause();
  slider.max = steps.length - 1;
  if (steps.length) slider.value = momentIndex(run);
  if (!isMany()) drawSamples(run);
}

// What is written of the step: its loss, and what the model wrote then.
function showMoment() {
  const run = timedRun(), step = momentShown(), output = timeline.querySelector("output");
  if (step === null) return drawWriting(run, Infinity);
  const place = (run.val.step ?? []).indexOf(step), {y: unit} = options();
  let text = `step ${whole.format(step)}`;
  if (place >= 0) {
    const value = inUnit(run.val.val_nll[place], run, unit);
    const digits = value < 100 ? value.toFixed(3) : short(value);
    const numbers = {nats: `${digits} nats`, perplexity: `perplexity ${short(value)}`,
                     bits_per_byte: `${digits} bits per byte`};
    text += ` · ${numbers[unit]}`;
  }
  if (place >= 0) text += ` on a part of the ${run.val_kind} text`;
  if (step === run.best?.step) text += ", the best";
  output.textContent = text;
  timeline.elements.evaluation.ariaValueText = text;
  drawWriting(run, step);
}

// The last sample up to a step.
function drawWriting(run, step) {
  const place = byId("writing"), samples = (run.samples ?? []).filter(each => each.step <= step);
  place.hidden = isMany() || !page.curves || !samples.length;
  if (place.hidden) return;
  const sample = samples.at(-1);
  const late = sample.step === step || step === Infinity ? "" : ", the last one so far";
  place.querySelector("h2 span").textContent = `at step ${whole.format(sample.step)}${late}`;
  place.querySelector("pre").textContent = sample.text;
}

// All samples; and the one that is shown is as high as the longest, so that nothing below it jumps.
function drawSamples({samples = []}) {
  const lines = samples.map(each => each.text.split("\n").length), place = byId("samples");
  byId("writing").querySelector("pre").style.height = `${Math.min(MOST_LINES, highest(lines))}lh`;
  place.replaceChildren();
  listSamples(samples, place);
}

// Show another step in all places.
function goTo(step) {
  const run = timedRun(), steps = momentsOf(run);
  if (!readingRun || !steps.length) return;
  const index = nearest(steps, step);
  moment = steps[index];
  if (page.live && index === steps.length - 1) moment = null;  // and it follows the training
  timeline.elements.evaluation.value = index;
  colourText();
  showMoment();
  if (page.curves) drawLoss(options());
  writeAddress();
}

function play() {
  const steps = momentsOf(timedRun()), slider = timeline.elements.evaluation;
  if (Number(slider.value) >= steps.length - 1) goTo(steps[0]);
  player = setInterval(() => {
    const next = Number(slider.value) + 1;
    if (next < steps.length) goTo(steps[next]);
    if (next >= steps.length - 1) pause();
  }, FRAME);
  showPlaying();
}

function pause() {
  clearInterval(player);
  player = null;
  showPlaying();
}

function showPlaying() {
  byId("play").textContent = player ? "❚❚" : "▶";
  byId("play").ariaLabel = player ? "pause" : "play the training";
}

timeline.addEventListener("submit", event => event.preventDefault());
byId("play").addEventListener("click", () => player ? pause() : play());
timeline.elements.evaluation.addEventListener("input", event => {
  pause();
  goTo(momentsOf(timedRun())[Number(event.target.value)]);
});
