"use strict";
// Plots, by Bokeh: the only file that knows it. The others say what is shown, as marks:
//   {kind: "line" | "points" | "bars", x, y, color, alpha, size, width, dash, marker, tell}; tell(i) is what pointing shows;
// and how: {title, x: {title, range, ticks}, y: {title, range, log, fromZero}, levels, spans, together, zoom, key}; where
// ticks(start, end) gives places of x in this range, and their texts.
// A plot that is drawn again with the same key keeps the zoom that somebody chose.
const plots = new Map();  // by place
const scales = log => log ? [Math.log, Math.exp] : [value => value, value => value];  // to what is even on the axis, and back
const seen = new IntersectionObserver(entries => entries.forEach(each => { if (each.isIntersecting) show(each.target); }), {rootMargin: "200px"});

// A plot, drawn as soon as somebody can see it. Bokeh comes last, because it is large: so the page opens fast.
function plot(id, marks, look) {
  const place = byId(id);
  plots.set(place, Object.assign(plots.get(place) ?? {}, {place, marks, look, waits: true}));
  watch(place);
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
  const {marks, look} = shown, fixed = ({kind, marker, width, dash, color, alpha}) => [kind, marker, width, dash, ...kind === "line" ? [color, alpha] : []];
  const key = JSON.stringify([dark.matches, look.key, look.y.log, Boolean(look.levels), marks.map(fixed)]);
  if (shown.key !== key) build(shown, key);
  const {figure} = shown;
  marks.forEach((mark, i) => { shown.sources[i].data = columns(mark); });
  if (look.together) shown.pointer.data = pointed(marks);
  if (look.title) figure.title.text = look.title;
  annotate(shown);
  showAxis(shown, figure.xaxes[0], figure.x_range, look.x, marks.flatMap(mark => mark.x), 0.02);
  showAxis(shown, figure.yaxes[0], figure.y_range, look.y, marks.flatMap(mark => mark.y), 0.05);
  placeTicks(shown);
  placeLabels(shown);
}

function build(shown, key) {
  const {place, marks, look} = shown, ink = dark.matches ? "#ddd" : "#222", grid = dark.matches ? "#444" : "#e4e4e4", paper = getComputedStyle(document.documentElement).backgroundColor;
  const {Plotting, ColumnDataSource, Range1d, HoverTool, CrosshairTool, LinearAxis} = Bokeh;
  shown.view?.then(view => view.remove());
  const text = {text_color: ink, text_font_style: "normal", text_font_size: "12px"};
  const axis = {axis_label_text_color: ink, axis_label_text_font_style: "normal", major_label_text_color: ink, axis_line_color: grid,
                major_tick_line_color: grid, minor_tick_line_color: null};
  const figure = Plotting.figure({
    sizing_mode: "stretch_both", background_fill_color: paper, border_fill_color: paper, outline_line_color: null, min_border_right: 10,
    x_range: new Range1d(), y_range: new Range1d(), y_axis_type: look.y.log ? "log" : "linear",
    tools: look.zoom ? "box_zoom,pan,reset" : "", toolbar_location: look.zoom ? "above" : null, toolbar_sticky: false,
    active_drag: matchMedia("(pointer: coarse)").matches ? null : "box_zoom"});  // a finger scrolls the page
  figure.toolbar.logo = null;
  if (look.zoom) figure.add_tools(new Bokeh.SaveTool({filename: look.y.title.replace(/\W+/g, "_")}));
  figure.title.setv({...text, align: "right"});
  for (const each of figure.axes) each.setv(axis);
  for (const each of figure.grids) each.grid_line_color = grid;
  const sources = marks.map(mark => new ColumnDataSource({data: columns(mark)})), pointer = new ColumnDataSource({data: {x: [], y: []}});
  const glyphs = marks.map((mark, i) => addGlyph(figure, mark, sources[i]));
  const hover = (renderer, text, more) => figure.add_tools(new HoverTool({
    visible: false, renderers: [renderer], limit: 3, tooltips: (_, {index}) => element("div", text(index), null, {style: "white-space: pre-line"}), ...more}));
  if (look.together) {
    const line = figure.line({field: "x"}, {field: "y"}, {source: pointer, line_alpha: 0});
    hover(line, i => tellAll(shown.marks, pointer.data.x[i], figure.x_range), {mode: "vline", line_policy: "nearest"});
    figure.add_tools(new CrosshairTool({visible: false, dimensions: "height", line_color: ink, line_alpha: 0.4}));
  } else {
    marks.forEach((mark, i) => { if (mark.tell) hover(glyphs[i], k => shown.marks[i].tell(k)); });
  }
  const labels = look.levels && new LinearAxis({...axis, axis_line_color: null, major_label_text_font_size: "12px"});
  if (labels) figure.add_layout(labels, "right");
  Object.assign(shown, {key, figure, sources, pointer, labels, home: new Map(), annotated: "", placed: "", leaders: [], center: [...figure.center]});
  place.replaceChildren();
  place.role = "img";
  place.ariaLabel = `${look.y.title} against ${look.x.title}`;
  place.onclick = event => { if (matchMedia("(pointer: coarse)").matches) tap(shown, event); };
  shown.view = Plotting.show(figure, place);
  shown.told = element("div", "", place, {className: "told"});
  shown.view.then(() => {
    const {inner_width, inner_height} = figure.properties;
    figure.x_range.change.connect(() => placeTicks(shown));
    for (const each of [figure.y_range, inner_width, inner_height]) each.change.connect(() => placeLabels(shown));
    placeLabels(shown);
  });
}

