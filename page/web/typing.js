"use strict";
// A text that somebody types, coloured by what each token costs the model of model.js; what the
// model expects at the cursor; and the model's own continuation. A token is a character here.
const BARS = 8;  // of the likeliest tokens, besides the one that stands at the cursor
const PLOTS = 500;  // milliseconds for the first plots, before the model is read
const LONGEST = 2000;  // characters of a text
const FIRST = 80;  // characters, at most, of the one to begin with: whole words
const TAIL = 12;  // characters before the cursor that are named
const PATIENCE = 25;  // milliseconds: then the page answers before it reads on
const PACE = 30;  // milliseconds between tokens that the model writes
let typing = null;

// Puts the model of the page, or why there is none, into the page's section.
function drawTyping() {
  const place = byId("typing"), saved = page.model ?? null;
  place.hidden = !saved;
  if (!saved || typing?.saved === saved) return;
  typing?.stop();
  typing = null;
  place.replaceChildren();
  const title = element("h2", "Type a sentence ", place);
  if (saved.why) explainAbsence(place, saved);
  else {
    const step = whole.format(page.runs[0].best?.step ?? 0);
    element("span", `what each character costs the model of step ${step}, which is in this page`,
            title, {className: "dim"});
    typing = new Typing(place, saved, firstLine());
  }
}

function explainAbsence(place, {why, commands}) {
  element("p", `The model cannot be typed to here: ${why}. These commands do the same:`, place);
  for (const command of commands) element("pre", command, place);
}

// A line of the passage, to begin with.
function firstLine() {
  const {vocabulary, eos} = page.model, ids = page.runs[0].texts?.[0]?.ids ?? [];
  const text = ids.map(id => id === eos ? "\n" : vocabulary[id]).join("");
  const lines = text.split("\n").map(line => line.trim());
  const line = lines.find(line => line.length >= 20) ?? "";
  return line.length > FIRST ? line.slice(0, FIRST + 1).replace(/\s*\S*$/, "") : line;
}

class Typing {
  constructor(place, saved, first) {
    this.saved = saved;
    this.first = first;  // the text before somebody types
    this.model = null;  // made when there is time
    this.window = null;
    this.random = make_random(1337);
    this.ids = new Map(saved.vocabulary.map((name, id) => [name, id]).filter(([name, id]) =>
      id !== saved.eos && Array.from(name).length === 1));
    this.before = [];  // texts, to go back to
    this.written = 0;  // characters that the model wrote, at the text's end
    this.timer = null;  // while the model writes
    this.tokens = [saved.context];  // the text as the model reads it
    this.logits = [];  // after each token that is read
    this.costs = [];  // bits of each; nothing for the context
    this.build(place);
    this.field.value = wanted.typed ?? first;
    setTimeout(() => this.begin(), PLOTS);
  }

  begin() {
    this.model = read_model(this.saved);
    this.window = new ContextWindow(this.model);
    this.update();
  }

  // What there is to see.

  build(place) {
    const paper = element("div", "", place, {className: "typing-paper"});
    this.back = element("div", "", paper, {className: "text", ariaHidden: "true"});
    this.field = element("textarea", "", paper, {
      className: "text", rows: 1, maxLength: LONGEST, spellcheck: false, autocapitalize: "off",
      placeholder: "Type here", ariaLabel: "A text, which the model reads as you type"});
    this.field.setAttribute("autocomplete", "off");
    this.field.setAttribute("aria-describedby", "typing-sum");
    this.sum = element("p", "", place, {id: "typing-sum"});
    this.unknown = element("p", "", place, {role: "status", className: "typing-unknown"});
    const panel = element("div", "", place, {className: "typing-panel"});
    this.buildControls(element("div", "", panel));
    this.buildBars(element("div", "", panel));
    this.field.addEventListener("input", () => this.edit());
    for (const kind of ["pointerdown", "keydown"])
      this.field.addEventListener(kind, () => this.stop());
    document.addEventListener("selectionchange", () => this.moveCursor());
  }

