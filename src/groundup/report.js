/* The page is whole without this. It adds: colours by hand, buttons that copy commands, and curves that answer. */
"use strict";
const root = document.documentElement;
root.classList.add("js");

function add(parent, tag, attributes = {}, text = "") {
  const inside = tag === "svg" || parent.namespaceURI.endsWith("svg");
  const element = inside ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return parent.appendChild(element);
}

/* Colours */

function recall() { try { return localStorage.getItem("scheme") } catch { return null } }
function keep(scheme) { try { localStorage.setItem("scheme", scheme) } catch { /* a file need not have a store */ } }
{
  const system = matchMedia("(prefers-color-scheme: dark)");
  if (["light", "dark"].includes(recall())) root.dataset.scheme = recall();
  const isDark = () => (root.dataset.scheme ?? (system.matches ? "dark" : "light")) === "dark";
  const button = add(document.getElementById("top"), "button", { class: "scheme", type: "button" });
  const say = () => { button.textContent = isDark() ? "Light" : "Dark"; button.ariaLabel = `${button.textContent} colours` };
  button.onclick = () => { root.dataset.scheme = isDark() ? "light" : "dark"; keep(root.dataset.scheme); say() };
  system.onchange = say;
  say();
}

/* Commands */

for (const command of document.querySelectorAll("pre.command")) {
  const button = add(command.parentElement, "button", { type: "button" }, "Copy");
  button.ariaLabel = `Copy the command of ${command.previousElementSibling.textContent}`;
  button.onclick = async () => {
    getSelection().selectAllChildren(command);
    let copied = true;
    try { await navigator.clipboard.writeText(command.textContent) } catch { copied = document.execCommand("copy") }
    button.textContent = copied ? "Copied" : "Selected";
    setTimeout(() => button.textContent = "Copy", 2000);
  };
}

/* Curves. The numbers are those of the table below each. Geometry, ticks and labels are groundup/curves.py's. */

const LEFT = 46, RIGHT = 20, TOP = 10, BOTTOM = 34;
const settings = { log: false, smooth: true };
const number = (value, digits = 4) => String(Number.isInteger(value) ? value : Number(value.toPrecision(digits)));

function tickLabel(value) {
  if (Math.abs(value) < 10000) return String(Number(value.toPrecision(6)));
  const [size, unit] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => Math.abs(value) >= size);
  return Number((value / size).toPrecision(3)) + unit;
}

function ticks(low, high) {
  if (high <= low) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const rough = (high - low) / 4, size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map(factor => size * factor).find(step => step >= rough * .999);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toFixed(12)));
}

/* Powers of ten, at most seven or so; within two of them 2 and 5 times each too. */
function logTicks(low, high) {
  const first = Math.floor(Math.log10(low) + 1e-9), last = Math.max(first + 1, Math.ceil(Math.log10(high) - 1e-9));
  const factors = last - first > 2 ? [1] : [1, 2, 5], every = Math.ceil((last - first) / 6), ticks = [];
  for (let power = first; power < last + every; power += every)
    for (const factor of factors) ticks.push(Number((factor * 10 ** power).toPrecision(3)));
  const from = ticks.findLastIndex(tick => tick <= low * 1.000001), to = ticks.findIndex(tick => tick >= high * .999999);
  return ticks.slice(Math.max(0, from), Math.max(to, from + 1) + 1);
}

/* A chart's lines, [{label, points: [[step, value, mean], ...]}], from its table. */
function read(figure) {
  const lines = [];
  const table = figure.querySelector("table");
  [...table.tHead.rows[0].cells].slice(1).forEach((head, column) => {
    const cells = [...table.tBodies[0].rows].map(row => [Number(row.cells[0].textContent), row.cells[column + 1].textContent]);
    const points = cells.filter(([, text]) => text !== "").map(([step, text]) => [step, Number(text)]);
    if (head.dataset.mean === undefined) lines.push({ label: head.textContent, points });
    else points.forEach(([, mean], i) => lines.at(-1).points[i].push(mean));
  });
  for (const line of lines) for (const point of line.points) if (point.length < 3) point.push(point[1]);
  return lines;
}

class Curves {
  /* `named` is what a screen reader is told; `lines` may be replaced, and then draw() called. */
  constructor(svg, readout, named, lines, across = "step") {
    Object.assign(this, { svg, readout, named, lines, across, at: null, hidden: new Set() });
    [this.width, this.height] = svg.getAttribute("viewBox").split(" ").slice(2).map(Number);
    svg.tabIndex = 0;
    svg.setAttribute("role", "slider");
    svg.onpointermove = svg.onpointerdown = event => this.point(event);
    svg.onpointerleave = event => event.pointerType === "mouse" && this.leave();
    svg.onfocus = () => svg.matches(":focus-visible") && this.move(this.at ?? 0);
    svg.onblur = () => this.leave();
    svg.onkeydown = event => this.key(event);
    if (lines.length) {
      this.measure();
      this.rest();
    }
  }