// A finger cannot point: a tap tells what is next to it, above the plot, until a tap there.
async function tap({marks, look, told, view, figure}, {clientX, clientY, target}) {
  if (target === told) return told.replaceChildren();
  const {el, frame: {x_scale, y_scale}} = await view, box = el.getBoundingClientRect();
  const far = (mark, i) => Math.hypot(box.x + x_scale.compute(mark.x[i]) - clientX, mark.kind === "bars" ? 0 : box.y + y_scale.compute(mark.y[i]) - clientY);
  const all = marks.filter(mark => mark.tell).flatMap(mark => mark.x.map((_, i) => [far(mark, i), mark, i]));
  const [, mark, i] = all.reduce((best, each) => each[0] < best[0] ? each : best, [Infinity]);
  if (mark) told.textContent = look.together ? tellAll(marks, mark.x[i], figure.x_range) : mark.tell(i);
}

function addGlyph(figure, {kind, color, alpha = 1, width = 1.5, dash = "solid", marker = "circle"}, source) {
  const x = {field: "x"}, y = {field: "y"}, filled = {source, fill_color: {field: "color"}, fill_alpha: {field: "alpha"}};
  if (kind === "line") return figure.line(x, y, {source, line_color: color, line_alpha: alpha, line_width: width, line_dash: dash});
  if (kind === "bars") return figure.vbar(x, width, y, 0, {...filled, line_color: null});
  return figure.scatter(x, y, {...filled, marker, size: {field: "size"}, line_color: marker === "star" ? "white" : null});
}

function columns({x, y, color, alpha = 1, size = 6}) {
  const each = value => Array.isArray(value) ? value : x.map(() => value);
  return {x, y, color: each(color), alpha: each(alpha), size: each(size)};
}

// Where one can point at, if the marks tell together: at every place of each.
function pointed(marks) {
  const points = marks.filter(mark => mark.tell).flatMap(mark => mark.x.map((x, i) => [x, mark.y[i]])).sort((a, b) => a[0] - b[0]);
  return {x: points.map(each => each[0]), y: points.map(each => each[1])};
}

