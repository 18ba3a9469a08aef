"use strict";

// One chart: lines over the steps, true to scale, with a cursor that can be dragged.

const CHART_MARGIN = { top: 8, right: 10, bottom: 20, left: 38 }; // px

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Maps numbers from one range to another. */
function linear([from, to], [start, end]) {
  const slope = to > from ? (end - start) / (to - from) : 0;
  const scale = (value) => (slope ? start + (value - from) * slope : (start + end) / 2);
  scale.inverse = (place) => (slope ? from + (place - start) / slope : from);
  return scale;
}

/** The smallest and the largest of some numbers and further values, of which those that are no numbers do not count. */
function extent(numbers, values) {
  const known = values.filter(Number.isFinite);
  const all = [...numbers, ...known];
  return [all.reduce((one, other) => Math.min(one, other)), all.reduce((one, other) => Math.max(one, other))];
}

/** About `count` round numbers in a range. */
function ticks([from, to], count) {
  if (!(to > from)) return [from];
  const rough = (to - from) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** The range, widened to end at round numbers. */
function rounded([from, to], count) {
  const [first, second] = ticks([from, to], count);
  const step = second - first;
  return step > 0 ? [Math.floor(from / step + 1e-9) * step, Math.ceil(to / step - 1e-9) * step] : [from, to];
}

/** Short enough for an axis: 1200000 is 1.2M. */
function tickText(value) {
  const notation = Math.abs(value) < 10000 ? "standard" : "compact";
  return value.toLocaleString("en-GB", { notation, maximumSignificantDigits: 6 });
}

/**
 * A chart of `lines`, each {steps, values, color, dashed, strong, band}: a band reaches from 0 up to its values.
 * `range` is that of the values, `steps` that of the axis; `width` and `height` are in px.
 */
class Chart {
  constructor({ lines, range, steps, width, height, label }) {
    this.lines = lines;
    this.left = CHART_MARGIN.left;
    this.right = width - CHART_MARGIN.right;
    this.bottom = height - CHART_MARGIN.bottom;
    const [lowest, highest] = rounded(range, 4);
    this.x = linear(steps, [this.left, this.right]);
    this.y = linear([lowest, highest], [this.bottom, CHART_MARGIN.top]);
    this.cursor = svg("line", { class: "cursor", y1: CHART_MARGIN.top, y2: this.bottom });
    this.dots = lines.map((line) => svg("circle", { class: "dot", r: 3, "data-color": line.color }));
    const drawn = [...lines].sort((one, other) => Number(one.strong) - Number(other.strong));
    this.node = svg(
      "svg",
      { class: "chart", role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` },
      ...this.valueAxis([lowest, highest]),
      ...this.stepAxis(steps),
      ...drawn.map((line) => this.drawnLine(line)),
      this.cursor,
      ...this.dots,
    );
  }

  valueAxis(range) {
    const count = (this.bottom - CHART_MARGIN.top) / 30;
    return ticks(range, count).flatMap((value) => {
      const y = this.y(value);
      return [
        svg("line", { class: value === 0 ? "axis" : "grid", x1: this.left, x2: this.right, y1: y, y2: y }),
        svg("text", { class: "tick", x: this.left - 6, y: y + 3.5, "text-anchor": "end" }, tickText(value)),
      ];
    });
  }

  stepAxis(steps) {
    const shown = ticks(steps, Math.max((this.right - this.left) / 80, 2)).filter(Number.isInteger);
    const y = this.bottom + 16;
    const textAt = (x, anchor, text) => svg("text", { class: "tick", x, y, "text-anchor": anchor }, text);
    const marks = shown.flatMap((step) => [
      svg("line", { class: "axis", x1: this.x(step), x2: this.x(step), y1: this.bottom, y2: this.bottom + 4 }),
      textAt(this.x(step), "middle", tickText(step)),
    ]);
    return [textAt(this.left - 9, "end", "step"), ...marks];
  }

  drawnLine(line) {
    if (line.band) return svg("path", { class: "band", d: this.bandPath(line) });
    const classes = ["line", line.dashed && "dashed", line.strong && "strong"].filter(Boolean).join(" ");
    return svg("path", { class: classes, d: this.linePath(line), "data-color": line.color });
  }

  /** Values that are missing are gaps; one between two gaps is a dot, as its line has round ends. */
  linePath({ steps, values }) {
    const parts = values.map((value, index) => {
      if (Number.isNaN(value)) return "";
      const [x, y] = [this.x(steps[index]).toFixed(1), this.y(value).toFixed(1)];
      const starts = index === 0 || Number.isNaN(values[index - 1]);
      return starts ? `M${x} ${y}L${x} ${y}` : `L${x} ${y}`;
    });
    return parts.join("");
  }

  bandPath({ steps, values }) {
    const known = steps.map((step, index) => [this.x(step), this.y(values[index])]).filter(([, y]) => !Number.isNaN(y));
    if (!known.length) return "";
    const bottom = this.y(0);
    const outline = [[known[0][0], bottom], ...known, [known.at(-1)[0], bottom]];
    return `M${outline.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`;
  }

  moveCursor(step) {
    const x = this.x(step);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.lines.forEach((line, number) => {
      const index = nearestIndex(line.steps, step);
      const value = line.values[index];
      const shown = line.strong && !line.band && !Number.isNaN(value);
      this.dots[number].classList.toggle("shown", shown);
      if (!shown) return;
      this.dots[number].setAttribute("cx", this.x(line.steps[index]));
      this.dots[number].setAttribute("cy", this.y(value));
    });
  }

  /** Call back with the step below the pointer, while it is pressed. */
  onDrag(callback) {
    const tell = (event) => callback(this.x.inverse(event.clientX - this.node.getBoundingClientRect().left));
    this.node.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.node.setPointerCapture(event.pointerId);
      tell(event);
    });
    this.node.addEventListener("pointermove", (event) => {
      if (this.node.hasPointerCapture(event.pointerId)) tell(event);
    });
  }
}
