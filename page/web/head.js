"use strict";
// The head of a page: how each run ended, the loss of a single run, and the baselines beside it.
const LEVEL = 1e-5;  // a difference of losses that is none
const NEAREST = 3;  // baselines ahead that are named
const SILENCE = 30;  // seconds: a sweep writes every 5
const LONG = 60;  // seconds without data that are long for a run
const PATIENT = 5;  // times the longest time between two of its evaluations

function statusOf(status, count = 0) {
  const text = count ? `${count} ${status}` : status;
  return element("span", text, null, {className: `status ${status.replace(" ", "-")}`});
}

// What happens now: of one run how far it has come, of many how many have ended.
function showStatus() {
  const place = byId("status"), seconds = Date.now() / 1000 - page.written;
  if (page.live && seconds > longestSilence()) silence();
  place.replaceChildren();
  if (!isMany() && page.curves) return drawStatusOf(page.runs[0], seconds, place);
  const followed = training().length;
  if (page.isSilent)
    place.textContent = `${ended().length} of ${page.runs.length} runs have ended; nothing was ` +
      `written for ${duration(seconds)}: the sweep seems to have been stopped`;
  else if (page.live) place.textContent = `${page.status}; ${ageOf(seconds)}`;
  else if (followed)
    place.textContent = `${followed} of ${page.runs.length} runs train; this page follows them`;
  else place.textContent = page.status;
}

const ageOf = seconds => `written ${Math.round(seconds)} s ago, this page follows it`;

function drawStatusOf(run, seconds, place) {
  place.append(statusOf(run.status));
  const far = `${whole.format(run.step)} of ${whole.format(run.max_iters)} steps`;
  const parts = [far];
  const isLive = run.status === "training";
  if (isLive && run.step > 0 && run.step < run.max_iters)
    parts.push(`about ${duration(run.seconds * (run.max_iters / run.step - 1))} left`);
  else if (run.seconds) parts.push(duration(run.seconds));
  if (page.isSilent)
    parts.push(`nothing was written for ${duration(seconds)}: it seems to have been stopped, ` +
               "and --init_from=resume goes on");
  else if (page.live) parts.push(ageOf(seconds));
  element("span", parts.join(" · "), place, {className: "dim"});
}

// Seconds without new data after which what a live page follows must have been stopped.
function longestSilence() {
  if (page.sweep) return SILENCE;
  const [run] = page.runs, times = run.val.seconds ?? [];
  const gaps = times.slice(1).map((time, i) => time - times[i]);
  return Math.max(LONG, PATIENT * highest(gaps));
}

// What was killed could not write that nothing trains any more.
function silence() {
  if (page.isSilent) return;
  page.isSilent = true;
  const silent = page.runs.filter(({status}) => status === "training");
  for (const run of silent) run.status = "interrupted";
  drawPage();
}

// A live page without its data.
function sayMissing(source) {
  byId("status").textContent =
    `There is no ${source} beside this page yet, and a training's numbers are there: it is ` +
    "written at the first evaluation. If this page was moved or sent without it, open the page " +
    "in the run's folder.";
}

// The loss of a single run in each unit, the baselines that it has passed, and what was said of it.
function drawResult() {
  showStatus();
  const place = byId("result"), [run] = page.runs;
  const nats = isMany() ? Infinity : bestLoss(run);
  place.hidden = !isFinite(nats);
  if (place.hidden) return;
  drawHeadline(run, nats);
  drawStanding(run, nats);
  drawSaying(run, nats);
  drawMeaning(run, nats);
}

function drawHeadline(run, nats) {
  const place = byId("numbers"), {y: unit} = options(), word = tokenWord(run);
  const texts = {nats: `nats a ${word}`, bits_per_byte: "bits a byte", perplexity: "perplexity"};
  place.replaceChildren();
  const units = [unit, ...Object.keys(texts).filter(each => each !== unit)];
  for (const [i, each] of units.entries()) {
    const value = inUnit(nats, run, each);
    const number = i ? value.toPrecision(3) : value.toPrecision(4);
    const part = element("span", i ? "= " : "", place, {className: i ? "same" : "main"});
    if (each === "perplexity") part.append("perplexity ");
    element(i ? "span" : "b", number, part);
    if (each !== "perplexity") part.append(` ${texts[each]}`);
  }
  if (!page.curves) return;
  const which = run.best_nll === null ? "a part" : "all";
  element("small", `on ${which} of the ${run.val_kind} text`, place, {className: "same"});
}