function tellAll(marks, place, {start, end}) {
  const near = 0.01 * (end - start);
  const nearest = ({x}) => x.reduce((best, value, i) => Math.abs(value - place) < Math.abs(x[best] - place) ? i : best, 0);
  return marks.filter(mark => mark.tell && mark.x[0] - near <= place && place <= mark.x.at(-1) + near).map(mark => mark.tell(nearest(mark))).join("\n");
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
const namedTicks = ticks => ({ticker: new Bokeh.FixedTicker({ticks: ticks.map(([at]) => at)}),
                              major_label_overrides: new Map(ticks.map(([at, text]) => [at, new Bokeh.PlainText({text})]))});

function placeTicks(shown) {
  const {place, figure, look: {x}} = shown, [axis] = figure.xaxes, [grid] = figure.xgrids;
  const ticks = x.ticks?.(figure.x_range.start, figure.x_range.end), placed = JSON.stringify(ticks);
  if (!ticks || shown.placed === placed) return;
  shown.placed = placed;
  const crowded = ticks.reduce((sum, [, text]) => sum + 6 * text.length + 9, 60) > place.clientWidth;  // in pixels
  axis.setv({...namedTicks(ticks), major_label_orientation: crowded ? 0.6 : "horizontal"});
  grid.ticker = axis.ticker;
}

// From the lowest to the highest value, and some room.
function padded(values, room, log = false, fromZero = false) {
  const [scale, value] = scales(log), finite = values.map(scale).filter(each => Number.isFinite(each));
  if (!finite.length) return log ? [1, 10] : [0, 1];
  const low = fromZero ? 0 : finite.reduce((a, b) => Math.min(a, b), Infinity), high = finite.reduce((a, b) => Math.max(a, b), -Infinity);
  const more = room * (high - low || 1);
  return [value(fromZero ? 0 : low - more), value(high + more)];
}

// Levels are dotted lines with a label to the right; spans are shaded.
function annotate(shown) {
  const {look: {levels = [], spans = []}, figure, center} = shown, annotated = JSON.stringify([levels, spans]);
  if (shown.annotated === annotated) return;
  const lines = levels.map(([, location]) => new Bokeh.Span({location, dimension: "width", line_dash: [2, 4], line_color: "#888"}));
  const boxes = spans.map(({from, to, color}) => new Bokeh.BoxAnnotation({left: from, right: to, fill_color: color, fill_alpha: 0.1, line_color: null}));
  const place = {x_start: 0, x_end: 0, y_start: 0, y_end: 0, start_units: "screen", end_units: "screen"};
  const leaders = levels.map(() => new Bokeh.Arrow({...place, end: null, line_color: "#888"}));
  figure.center = [...center, ...boxes, ...lines, ...leaders];
  Object.assign(shown, {leaders, annotated});
}

// The labels are those of an axis to the right, at least 15 pixels apart; a line leads to a label that had to move.
function placeLabels({look: {levels = [], y}, figure, labels, leaders}) {
  if (!labels || figure.properties.inner_width.is_unset) return;
  const {inner_width: width, inner_height: height, y_range} = figure, [scale, value] = scales(y.log);
  const start = scale(y_range.start), length = scale(y_range.end) - start;
  const heights = levels.map(([, level]) => (scale(level) - start) / length * height), visible = heights.map(at => at >= -1 && at <= height + 1);
  const places = heights.filter((_, i) => visible[i]);
  for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i], places[i - 1] + 15);
  for (let i = places.length - 1, top = height; i >= 0; i--, top -= 15) top = places[i] = Math.min(places[i], top);
  const ticks = levels.filter((_, i) => visible[i]).map(([text], i) => [value(start + places[i] / height * length), text]);
  labels.setv(namedTicks(ticks));
  leaders.forEach((leader, i) => {
    const at = heights[i], end = places[visible.slice(0, i).filter(Boolean).length];
    leader.setv(visible[i] && Math.abs(end - at) > 1 ? {x_start: width - 15, x_end: width, y_start: at, y_end: end, visible: true} : {visible: false});
  });
}
