"use strict";
// Plots, by Bokeh: the only file that knows it. The others say what is shown, as marks:
//   {kind: "line" | "points" | "bars" | "band" | "whiskers", x, y, low, high, color, alpha, size,
//    width, dash, marker, tell, runs, label}; tell(i) is what pointing shows of a point: a text or,
//   in a plot whose marks tell together, {value, text, name, at}; `runs` are the numbers of the
//   runs that a mark is of, and `label` stands at the end of its line;
// and how: {title, x: {title, range, ticks}, y: {title, range, log, fromZero}, levels, spans,
//   together, zoom, key, pins, pick}; where ticks(start, end) gives places of x in this range, and
//   their texts; `pins` are places of x with a dotted line and a label above it: {at, name, text,
//   title, pick}; and pick(x) is called for a place of x that somebody clicks.
// A plot that is drawn again with the same key keeps the zoom that somebody chose.
const TOLD = 6;  // lines that a pointer is told at once
const LABEL_GAP = 15;  // pixels between labels, where there is room
const LEAST_GAP = 10;
const NARROW = 500;  // pixels, of a plot
const EDGE = 16;  // pixels, which on a narrow screen half a ring needs beside a curve's end
const PIN_ROOM = 52;  // pixels above a plot, for its tools and the labels of its pins
const PIN_WIDTH = 90;  // pixels that a pin's text needs
const DRAGGED = 5;  // pixels after which a click was none
const NEAR = 14;  // pixels from a curve, where the pointer means it
const PRINTED = 300;  // milliseconds after which a chart is on the screen
const UNSEEN = 1000;  // milliseconds after which plots are drawn that nobody sees: to be printed
const plots = new Map();  // by place
let unseenTimer = null;
// to what is even on the axis, and back
const scales = log => log ? [Math.log, Math.exp] : [value => value, value => value];
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const isTouch = () => matchMedia("(pointer: coarse)").matches;
const seen = new IntersectionObserver(showSeen, {rootMargin: "200px"});

function showSeen(entries) {
  for (const each of entries) {
    if (each.isIntersecting) show(each.target);
  }
}

// A plot, drawn as soon as somebody can see it. Bokeh comes last, because it is large: so the page
// opens fast.
function plot(id, marks, look) {
  const place = byId(id);
  place.hidden = false;
  plots.set(place, Object.assign(plots.get(place) ?? {}, {place, marks, look, waits: true}));
  watch(place);
  clearTimeout(unseenTimer);
  unseenTimer = setTimeout(drawUnseen, UNSEEN);
}

// A plot without anything to show vanishes.
function hidePlot(id) {
  const place = byId(id);
  if (!place) return;
  place.hidden = true;
  if (plots.has(place)) plots.get(place).waits = false;
}

// So that it is told at once whether it can be seen.
function watch(place) {
  seen.unobserve(place);
  seen.observe(place);
}

function show(place) {
  const shown = plots.get(place);
  if (!shown?.waits || !window.Bokeh) return;
  shown.waits = false;
  const {marks, look} = shown;
  const fixed = ({kind, marker, width, dash, color, alpha}) =>
    [kind, marker, width, dash, ...kind === "line" || kind === "band" ? [color, alpha] : []];
  const parts = [isDark(), look.key, look.y.log, Boolean(look.levels), marks.map(fixed)];
  const key = JSON.stringify(parts);
  if (shown.key !== key) build(shown, key);
  const {figure} = shown;
  marks.forEach((mark, i) => { shown.sources[i].data = columns(mark); });
  if (look.title) figure.title.text = look.title;
  figure.min_border_right = measureLabels(shown);
  figure.min_border_top = look.pins?.length ? PIN_ROOM : shown.legend ? 20 : 5;
  annotate(shown);
  const reach = marks.flatMap(({y, low = [], high = []}) => [...y, ...low, ...high]);
  const room = Math.max(0.02, EDGE / place.clientWidth);
  showAxis(shown, figure.xaxes[0], figure.x_range, look.x, marks.flatMap(mark => mark.x), room);
  showAxis(shown, figure.yaxes[0], figure.y_range, look.y, reach, 0.05);
  placeTicks(shown);
  placeLabels(shown);
  light(shown);
}