  buildControls(place) {
    this.token = element("p", "", place, {className: "typing-token"});
    const label = element("label", "temperature ", place);
    const range = {type: "range", min: 0, max: 2, step: 0.05, value: 1};
    this.slider = element("input", "", label, range);
    this.output = element("output", "1", label);
    element("small", "It moves the bars and what the model writes; bits are those at 1.", place);
    const buttons = element("p", "", place, {className: "typing-buttons"});
    this.button = element("button", "", buttons, {type: "button"});
    this.undo = element("button", "Undo", buttons, {type: "button"});
    this.story = element("p", "", place);
    this.slider.addEventListener("input", () => this.drawCursor());
    this.button.addEventListener("click", () => this.timer ? this.stop() : this.goOn());
    this.undo.addEventListener("click", () => this.goBack());
    this.tellAloud(true);
  }

  buildBars(place) {
    this.title = element("p", "", place, {id: "typing-title"});
    const list = element("div", "", place, {className: "typing-bars", role: "group"});
    list.setAttribute("aria-labelledby", this.title.id);
    this.bars = Array.from({length: BARS + 1}, () => {
      const bar = element("button", "", list, {type: "button", disabled: true});
      bar.addEventListener("click", () => this.choose(Number(bar.dataset.token)));
      return bar;
    });
    this.rest = element("p", "", place, {className: "dim"});
  }

  // The text, as the model reads it.

  get text() {
    return this.field.value;
  }

  get isFull() {
    return this.text.length >= LONGEST;
  }

  // The cursor's place, in characters.
  get cursor() {
    return Array.from(this.text.slice(0, this.field.selectionStart)).length;
  }

  // Each character, with the place of its token among the tokens; unknown ones have none.
  parse() {
    const tokens = [this.saved.context];
    const characters = Array.from(this.text, name => {
      const id = this.ids.get(name);
      return id === undefined ? {name} : {name, place: tokens.push(id) - 1};
    });
    return {tokens, characters};
  }

  // Read what is new of the text: what follows the place where it differs from the one before.
  read(tokens) {
    let same = 0;
    while (same < this.logits.length && this.tokens[same] === tokens[same]) same += 1;
    this.logits.length = this.costs.length = same;
    this.tokens = tokens;
    const started = performance.now();
    while (this.logits.length < tokens.length && performance.now() - started < PATIENCE) {
      const place = this.logits.length;
      this.costs.push(place ? costOf(this.logits[place - 1], tokens[place]) : 0);
      this.logits.push(this.window.read(tokens, place));
    }
    return this.logits.length === tokens.length;
  }

  // Read, and show what there is; returns whether all of the text is read.
  update() {
    if (!this.model) return false;
    const {tokens, characters} = this.parse();
    this.characters = characters;
    const isRead = this.read(tokens);
    this.drawText();
    this.drawCursor();
    clearTimeout(this.waiting);
    if (!isRead) this.waiting = setTimeout(() => this.update());
    return isRead;
  }

  drawText() {
    const {back, characters, costs} = this, spans = back.children;
    while (spans.length > characters.length + 1) back.lastChild.remove();
    while (spans.length < characters.length + 1) element("span", "", back);
    characters.forEach(({name, place}, i) => {
      if (spans[i].textContent !== name) spans[i].textContent = name;
      spans[i].className = place === undefined ? "typing-stranger" : "";
      if (i >= characters.length - this.written) spans[i].className = "typing-written";
      spans[i].style.background = "";
      if (place < costs.length) paint(spans[i], costs[place]);
    });
    Object.assign(spans[characters.length], {textContent: "\u200b", className: ""});
    spans[characters.length].style.background = "";
    this.drawSums();
  }