  shown() { return this.lines.filter(line => !this.hidden.has(line.label)) }

  /* Where things are: the scales, and the steps that the cursor stops at. */
  measure() {
    const points = this.shown().flatMap(line => line.points), xs = points.map(point => point[0]);
    const ys = points.flatMap(point => settings.smooth ? point.slice(1) : [point[1]]);
    this.steps = [...new Set(xs)].sort((a, b) => a - b);
    this.log = settings.log && Math.min(...ys) > 0;
    this.xTicks = ticks(Math.min(...xs), Math.max(...xs));
    this.yTicks = (this.log ? logTicks : ticks)(Math.min(...ys), Math.max(...ys));
    const low = Math.min(...xs), high = Math.max(...xs), scale = this.log ? Math.log10 : y => y;
    const [bottom, top] = [scale(this.yTicks[0]), scale(this.yTicks.at(-1))];
    this.xTicks = this.xTicks.filter(tick => tick >= low && tick <= high);
    this.x = x => LEFT + (x - low) / (high - low || 1) * (this.width - LEFT - RIGHT);
    this.y = y => this.height - BOTTOM - (scale(y) - bottom) / (top - bottom || 1) * (this.height - TOP - BOTTOM);
    this.svg.setAttribute("aria-label", `${this.named}. Arrow keys read the values.`);
    this.svg.setAttribute("aria-valuemin", this.steps[0]);
    this.svg.setAttribute("aria-valuemax", this.steps.at(-1));
    this.svg.setAttribute("aria-valuenow", this.steps[0]);
    this.svg.setAttribute("aria-valuetext", this.summary());
  }

  summary() {
    return this.shown().map(({ label, points }) => `${label} from ${number(points[0][1])} to ${number(points.at(-1)[1])}`).join("; ");
  }

  draw() {
    this.measure();
    const { svg, x, y, width, height } = this;
    svg.replaceChildren();
    for (const tick of this.yTicks) {
      add(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) });
      add(svg, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, tickLabel(tick));
    }
    for (const tick of this.xTicks)
      add(svg, "text", { x: x(tick), y: height - BOTTOM + 15, "text-anchor": "middle" }, tickLabel(tick));
    add(svg, "text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, this.across + (this.log ? ", logarithmic" : ""));
    for (const line of this.shown()) {
      const colour = this.colour(line), which = settings.smooth ? 2 : 1;
      const dots = line.points.map(point => `M${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}h0`).join("");
      add(svg, "path", { class: `${line.points.length > 1 ? "raw" : "dot"} ${colour}`, d: dots });
      const path = line.points.map(point => `${x(point[0]).toFixed(1)},${y(point[which]).toFixed(1)}`).join(" ");
      add(svg, "polyline", { class: `line ${colour}`, points: path });
    }
    if (this.at === null) this.rest();
    else this.move(Math.min(this.at, this.steps.length - 1));
  }

  point(event) {
    const box = this.svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * this.width;
    const far = this.steps.map(step => Math.abs(this.x(step) - x));
    this.move(far.indexOf(Math.min(...far)));
  }

  key(event) {
    const last = this.steps.length - 1, at = this.at ?? 0;
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 10, PageUp: at + 10,
      Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.leave();
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.move(Math.max(0, Math.min(last, to)));
  }

  /* Reads the values at the step of that number; of a line that has none there, the nearest close by: runs log at other steps. */
  move(at) {
    this.leave();
    this.at = at;
    const step = this.steps[at], x = this.x(step), told = [];
    this.cursor = add(this.svg, "g", { "aria-hidden": "true" });
    add(this.cursor, "line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM });
    this.readout.textContent = "";
    add(this.readout, "b", {}, this.across === "step" ? `step ${number(step)}` : `${number(step)} %`);
    for (const line of this.shown()) {
      const far = line.points.map(point => Math.abs(this.x(point[0]) - x)), nearest = far.indexOf(Math.min(...far));
      if (far[nearest] > this.width / (this.across === "step" ? 50 : 16)) continue;
      const [there, value, mean] = line.points[nearest], colour = this.colour(line);
      add(this.cursor, "circle", { class: `here ${colour}`, cx: this.x(there), cy: this.y(value), r: 4 });
      add(this.readout, "i", { class: colour });
      const name = this.lines.length > 1 ? `${line.label} ` : "", smooth = mean === value ? "" : `, mean ${number(mean)}`;
      this.readout.append(name);
      add(this.readout, "b", {}, number(value));
      this.readout.append(smooth);
      told.push(`${line.label} ${number(value)}${smooth}`);
    }
    this.svg.setAttribute("aria-valuenow", step);
    this.svg.setAttribute("aria-valuetext", `${this.readout.firstChild.textContent}: ${told.join("; ")}`);
  }

  leave() {
    this.cursor?.remove();
    this.cursor = this.at = null;
    this.rest();
  }

  /* Where nothing is read: what each line came from and to. */
  rest() {
    this.readout.textContent = "";
    for (const line of this.shown().length > 4 ? [] : this.shown()) {
      const [first, last] = [line.points[0], line.points.at(-1)].map(point => number(point[settings.smooth ? 2 : 1], 3));
      add(this.readout, "i", { class: this.colour(line) });
      this.readout.append(first === last ? first : `${first} → ${last}`);
    }
  }

  colour(line) { return `s${this.lines.indexOf(line) % 8}` }
}