function build(shown, key) {
  const {place, marks, look} = shown;
  const ink = isDark() ? "#ddd" : "#222", grid = isDark() ? "#333" : "#e8e8e8";
  const ground = place.closest(".card, .one > section") ?? document.documentElement;
  const paper = getComputedStyle(ground).backgroundColor;
  const {Plotting, ColumnDataSource, Range1d, HoverTool, CrosshairTool} = Bokeh;
  shown.view?.then(view => view.remove());
  const text = {text_color: ink, text_font_style: "normal", text_font_size: "12px"};
  const axis = {axis_label_text_color: ink, axis_label_text_font_style: "normal",
                major_label_text_color: ink, axis_line_color: grid, major_tick_line_color: grid,
                minor_tick_line_color: null};
  const figure = Plotting.figure({
    sizing_mode: "stretch_both", background_fill_color: paper, border_fill_color: paper,
    outline_line_color: null, x_range: new Range1d(), y_range: new Range1d(),
    y_axis_type: look.y.log ? "log" : "linear", tools: look.zoom ? "box_zoom,pan,reset" : "",
    toolbar_location: look.zoom ? "above" : null, toolbar_sticky: false,
    active_drag: isTouch() ? null : "box_zoom"});  // a finger scrolls the page
  figure.toolbar.logo = null;
  if (look.zoom) {
    figure.add_tools(new Bokeh.SaveTool({filename: look.y.title.replace(/\W+/g, "_")}));
  }
  figure.title.setv({...text, align: "right"});
  for (const each of figure.axes) each.setv(axis);
  for (const each of figure.grids) each.setv({grid_line_color: grid, level: "image"});
  const sources = marks.map(mark => new ColumnDataSource({data: columns(mark)}));
  const glyphs = marks.map((mark, i) => addGlyph(figure, mark, sources[i]));
  marks.forEach(({kind, isInMean}, i) => {
    glyphs[i].visible = !isInMean;
    if (["line", "band"].includes(kind)) glyphs[i].level = "underlay";  // above the grid
  });
  if (look.together) {
    const line = {visible: false, dimensions: "height", line_color: ink, line_alpha: 0.4};
    figure.add_tools(new CrosshairTool(line));
  } else {
    const style = {style: "white-space: pre-line"};
    marks.forEach((mark, i) => {
      const tooltips = (_, {index}) => element("div", shown.marks[i].tell(index), null, style);
      const hover = {visible: false, renderers: [glyphs[i]], limit: 3, tooltips};
      if (mark.tell) figure.add_tools(new HoverTool(hover));
    });
  }
  Object.assign(shown, {key, figure, sources, glyphs, home: new Map(), annotated: "", placed: "",
                        center: [...figure.center]});
  place.replaceChildren();
  place.role = "figure";
  place.ariaLabel = `${look.y.title} against ${look.x.title}`;
  shown.view = Plotting.show(figure, place);
  shown.labels = element("div", "", place, {className: "labels"});
  shown.pins = element("div", "", place, {className: "pins"});
  shown.told = element("div", "", place, {className: "told"});
  listen(shown);
  shown.drawn = null;
  shown.view.then(view => {
    shown.drawn = view;
    const drawn = view.export.bind(view);  // what the tool saves, which has no labels
    view.export = (...arguments_) => withLabels(shown, drawn(...arguments_));
    const {inner_width, inner_height} = figure.properties;
    figure.x_range.change.connect(() => placeTicks(shown));
    for (const each of [figure.x_range, figure.y_range, inner_width, inner_height])
      each.change.connect(() => placeLabels(shown));
    placeLabels(shown);
  });
}

function addGlyph(figure, mark, source) {
  const {kind, color, alpha = 1, width = 1.5, dash = "solid", marker = "circle"} = mark;
  const x = {field: "x"}, y = {field: "y"}, low = {field: "low"}, high = {field: "high"};
  const filled = {source, fill_color: {field: "color"}, fill_alpha: {field: "alpha"}};
  const line = {source, line_color: color, line_alpha: alpha, line_width: width, line_dash: dash};
  if (kind === "line") return figure.line(x, y, line);
  const area = {source, fill_color: color, fill_alpha: alpha};
  if (kind === "band") return figure.varea(x, low, high, area);
  const whisker = {...line, line_color: {field: "color"}};
  if (kind === "whiskers") return figure.segment(x, low, x, high, whisker);
  if (kind === "bars") return figure.vbar(x, width, y, 0, {...filled, line_color: null});
  if (mark.isRing) {
    const ring = {source, fill_color: null, line_color: color, line_width: 2};
    return figure.scatter(x, y, {...ring, marker, size: {field: "size"}});
  }
  const edge = marker === "star" ? "white" : null;
  return figure.scatter(x, y, {...filled, marker, size: {field: "size"}, line_color: edge});
}