// Baselines as chips: of those that the model has passed, from the worst on, the ones that have a
// line in the picture; and the nearest of those ahead of it.
function drawStanding(run, nats) {
  const place = byId("standing"), {y: unit} = options();
  const drawn = JSON.stringify([run.passed, run.ahead, nats, unit]);
  if (place.dataset.drawn === drawn) return;  // so that a chip keeps the focus
  place.dataset.drawn = drawn;
  place.replaceChildren();
  if (!page.curves) return;
  const byName = new Map(run.baselines.map(each => [each.name, each]));
  if (run.passed.length) element("span", "passed", place, {className: "dim"});
  for (const [name, step] of run.passed.filter(([name]) => byName.has(name))) {
    const look = {type: "button", className: "chip passed"};
    const baseline = byName.get(name), chip = element("button", starred(baseline), place, look);
    const at = `step ${whole.format(step)}`;
    chip.title = `${tellBaseline(baseline)}; passed by ${at}`;
    element("small", ` ${at}`, chip);
    chip.onclick = () => goTo(step);
  }
  nameMore(run.passed.filter(([name]) => !byName.has(name)).map(sayPassed), place);
  if (run.ahead.length) element("span", "still ahead", place, {className: "dim"});
  for (const baseline of run.ahead.slice(0, NEAREST)) {
    const distance = inUnit(nats, run, unit) - baseline[unit];
    const chip = element("span", starred(baseline), place, {className: "chip ahead"});
    chip.title = tellBaseline(baseline);
    const by = distance < 0.01 ? "<0.01" : distance.toPrecision(2);
    element("small", distance < LEVEL ? " level" : ` by ${by}`, chip);
  }
  nameMore(run.ahead.slice(NEAREST).map(starred), place);
}

// Baselines without a chip; "What do these numbers mean?" names them too.
function nameMore(names, place) {
  if (!names.length) return;
  const look = {className: "more dim", title: names.join(", ")};
  element("span", `and ${names.length} more`, place, look);
}

const sayPassed = ([name, step]) => `${name} by step ${whole.format(step)}`;

// An asterisk marks what learns while it reads, as in the curves.
const starred = ({name, learns}) => learns ? `${name}*` : name;

// A baseline's loss, what it has read, and whether it learns while it reads.
function tellBaseline({name, nats, has_read: hasRead, learns}) {
  const read = hasRead ? "has read the training text" : "has not read the training text";
  const moves = learns ? "learns while it reads" : "stands still, as the model does";
  return `${name}: ${nats.toFixed(3)} nats; ${read}; ${moves}`;
}

// Two sentences: what the loss means, and what came of the training.
function drawSaying(run, nats) {
  const place = byId("saying"), choices = Number(Math.exp(nats).toPrecision(3));
  place.textContent =
    `As uncertain as a choice among ${choices} equally likely ${tokenWord(run)}s.`;
  if (page.along) sayWhatLearningGains(run.evaluation, place);
  if (!page.curves) return;
  const lines = (run.verdict ?? "").split("\n").filter(line => line && !line.startsWith(" "));
  for (const line of lines.filter(isOutcome)) place.append(` ${line}`);
  if (run.status === "training") place.append(" It is still learning.");
  for (const line of lines.filter(isAdvice)) {
    const small = element("small", "", place, {className: "dim"});
    for (const word of line.split(" ")) small.append(" ", element("span", word, null));
  }
}

// Beside the loss of a model that learned: what it has standing still, and what English has.
function sayWhatLearningGains({dynamic, english}, place) {
  const {value: still} = dynamic.standing_still.nats_per_token;
  const {value: gain} = dynamic.gain.nats_per_token;
  place.append(` The model learns while it reads: standing still, it has ${still.toFixed(3)} ` +
               `nats, so learning saves ${gain.toFixed(3)}.`);
  if (english) element("small", ` ${english}`, place, {className: "dim"});
}

// The lines of a verdict that say what came of a training, and what to try.
const isOutcome = line => /^(It |Since |At step |No loss |Therefore )/.test(line);
const isAdvice = line => line.startsWith("Try ");

function drawMeaning(run, nats) {
  const place = byId("meaning"), [summary] = place.children;
  place.replaceChildren(summary);
  const measured = `the best model on all ${run.val_kind} targets`;
  let what = `The lowest loss so far, on a part of the ${run.val_kind} targets`;
  if (!page.curves) what = `The loss on ${whole.format(run.targets)} targets`;
  else if (run.best_nll !== null) what = `The loss of ${measured}`;
  const perByte = bits(nats) / run.bytes_per_target;
  element("p", `${what}: ${nats.toFixed(4)} nats per token = ${perByte.toFixed(3)} bits per ` +
          `byte = perplexity ${short(Math.exp(nats))}.`, place);
  if (!page.curves) return;
  const uniform = run.baselines.find(({name}) => name.startsWith("uniform"));
  const size = whole.format(uniform.perplexity);
  const log_V = `${uniform.nats.toFixed(4)} nats = ${bits(uniform.nats).toFixed(3)} bits`;
  element("p", "The loss is the mean of −log q, where q is the probability that the model gave " +
          `the token that came. Before training it is a guess among |V| = ${size} tokens: ` +
          `log|V| = ln ${size} = ${log_V}.`, place);
  const passed = run.passed.map(sayPassed).join(", ") || "none";
  const ahead = run.ahead.map(starred).join(", ") || "none";
  element("p", `Of all baselines, it has passed ${passed}; still ahead of it: ${ahead}.`, place);
  element("p", "A baseline is passed at the first evaluation below it; evaluations while " +
          `training goes on are on a part of the ${run.val_kind} text. ` +
          "Baselines that learn do so while they read, as compressors do; the others and the " +
          "model stand still. A trained compressor has read the training text before. PPMd is a " +
          "compressor that predicts each byte from those before it.", place);
}