  drawSums() {
    const {costs, characters} = this, count = costs.length - 1, all = this.tokens.length - 1;
    const each = sumOf(costs) / count, rest = all - count;
    this.sum.textContent = "Nothing is typed yet.";
    if (count > 0) {
      this.sum.textContent = `${countOf(count, "character")}: ${sumOf(costs).toFixed(1)} bits, ` +
        `${each.toFixed(2)} each, perplexity ${short(2 ** each)}.`;
      if (rest) this.sum.append(` The model still reads ${countOf(rest, "character")}.`);
      const {block_size} = this.saved.cfg;
      if (all > block_size)
        this.sum.append(` The model sees at most the last ${whole.format(block_size)} ` +
                        "characters; at times only half as many.");
    }
    const strangers = characters.filter(({place}) => place === undefined);
    const names = [...new Set(strangers.map(({name}) => shown(name)))].join(" ");
    this.unknown.hidden = !names;
    this.unknown.textContent =
      `The model does not know ${names} (hatched): it does not see that, and it costs nothing.`;
    const own = costs.slice(costs.length - this.written);
    this.story.textContent = "";
    if (this.written)
      this.story.textContent = `The model wrote the last ${countOf(own.length, "character")}: ` +
        `${(sumOf(own) / own.length).toFixed(2)} bits each.`;
  }

  // What stands before the cursor, and what the model expects after it.
  drawCursor() {
    if (!this.characters) return;
    const {characters, cursor, temperature} = this, at = characters[cursor]?.place;
    this.output.textContent = temperature === 0 ? "0, greedy" : temperature;
    this.back.querySelector(".typing-cursor")?.classList.remove("typing-cursor");
    this.back.children[cursor]?.classList.add("typing-cursor");
    this.drawToken(characters[cursor - 1]);
    this.drawButtons();
    const before = characters.slice(0, cursor).filter(({place}) => place !== undefined);
    const logits = this.logits[before.at(-1)?.place ?? 0];
    if (!logits) return;  // it still reads
    const tail = endOf(before.map(({name}) => name).join(""), TAIL);
    const first = `first, as after ${this.nameOf(this.saved.context)}`;
    this.title.textContent = `Expected ${tail ? `after ${shown(tail)}` : first}`;
    this.drawBars(probabilities(logits, temperature), softmax(logits), this.tokens[at]);
  }

  get temperature() {
    return Number(this.slider.value);
  }

  drawToken(character) {
    const {place, name} = character ?? {}, cost = this.costs[place];
    if (!character) this.token.textContent = "Before the cursor there is nothing.";
    else if (place === undefined)
      this.token.textContent = `${shown(name)} before the cursor: the model does not know it.`;
    else if (cost !== undefined) {
      const row = this.logits[place - 1], logit = row[this.tokens[place]];
      const rank = 1 + row.filter(z => z > logit).length;
      this.token.textContent = `${shown(name)} before the cursor: ${cost.toFixed(2)} bits, ` +
        `probability ${percent(2 ** -cost)}, rank ${rank} of ${row.length}.`;
    }
  }

  drawBars(tempered, plain, next) {
    const tokens = [...plain.keys()].sort((a, b) => plain[b] - plain[a]).slice(0, BARS);
    if (next !== undefined && !tokens.includes(next)) tokens.push(next);
    this.bars.forEach((bar, i) => this.drawBar(bar, tokens[i], {tempered, plain, next}));
    const left = 1 - tokens.reduce((sum, token) => sum + tempered[token], 0);
    const others = countOf(plain.length - tokens.length, "other");
    const line = this.temperature === 1 ? "" : " Lines: at temperature 1.";
    this.rest.textContent = `${others}: ${percentOf(Math.max(0, left))}.${line} ` +
      "Press one to write it here. In mid-text it replaces what follows, and the model goes on.";
  }

  // A token's probability, and a line where it is at temperature 1.
  drawBar(bar, token, {tempered, plain, next}) {
    const isMissing = token === undefined;
    bar.classList.toggle("typing-none", isMissing);
    bar.disabled = isMissing || !this.ids.has(this.saved.vocabulary[token]);
    bar.replaceChildren();
    if (isMissing) return;
    bar.dataset.token = token;
    bar.style.setProperty("--share", tempered[token]);
    bar.style.setProperty("--plain", plain[token]);
    element("span", this.nameOf(token) + (token === next ? " ✓" : ""), bar);
    const share = element("span", "", bar, {className: "typing-bar", ariaHidden: "true"});
    share.classList.toggle("typing-tempered", this.temperature !== 1);
    element("span", percentOf(tempered[token]), bar);
    bar.title = token === next ? "it came" : "";
  }