function columns({x, y, low = y, high = y, color, alpha = 1, size = 6}) {
  const each = value => Array.isArray(value) ? value : x.map(() => value);
  return {x, y, low, high, color: each(color), alpha: each(alpha), size: each(size)};
}

// Pointing at a plot whose marks tell together: what they have there, from the lowest.

function listen(shown) {
  const {place} = shown;
  let pressed = null;  // where a button went down
  place.onpointerdown = ({clientX, clientY}) => { pressed = [clientX, clientY]; };
  place.onclick = event => {
    if (isTouch()) tap(shown, event);
    const [x, y] = pressed ?? [event.clientX, event.clientY];
    if (Math.hypot(event.clientX - x, event.clientY - y) < DRAGGED) pickPlace(shown, event);
  };
  if (!shown.look.together) return;
  place.onpointermove = event => {
    if (event.pointerType === "mouse" && !event.buttons) point(shown, event);
  };
  place.onpointerleave = () => {
    shown.told.replaceChildren();
    setLit(null);
  };
}

// A mouse that chooses a part of a plot leaves what was told of the whole; a finger that taps
// elsewhere, or scrolls, is done with it. Bokeh lets nobody else hear of a drag.
function forgetTold({target, pointerType}) {
  for (const {place, told} of plots.values()) {
    if (pointerType === "mouse" || !place.contains(target)) told?.replaceChildren();
  }
}

document.addEventListener("pointerdown", forgetTold, {capture: true});

async function point(shown, event) {
  const found = locate(shown, await shown.view, event);
  const {told, place} = shown;
  told.replaceChildren();
  if (!found) return setLit(null);
  const nearest = isMany() ? nearestCurve(found) : null;  // of one run, nothing is to be lit
  setLit(nearest?.runs ?? null);
  if (!tellAll(shown, found, nearest)) return;
  const {x, frame} = found, isLeft = x < frame.bbox.left + 0.5 * frame.bbox.width;
  told.style.left = isLeft ? `${x + 14}px` : "auto";
  told.style.right = isLeft ? "auto" : `${place.clientWidth - x + 14}px`;
  told.style.maxWidth = `${place.clientWidth}px`;
  told.style.top = `${Math.min(found.y + 10, place.clientHeight - told.offsetHeight - 4)}px`;
}

// A finger cannot point: a tap tells what is next to it, above the plot, until a tap there.
async function tap(shown, event) {
  const {told, marks, look} = shown;
  if (told.contains(event.target)) return told.replaceChildren();
  const found = locate(shown, await shown.view, event);
  if (!found) return;
  if (look.together) {
    tellAll(shown, found, isMany() ? nearestCurve(found) : null);
    return;
  }
  let best = Infinity;
  for (const mark of marks.filter(mark => mark.tell)) {
    mark.x.forEach((_, i) => {
      const far = Math.hypot(found.placeX(mark.x[i]) - found.x,
                             mark.kind === "bars" ? 0 : found.placeY(mark.y[i]) - found.y);
      if (far >= best) return;
      best = far;
      told.textContent = mark.tell(i);
    });
  }
}

async function pickPlace(shown, event) {
  if (!shown.look.pick || event.target.closest("button")) return;
  const found = locate(shown, await shown.view, event);
  if (found) shown.look.pick(found.frame.x_scale.invert(found.x));
}

// Where a pointer is in a plot, in its pixels; null outside the axes.
function locate({marks}, {el, frame}, {clientX, clientY}) {
  const box = el.getBoundingClientRect(), x = clientX - box.x, y = clientY - box.y;
  const {left, right, top, bottom} = frame.bbox;
  if (x < left - 2 || x > right + 2 || y < top || y > bottom) return null;
  const placeX = value => frame.x_scale.compute(value);
  const placeY = value => frame.y_scale.compute(value);
  return {x, y, frame, placeX, placeY, marks};
}

const nearestIndex = ({x}, place) =>
  x.reduce((best, value, i) => Math.abs(value - place) < Math.abs(x[best] - place) ? i : best, 0);

