"use strict";

// The curves of the runs that are shown: the means over the samples, and those of a sample that is selected.

/** Which curves share a chart. Values from 0 to 1 have that as their axis; others the range that they take. */
const CHARTS = [
  {
    title: "Kept and removed",
    unit: "score of the first target",
    fixed: true,
    curves: { preserved: ["kept", 1], removed: ["removed", 2] },
  },
  {
    title: "Drift",
    unit: "1 − rank correlation",
    curves: {
      drift_floor: ["noise floor", "floor"],
      drift: ["since the run before", 3],
      drift_from_first: ["since the first run", 4],
    },
  },
  {
    title: "Settled",
    unit: "share of the samples",
    fixed: true,
    curves: { settled: ["drift below 0.1 or the noise floor", 3] },
  },
  { title: "Energy in the regions", unit: "share of the map", fixed: true, prefix: "energy/" },
  { title: "Maximum in the regions", unit: "share of the samples", fixed: true, prefix: "pointing/" },
  {
    title: "Strongest fifth in common",
    unit: "intersection over union",
    fixed: true,
    curves: { top_fifth_iou: ["with the run before", 3], top_fifth_iou_from_first: ["with the first run", 4] },
  },
  {
    title: "Form of the map",
    unit: "0 a point, 1 all over",
    fixed: true,
    curves: { entropy: ["entropy", 5], area: ["area above half of the maximum", 6] },
  },
];

const CURVE_HEIGHT = 150; // px
const SMALLEST_RANGE = 0.1; // of drift, so that noise alone does not fill a chart

/** The charts that there are curves for; each with its curves, {curve, text, color}. */
function chartsOf(runs) {
  const names = [...new Set(runs.flatMap((run) => [...run.curves.keys()]))];
  const regions = [...new Set(runs.flatMap((run) => run.regions.map((region) => region.name)))];
  const charts = CHARTS.map((chart) => ({ ...chart, curves: curvesOf(chart, names, regions) }));
  const placed = new Set(charts.flatMap((chart) => chart.curves.map(({ curve }) => curve)));
  const others = names.filter((name) => !placed.has(name));
  const further = others.map((name) => ({ title: name, unit: "", curves: [{ curve: name, text: name, color: 1 }] }));
  return [...charts, ...further].filter((chart) => chart.curves.some(({ color }) => color !== "floor"));
}

function curvesOf({ curves, prefix }, names, regions) {
  if (prefix === undefined) {
    const known = Object.entries(curves).filter(([curve]) => names.includes(curve));
    return known.map(([curve, [text, color]]) => ({ curve, text, color }));
  }
  const matching = names.filter((name) => name.startsWith(prefix));
  return matching.map((curve, number) => {
    const text = curve.slice(prefix.length);
    const place = regions.indexOf(text);
    return { curve, text, color: `region-${(place < 0 ? number : place) % 6}` };
  });
}

/** A chart with its heading, and a legend that tells the values at the step. */
class CurveChart {
  constructor(chart, runs, { selected, steps, width }) {
    this.curves = chart.curves;
    this.entries = chart.curves.flatMap((curve) =>
      runs.flatMap((run, number) => linesOf(curve, run, number, selected)),
    );
    const lines = this.entries.map(({ line }) => line);
    const [range, label] = [rangeOf(chart, lines), `${chart.title} by step`];
    this.chart = new Chart({ lines, range, steps, width, height: CURVE_HEIGHT, label });
    this.readings = chart.curves.map(() => element("span", { class: "reading" }));
    const items = chart.curves.map((curve, number) => legendItem(curve, this.readings[number]));
    const legend = element("ul", { class: "legend" }, ...items);
    const heading = element("h3", {}, chart.title, " ", element("small", {}, chart.unit));
    this.node = element("article", { class: "curve" }, heading, this.chart.node, legend);
  }

  moveTo(step) {
    this.chart.moveCursor(step);
    this.curves.forEach((curve, number) => {
      const told = this.entries.filter((entry) => entry.curve === curve && entry.told);
      const values = told.map(({ line }) => shortNumber(line.values[nearestIndex(line.steps, step)]));
      setText(this.readings[number], values.join(" | "));
    });
  }
}

/** Of one curve the mean and, where a sample is selected, that sample's; the latter then stands out. */
function linesOf(curve, run, number, selected) {
  const [color, band, dashed] = [String(curve.color), curve.color === "floor", number > 0];
  const common = { steps: run.steps, color, band, dashed };
  const ofMean = { ...common, values: run.mean(curve.curve), strong: selected === null };
  if (selected === null) return [{ curve, told: true, line: ofMean }];
  const ofSample = { ...common, values: run.series(curve.curve, selected), strong: true };
  const entries = [{ curve, told: true, line: ofSample }];
  return band ? entries : [{ curve, told: false, line: ofMean }, ...entries];
}

function rangeOf({ fixed }, lines) {
  return extent(
    [0, fixed ? 1 : SMALLEST_RANGE],
    lines.flatMap((line) => line.values),
  );
}

function legendItem(curve, reading) {
  const sign = curve.color === "floor" ? swatch("floor", "swatch area") : swatch(curve.color);
  return element("li", {}, sign, userText(curve.text), reading);
}

/** All charts; made anew where the runs, the selection or the layout change. */
class CurvePanel {
  constructor(node, { title, onStep }) {
    this.node = node;
    this.title = title;
    this.onStep = onStep;
    this.charts = [];
  }

  render(state, runs, timeline) {
    const made = [state.left, state.right, state.selected, state.layout].join();
    if (this.made !== made) this.make(state, runs, timeline, this.node.clientWidth);
    this.made = made;
    for (const chart of this.charts) chart.moveTo(state.step);
  }

  make({ selected }, runs, timeline, width) {
    this.charts = [];
    if (!width) return; // the other part of the page is shown
    const steps = [timeline[0], timeline.at(-1)];
    this.charts = chartsOf(runs).map((chart) => new CurveChart(chart, runs, { selected, steps, width }));
    for (const { chart } of this.charts) chart.onDrag(this.onStep);
    this.node.replaceChildren(...this.charts.map((chart) => chart.node));
    const counts = [...new Set(runs.map((run) => run.count))].join(" | ");
    const meanText = `mean of ${counts} sample${counts === "1" ? "" : "s"}`;
    const ofMean = selected === null;
    const title = ofMean ? "Curves" : `Curves of sample ${selected}`;
    this.title.replaceChildren(title, " ", faint(ofMean ? meanText : `thin: ${meanText}`));
  }
}