  drawButtons() {
    const isWithin = this.cursor < this.characters?.length;
    const goes = isWithin ? "Go on, replacing the rest" : "Let the model go on";
    this.button.textContent = this.timer ? "Stop" : goes;
    this.undo.disabled = !this.before.length;
  }

  nameOf(token) {
    return token === this.saved.end ? "<|eos|>" : shown(this.saved.vocabulary[token]);
  }

  // What somebody does.

  edit() {
    this.stop();
    this.written = 0;
    this.update();
    writeAddress();
  }

  // What somebody has typed, for the address.
  state() {
    return this.text === this.first ? {} : {typed: this.text};
  }

  moveCursor() {
    if (document.activeElement === this.field && !this.timer) this.drawCursor();
  }

  // Replace the text, with the cursor at the end.
  write(text) {
    this.field.value = text;
    this.field.setSelectionRange(text.length, text.length);
    return this.update();
  }

  remember() {
    this.before.push(this.text);
  }

  goBack() {
    this.stop();
    this.written = 0;
    this.write(this.before.pop());
  }

  // Put a token at the cursor. Where another stood, the text ends, and the model goes on.
  choose(token) {
    this.stop();
    const {characters, cursor} = this, name = this.saved.vocabulary[token];
    const before = characters.slice(0, cursor).map(each => each.name).join("");
    if (characters[cursor]?.name === name) return this.goTo(before.length + name.length);
    this.remember();
    this.written = 0;
    this.write(before + name);
    if (cursor < characters.length) this.run();
  }

  goTo(place) {
    this.field.setSelectionRange(place, place);
    this.drawCursor();
  }

  // Let the model write from the cursor on, until somebody stops it.
  goOn() {
    const before = this.text.slice(0, this.field.selectionStart);
    if (before !== this.text || !this.written) this.remember();
    if (before !== this.text) this.written = 0;
    this.write(before);
    this.run();
  }

  run() {
    this.tellAloud(false);
    this.timer = setTimeout(() => this.step(), PACE);
    this.drawButtons();
  }

  step() {
    const isRead = this.update();
    if (isRead && !this.writeToken()) {
      this.stop();
      this.story.append(this.isFull ? " The text is full." : " The model ends the text here.");
      return;
    }
    this.timer = setTimeout(() => this.step(), PACE);
  }

  // Let the model write a token; returns whether it goes on.
  writeToken() {
    const token = sample_token(this.logits.at(-1), this.random(), this.temperature);
    const name = this.saved.vocabulary[token];
    if (!this.ids.has(name) || this.isFull) return false;  // eos ends the text
    this.written += 1;
    this.write(this.text + name);
    return true;
  }

  stop() {
    if (!this.timer) return;
    clearTimeout(this.timer);
    this.timer = null;
    this.tellAloud(true);
    this.drawCursor();
    writeAddress();
  }

  // Screen readers read what changes, but not each token that the model writes.
  tellAloud(isWanted) {
    this.token.ariaLive = this.story.ariaLive = isWanted ? "polite" : "off";
  }
}

// Bits of a token after which model says these logits.
function costOf(logits, token) {
  let most = -Infinity, sum = 0;
  for (const z of logits) most = Math.max(most, z);
  for (const z of logits) sum += Math.exp(z - most);
  return bits(most + Math.log(sum) - logits[token]);
}

const percentOf = share => share > 0 && share < 0.001 ? "<0.1%" : percent(share);
const sumOf = values => values.reduce((sum, value) => sum + value, 0);
const countOf = (count, name) => `${whole.format(count)} ${name}${count === 1 ? "" : "s"}`;

// A text within a line.
const shown = text => quote(text.replaceAll("\n", "⏎").replaceAll("\t", "⇥"));