// The mark of runs whose line is nearest to the pointer, if it is near.
function nearestCurve({x, y, placeX, placeY, marks}) {
  let best = NEAR, found = null;
  for (const mark of marks) {
    if (!mark.runs || mark.kind !== "line" || mark.isInMean) continue;
    for (let i = 1; i < mark.x.length; i++) {
      const left = placeX(mark.x[i - 1]), right = placeX(mark.x[i]);
      if (x < left - NEAR || x > right + NEAR) continue;
      const share = Math.min(1, Math.max(0, (x - left) / (right - left || 1)));
      const from = placeY(mark.y[i - 1]), to = placeY(mark.y[i]);
      const far = Math.abs(from + share * (to - from) - y);
      if (far >= best) continue;
      best = far;
      found = mark;
    }
  }
  return found;
}

// Writes what is told at a place; returns whether there is anything.
function tellAll({told}, {x, y, frame, placeX, placeY, marks}, nearest) {
  const telling = marks.filter(mark => mark.tell && mark.x.length);
  let place = null;
  for (const mark of telling) {
    for (const value of mark.x) {
      const far = Math.abs(placeX(value) - x);
      if (place === null || far < Math.abs(placeX(place) - x)) place = value;
    }
  }
  const rows = [], near = 0.01 * frame.bbox.width;
  for (const mark of telling) {
    const i = nearestIndex(mark, place);
    const first = placeX(mark.x[0]) - near, last = placeX(mark.x.at(-1)) + near;
    if (placeX(place) < first || placeX(place) > last) continue;
    const far = mark === nearest ? -1 : Math.abs(placeY(mark.y[i]) - y);
    rows.push({...mark.tell(i), mark, far, isAt: mark.x[i] === place});
  }
  told.replaceChildren();
  if (!rows.length) return false;
  rows.sort((a, b) => a.far - b.far);
  const chosen = rows.slice(0, TOLD).sort((a, b) => a.value - b.value);
  const title = (rows.find(row => row.isAt) ?? rows[0]).at;
  element("div", title, told, {className: "dim"});
  for (const {mark, text, name, at} of chosen) {
    const line = element("div", "", told, {className: mark === nearest ? "best" : ""});
    line.append(swatch(mark));
    element("b", text, line);
    element("span", at === title ? name : `${name}, ${at}`, line);
  }
  const left = rows.length - TOLD;
  if (left > 0) element("div", `and ${left} more`, told, {className: "dim"});
  return true;
}

function swatch({color, marker, dash = "solid", width = 1.5}) {
  const made = element("span", marker === "star" ? "★" : "", null, {className: "swatch"});
  if (marker === "star") {
    made.style.color = color;
    return made;
  }
  made.style.borderTopWidth = `${Math.ceil(width)}px`;
  made.style.borderTopColor = Array.isArray(color) ? color[0] : color;
  made.style.borderTopStyle = dash === "dotdash" ? "double" : dash;
  return made;
}

// Of the runs that are pointed at, curves are thick; others are faint. A run whose line is in a
// mean has a line of its own only while it is pointed at, and the mean is then faint too.

let lit = null;  // the numbers of these runs; null where none is
let isLitByRow = false;  // of the table, not by a curve

function setLit(runs = null, byRow = false) {
  isLitByRow = byRow;
  if (JSON.stringify(lit) === JSON.stringify(runs)) return;
  lit = runs;
  for (const shown of plots.values()) light(shown);
  lightRows();
}

function light({glyphs = [], marks, labels, waits}) {
  if (waits) return;  // its glyphs are of other marks
  const lightness = runs => !lit || !runs ? 0 : runs.some(run => lit.includes(run)) ? 1 : -1;
  const isAlone = lit?.length === 1 && marks.some(mark => mark.isInMean && mark.runs[0] === lit[0]);
  glyphs.forEach((renderer, i) => {
    const {kind, runs, width = 1.5, alpha = 1, isInMean} = marks[i];
    if (!runs) return;
    const at = isAlone && runs.length > 1 ? -1 : lightness(runs);
    if (isInMean) renderer.visible = isAlone && at > 0;
    if (kind === "line") {
      renderer.glyph.line_alpha = at < 0 ? 0.13 : at > 0 ? 1 : alpha;
      renderer.glyph.line_width = at > 0 ? width + 1.5 : width;
      renderer.level = at > 0 ? "glyph" : "underlay";  // the levels that end at the axes
    } else if (kind === "band") {
      renderer.glyph.fill_alpha = at < 0 ? 0.3 * alpha : alpha;
    } else {
      renderer.visible = at >= 0;
    }
  });
  for (const label of labels?.querySelectorAll("span") ?? []) {
    const at = lightness(label.runs);
    label.classList.toggle("lit", at > 0);
    label.classList.toggle("faint", at < 0);
  }
}