/* Each key a button that shows and hides its line; the last one shown stays. */
function keysOf(curves, keys) {
  keys.textContent = "";
  curves.lines.forEach((line, i) => {
    const key = add(keys, curves.lines.length > 1 ? "button" : "span", { class: "key" });
    add(key, "i", { class: `s${i % 8}` });
    key.append(line.label);
    if (key.tagName === "SPAN") return;
    key.type = "button";
    key.ariaPressed = !curves.hidden.has(line.label);
    key.onclick = () => {
      if (!curves.hidden.delete(line.label) && curves.shown().length > 1) curves.hidden.add(line.label);
      key.ariaPressed = !curves.hidden.has(line.label);
      curves.draw();
    };
  });
}

const charts = [...document.querySelectorAll("figure.chart")].map(figure => {
  const svg = figure.querySelector("svg"), keys = figure.querySelector(".keys");
  const readout = document.createElement("div"), { title, rung } = figure.dataset;
  readout.className = "read";
  svg.before(readout);
  const curves = new Curves(svg, readout, `${title}, ${rung}`, read(figure));
  keysOf(curves, keys);
  return { title, rung, curves };
});

function together(heading) {
  const titles = [...new Set(charts.map(chart => chart.title))].filter(t => charts.filter(c => c.title === t).length > 1);
  const tools = add(document.createElement("div"), "div", { class: "tools" });
  heading.after(tools);
  const drawn = charts.map(chart => chart.curves);
  for (const [name, text] of [["smooth", "Running mean"], ["log", "Logarithmic scale"]]) {
    const label = add(tools, "label");
    const box = add(label, "input", { type: "checkbox" });
    box.checked = settings[name];
    label.append(text);
    box.onchange = () => { settings[name] = box.checked; for (const curves of drawn) curves.draw() };
  }
  if (!titles.length) return;

  const figure = document.createElement("figure");
  figure.className = "card together";
  tools.after(figure);
  const caption = add(figure, "figcaption"), choices = add(caption, "div", { class: "tools" });
  const chosen = add(choices, "label");
  add(chosen, "span", {}, "Rungs together");
  const choice = add(chosen, "select");
  for (const title of titles) add(choice, "option", {}, title);
  const label = add(choices, "label"), whole = add(label, "input", { type: "checkbox" });
  label.append("each over the whole of its run");
  whole.checked = true;
  const keys = add(caption, "small", { class: "keys" }), readout = add(figure, "div", { class: "read" });
  const width = Math.max(340, Math.min(1000, figure.clientWidth - 32));
  const svg = add(figure, "svg", { viewBox: `0 0 ${width} ${width > 600 ? 320 : 240}` });
  /* The first line of each rung before the others, which are hidden at first. */
  const lines = () => charts.filter(chart => chart.title === choice.value).flatMap(({ rung, curves }) => {
    const last = Math.max(...curves.lines.flatMap(line => line.points.map(point => point[0])));
    return curves.lines.map(({ label, points }, place) => ({
      place,
      label: curves.lines.length > 1 ? `${rung}, ${label}` : rung,
      points: whole.checked ? points.map(([step, ...values]) => [100 * step / last, ...values]) : points,
    }));
  }).sort((a, b) => a.place - b.place);
  const curves = new Curves(svg, readout, "", []);
  const show = () => {
    Object.assign(curves, { lines: lines(), named: `${choice.value}, several rungs`, across: whole.checked ? "% of the run" : "step" });
    curves.hidden = new Set(curves.lines.filter(line => line.place).map(line => line.label));
    curves.leave();
    keysOf(curves, keys);
    curves.draw();
  };
  choice.onchange = whole.onchange = show;
  drawn.push(curves);
  show();
}
const heading = document.querySelector("#curves + p, #rollouts + p");
if (charts.length && heading) together(heading);