// An axis and its range, unless somebody has zoomed.
function showAxis({home}, axis, range, {title, range: asked, log, fromZero}, values, room) {
  axis.axis_label = title;
  const [start, end] = asked ?? padded(values, room, log, fromZero), before = home.get(range);
  const zoomed = before && (range.start !== before.start || range.end !== before.end);
  range.setv({reset_start: start, reset_end: end, ...zoomed ? {} : {start, end}});
  home.set(range, {start, end});
}

// A stranger's name stays text: in a string, Bokeh would look for TeX.
const namedTicks = ticks => ({
  ticker: new Bokeh.FixedTicker({ticks: ticks.map(([at]) => at)}),
  major_label_overrides: new Map(ticks.map(([at, text]) => [at, new Bokeh.PlainText({text})]))});

function placeTicks(shown) {
  const {place, figure, look: {x}} = shown, [axis] = figure.xaxes, [grid] = figure.xgrids;
  const ticks = x.ticks?.(figure.x_range.start, figure.x_range.end);
  const placed = JSON.stringify(ticks);
  if (!ticks || shown.placed === placed) return;
  shown.placed = placed;
  const pixels = ticks.reduce((sum, [, text]) => sum + 6 * text.length + 9, 60);
  const orientation = pixels > place.clientWidth - figure.min_border_right ? 0.6 : "horizontal";
  axis.setv({...namedTicks(ticks), major_label_orientation: orientation});
  grid.ticker = axis.ticker;
}

// From the lowest to the highest value, and some room.
function padded(values, room, log = false, fromZero = false) {
  const [scale, value] = scales(log);
  const finite = values.map(scale).filter(each => Number.isFinite(each));
  if (!finite.length) return log ? [1, 10] : [0, 1];
  const low = fromZero ? 0 : finite.reduce((a, b) => Math.min(a, b), Infinity);
  const high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
  const more = room * (high - low || 1);
  return [value(fromZero ? 0 : low - more), value(high + more)];
}

// Levels are dotted lines; spans are shaded.
function annotate(shown) {
  const {look: {levels = [], spans = [], pins = []}, figure, center} = shown;
  const annotated = JSON.stringify([levels, spans, pins]);
  if (shown.annotated === annotated) return;
  const dotted = {dimension: "width", line_dash: [2, 4], line_color: "#888"};
  const lines = levels.map(([, location]) => new Bokeh.Span({location, ...dotted}));
  const boxes = spans.map(({from, to, color}) => new Bokeh.BoxAnnotation(
    {left: from, right: to, fill_color: color, fill_alpha: 0.1, line_color: null}));
  const upright = {dimension: "height", line_dash: [2, 3], line_color: isDark() ? "#ccc" : "#444"};
  const posts = pins.map(({at}) => new Bokeh.Span({location: at, ...upright}));
  figure.center = [...center, ...boxes, ...lines, ...posts];
  shown.annotated = annotated;
}

// Labels stand to the right of the axes: of curves at their ends, and of levels. A line leads to a
// label that had to move. What is above or below the axes is named at the edge.

const ruler = document.createElement("canvas").getContext("2d");

// Where there is little room, the options that most labels have are named once, above them.
const OPTION = /[a-z_0-9]+(?==)/g;

function shortenLabels(labels, isNarrow) {
  const lists = labels.map(label => (label.match(OPTION) ?? []).join());
  const times = list => lists.filter(each => each === list).length;
  const usual = lists.reduce((best, list) => times(list) > times(best) ? list : best, lists[0]);
  const isUsual = 2 * times(usual) > lists.length, names = usual.split(",").filter(Boolean);
  const without = (label, dropped) =>
    dropped.reduce((text, name) => text.replace(`${name}=`, ""), label).replaceAll(",", ", ");
  const shorten = label => {
    const own = label.match(OPTION) ?? [];
    const isLikeOthers = isUsual && names.every(name => own.includes(name));
    return isNarrow ? without(label, own) : isLikeOthers ? without(label, names) : label;
  };
  return {shorten, legend: isUsual ? names.join(", ") : ""};
}

function measureLabels(shown) {
  const {place, marks, look: {levels = []}} = shown, most = 0.36 * place.clientWidth;
  ruler.font = "12px system-ui, sans-serif";
  const widthOf = text => ruler.measureText(text).width;
  const width = texts => Math.ceil(highest([0, ...texts.map(widthOf)]));
  const labels = marks.filter(({label}) => label).map(({label}) => label);
  const isLong = labels.length && width(labels.map(label => `↑ ${label}`)) + 26 > most;
  const {shorten, legend} = isLong ? shortenLabels(labels, place.clientWidth < NARROW)
    : {shorten: label => label, legend: ""};
  Object.assign(shown, {shorten, legend});
  const fitted = labels.map(label => `↑ ${shorten(label)}`);
  const longest = width([...levels.map(([text]) => text), ...fitted, legend]);
  return longest ? Math.min(longest + 26, most) : 12;
}

async function placeLabels(shown) {
  const {look: {levels = [], y}, figure, marks} = shown;
  const {frame: {bbox}} = await shown.view;
  if (figure !== shown.figure || !bbox.height) return;
  const {x_range, y_range} = figure, [scale] = scales(y.log), start = scale(y_range.start);
  const length = scale(y_range.end) - start;
  const heightOf = value => bbox.height * (1 - (scale(value) - start) / length);
  const isInside = at => at >= -1 && at <= bbox.height + 1;
  const levelAt = levels.map(([text, value]) => ({text, at: heightOf(value)}));
  const named = marks.filter(mark => mark.label);
  const ends = named.map(mark => endLabel(mark, x_range, heightOf, bbox));
  const found = [...levelAt.filter(({at}) => isInside(at)), ...ends.filter(Boolean)];
  found.sort((a, b) => a.at - b.at);
  const most = Math.floor(bbox.height / LEAST_GAP), all = found.slice(0, most);
  const gap = Math.min(LABEL_GAP, bbox.height / Math.max(1, all.length - 1));
  const places = spread(all.map(({at}) => at), gap, bbox.height);
  const {labels} = shown;
  labels.replaceChildren();
  Object.assign(labels.style, {left: `${bbox.right}px`, top: `${bbox.top}px`});
  labels.style.fontSize = gap < 12 ? "10px" : "12px";
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  labels.append(svg);
  const room = `${Math.max(0, figure.min_border_right - 20)}px`;
  all.forEach((label, i) => {
    if (Math.abs(places[i] - label.at) > 1 || label.color) svg.append(leader(label, places[i]));
    const text = label.runs ? shown.shorten(label.text) : label.text;
    const made = element("span", text, labels, {title: label.text, runs: label.runs});
    Object.assign(made.style, {top: `${places[i]}px`, maxWidth: room, color: label.color ?? ""});
    if (label.runs) made.onpointerenter = () => setLit(label.runs);
    if (label.runs) made.onpointerleave = () => setLit(null);
  });
  const left = found.length - all.length;
  if (left) element("span", `and ${left} more`, labels).style.top = `${bbox.height + LEAST_GAP}px`;
  if (shown.legend) {
    const legend = element("span", shown.legend, labels, {title: shown.legend});
    Object.assign(legend.style, {top: "-14px", maxWidth: room});
  }
  placeEdges(shown, levelAt, bbox);
  placePins(shown, bbox);
  light(shown);
}

// The labels of pins, as long as the next one leaves room.
function placePins({pins: place, look: {pins = []}, figure: {x_range}}, {left, top, width}) {
  place.replaceChildren();
  Object.assign(place.style, {left: `${left}px`, top: `${top}px`});
  const placeOf = at => width * (at - x_range.start) / (x_range.end - x_range.start);
  const shown = pins.filter(({at}) => placeOf(at) >= 0 && placeOf(at) <= width);
  for (const [i, {at, name, text, title, pick}] of shown.entries()) {
    const end = i + 1 < shown.length ? placeOf(shown[i + 1].at) : width;
    const room = end - placeOf(at) - 3, words = room > PIN_WIDTH ? `${name} ${text}` : name;
    const made = element("button", words, place, {type: "button", title, onclick: pick});
    Object.assign(made.style, {left: `${placeOf(at)}px`, maxWidth: `${room}px`});
  }
}

// The labels, in a picture that somebody saves.
function withLabels({labels, place, figure}, layer) {
  const {ctx, pixel_ratio: ratio} = layer, box = place.getBoundingClientRect();
  ctx.save();
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.textBaseline = "middle";
  for (const label of place.querySelectorAll(".labels span, .edge, .pins button")) {
    const {left, top, height} = label.getBoundingClientRect(), style = getComputedStyle(label);
    ctx.font = `${style.fontWeight} ${style.fontSize} system-ui, sans-serif`;
    ctx.fillStyle = style.color;
    const isEdge = label.className.includes("edge");
    const room = isEdge ? figure.inner_width : figure.min_border_right - 18;
    ctx.fillText(label.textContent, left - box.left, top + height / 2 - box.top, room);
  }
  ctx.restore();
  return layer;
}

function endLabel({x, y, label, color, runs}, {start, end}, heightOf, {height}) {
  let last = x.length - 1;
  while (last > 0 && x[last] > end) last--;
  if (last < 0 || x[last] < start) return null;
  const at = heightOf(y[last]);
  const text = at < -1 ? `↑ ${label}` : at > height + 1 ? `↓ ${label}` : label;
  return {text, at: Math.min(height, Math.max(0, at)), color, runs};
}

function leader({at, color = "#888"}, to) {
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const look = {x1: 2, x2: 14, y1: at, y2: to, stroke: color};
  for (const [name, value] of Object.entries(look)) line.setAttribute(name, value);
  return line;
}

// Levels above and below the axes: the nearest first.
function placeEdges({labels}, levels, {width, height}) {
  const sides = {
    above: levels.filter(({at}) => at < -1).sort((a, b) => b.at - a.at),
    below: levels.filter(({at}) => at > height + 1).sort((a, b) => a.at - b.at)};
  for (const [side, some] of Object.entries(sides)) {
    if (!some.length) continue;
    const arrow = side === "above" ? "↑" : "↓";
    const text = `${arrow} ${some.map(each => each.text).join(" · ")}`;
    const edge = element("div", text, labels, {className: `edge ${side}`, title: text});
    Object.assign(edge.style, {width: `${width}px`, top: side === "above" ? 0 : `${height}px`});
  }
}

// The heights nearest to ascending ones that are at least `gap` apart, from 0 to `most`: an
// isotonic regression.
function spread(heights, gap, most) {
  const groups = [];  // that share a mean; each height is less the gaps before it
  heights.forEach((height, i) => {
    let group = [height - i * gap];
    while (groups.length && mean(groups.at(-1)) > mean(group)) group = [...groups.pop(), ...group];
    groups.push(group);
  });
  const room = Math.max(0, most - (heights.length - 1) * gap);
  const shared = groups.flatMap(group => group.map(() => mean(group)));
  return shared.map((at, i) => Math.min(room, Math.max(0, at)) + i * gap);
}

// Printing. A canvas keeps the size that it has on the screen; its picture takes that of the paper.

// Draws what nobody has scrolled to yet, when there is time.
function drawUnseen() {
  const waiting = [...plots.values()].find(({waits, place}) => waits && place.offsetParent);
  if (!waiting || !window.Bokeh) return;
  show(waiting.place);
  setTimeout(drawUnseen, 50);
}

// Draw all that is to be printed, and wait until it is drawn.
async function printPage() {
  for (const {place, waits} of plots.values()) {
    if (waits && !place.hidden) show(place);
  }
  for (const {view} of plots.values()) await view;
  setTimeout(() => print(), PRINTED);
}

function preparePrint() {
  for (const {place, drawn, waits} of plots.values()) {
    place.querySelector(".print")?.remove();
    if (place.hidden) continue;
    place.classList.add("printed");
    if (waits || !drawn) {
      element("p", "This chart was not drawn yet. Print again.", place, {className: "print"});
      continue;
    }
    const picture = element("img", "", place, {className: "print", alt: place.ariaLabel});
    picture.src = drawn.export("png", true).canvas.toDataURL();
  }
  for (const each of document.querySelectorAll("details:not([open])")) {
    each.open = true;
    each.classList.add("opened");
  }
}

function endPrint() {
  for (const each of document.querySelectorAll("details.opened")) {
    each.open = false;
    each.classList.remove("opened");
  }
}
