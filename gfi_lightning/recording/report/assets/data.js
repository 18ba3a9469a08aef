"use strict";

// The contents of the page: what Python packed, and what each cell is to show of it.

/** Numbers of some shape. */
class Table {
  constructor({ type, shape, data }) {
    const bytes = bytesOf(data);
    const kinds = { u1: Uint8Array, i4: Int32Array, f4: Float32Array };
    this.values = new kinds[type](bytes.buffer);
    this.shape = shape;
  }

  /** The number at as many indices as there are axes. */
  at(...indices) {
    return this.values[this.place(indices)];
  }

  /** The numbers behind fewer indices than there are axes, without copying them. */
  part(...indices) {
    const size = this.shape.slice(indices.length).reduce((product, edge) => product * edge, 1);
    const start = this.place(indices) * size;
    return this.values.subarray(start, start + size);
  }

  place(indices) {
    return indices.reduce((place, index, axis) => place * this.shape[axis] + index, 0);
  }
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return bytes;
}

/** What can be shown of a sample, and how the choice is called. */
const VIEWS = [
  { name: "label", text: "Label", missing: "No map of a label is in this history." },
  { name: "predicted", text: "Predicted", missing: "No map of a prediction is in this history." },
  { name: "contrast", text: "Contrast", missing: "No map of why one class rather than another is in this history." },
  { name: "any", text: "Any class", missing: "The method of this history has no map of any class." },
  { name: "all", text: "All", missing: "" },
];

const SCORES = ["score", "preserved", "removed"]; // of each target

/** One training, as it was read from its log directory. */
class Run {
  constructor(packed, missing) {
    this.name = packed.name;
    this.steps = packed.steps;
    this.epochs = packed.epochs;
    this.classes = packed.classes; // of each sample the label, or all that are present; null where not known
    this.scoreName = packed.scoreName;
    this.images = packed.images;
    this.classNames = packed.classNames;
    this.settled = packed.settled;
    this.missing = missing;
    this.targets = new Table(packed.targets); // (steps, samples, slots), as against
    this.against = new Table(packed.against);
    this.heatmaps = new Table(packed.heatmaps); // (steps, samples, slots, h, w)
    this.foregrounds = new Table(packed.foregrounds); // (steps, samples, h, w)
    this.predicted = new Table(packed.predicted); // (steps, samples), as predictedScores and each curve
    this.predictedScores = new Table(packed.predictedScores);
    this.scores = Object.fromEntries(Object.entries(packed.scores).map(([name, table]) => [name, new Table(table)]));
    this.curves = new Map(packed.curves.map((curve) => [curve.name, new Table(curve)]));
    this.regions = packed.regions; // each with a name, the size of its masks, and the samples' masks
    this.means = new Map();
    this.used = [];
  }

  get count() {
    return this.classes.length;
  }

  get slots() {
    return this.targets.shape[2];
  }

  /** The height and width of the maps. */
  get grid() {
    return this.heatmaps.shape.slice(3);
  }

  /** Whether there is a map of any class: other methods than ours have none. */
  get hasForegrounds() {
    return this.foregrounds.shape[2] > 0;
  }

  /** The index of the step that is nearest; of two as near, the earlier. */
  nearest(step) {
    return nearestIndex(this.steps, step);
  }

  className(index) {
    return this.classNames[index] ?? `class ${index}`;
  }

  namesOf(classes) {
    return classes.map((index) => this.className(index)).join(", ");
  }

  isLabel(index, sample) {
    return (this.classes[sample] ?? []).includes(index);
  }

  hasLabel(sample) {
    return (this.classes[sample] ?? []).length > 0;
  }

  isRight(at, sample) {
    return this.isLabel(this.predicted.at(at, sample), sample);
  }

  /** Whether the sample is mispredicted at the last step; not if its label or the prediction is unknown. */
  isMisclassified(sample) {
    const last = this.steps.length - 1;
    return this.hasLabel(sample) && this.predicted.at(last, sample) >= 0 && !this.isRight(last, sample);
  }

  /** A curve's value for one sample; NaN where there is none. */
  value(curve, at, sample) {
    return sample < this.count ? (this.curves.get(curve)?.at(at, sample) ?? NaN) : NaN;
  }

  /** One sample's values at all steps. */
  series(curve, sample) {
    return this.steps.map((_, at) => this.value(curve, at, sample));
  }

  /** The means over the samples that have a value, at all steps. */
  mean(curve) {
    if (!this.means.has(curve)) {
      const table = this.curves.get(curve);
      this.means.set(
        curve,
        this.steps.map((_, at) => (table ? mean(table.part(at)) : NaN)),
      );
    }
    return this.means.get(curve);
  }

  /** The mean drift between two steps; NaN without. */
  meanDrift(sample) {
    return mean(this.series("drift", sample));
  }

  /** Which slot of a sample plays a role at a step; -1: none. */
  slotOf(role, at, sample) {
    const targets = this.targets.part(at, sample);
    const against = this.against.part(at, sample);
    if (role === "contrast") return against.findIndex((other) => other >= 0);
    const predicted = this.predicted.at(at, sample);
    const plays = (target) => (role === "label" ? this.isLabel(target, sample) : target >= 0 && target === predicted);
    return targets.findIndex((target, slot) => plays(target) && against[slot] < 0);
  }

  /** Whether any sample has a map for a view at any step. */
  offers(view) {
    if (view === "all") return true;
    if (view === "any") return this.hasForegrounds;
    return this.steps.some((_, at) => this.classes.some((_, sample) => this.slotOf(view, at, sample) >= 0));
  }

  /** Whether every sample has a map for a view at the last step. */
  covers(view) {
    return this.classes.every((_, sample) => this.slotOf(view, this.steps.length - 1, sample) >= 0);
  }

  /** How many cells a view needs for a sample, whatever the step. */
  cellCount(view, sample) {
    return view === "all" && sample < this.count ? this.usedSlots(sample) + this.hasForegrounds : 1;
  }

  /** How many targets a sample has at most. */
  usedSlots(sample) {
    if (!(sample in this.used)) {
      const places = this.steps.map((_, at) => this.targets.part(at, sample).findLastIndex((target) => target >= 0));
      this.used[sample] = 1 + places.reduce((one, other) => Math.max(one, other));
    }
    return this.used[sample];
  }
}

/**
 * What a cell shows: `title`, in parts of which names are {name}; `role`, what the map is of;
 * `map`, its levels, or null; `reason`, why there is none; and `scores`, or null.
 */
function cellContents(run, at, sample, view, number) {
  if (sample >= run.count) return withoutMap(`This run has no sample ${sample}.`);
  if (view === "any" || (view === "all" && number === run.usedSlots(sample))) return foregroundCell(run, at, sample);
  const slot = view === "all" ? number : run.slotOf(view, at, sample);
  return slot < 0 || run.targets.at(at, sample, slot) < 0
    ? withoutMap(whyNone(run, at, sample, view))
    : targetCell(run, at, sample, slot);
}

function foregroundCell(run, at, sample) {
  if (!run.hasForegrounds) return withoutMap("The method of this run has no map of any class.");
  const map = run.foregrounds.part(at, sample);
  const cell = { title: ["any class"], role: "what the features preserve", scores: null };
  return withMap(cell, map, run.missing);
}

function targetCell(run, at, sample, slot) {
  const [target, other] = [run.targets.at(at, sample, slot), run.against.at(at, sample, slot)];
  const title = [{ name: run.className(target) }];
  if (other >= 0) title.push(" rather than ", { name: run.className(other) });
  const [score, preserved, removed] = SCORES.map((name) => run.scores[name].at(at, sample, slot));
  const scores = { score, preserved, removed, ofTwo: other >= 0 };
  const cell = { title, role: roleOf(run, at, sample, target, other), scores };
  return withMap(cell, run.heatmaps.part(at, sample, slot), run.missing);
}

function roleOf(run, at, sample, target, other) {
  const predicted = run.predicted.at(at, sample);
  const isLabel = run.isLabel(target, sample);
  const label = run.classes[sample]?.length > 1 ? "a label" : "the label";
  if (other >= 0) {
    if (isLabel && other === predicted) return "the label, not the prediction";
    return target === predicted ? "the prediction, not the runner-up" : "as asked for";
  }
  if (isLabel && target === predicted) return `${label} and the prediction`;
  if (isLabel) return label;
  return target === predicted ? "the prediction" : "as asked for";
}

function withMap(cell, map, missing) {
  if (map[0] === missing) return { ...cell, map: null, reason: "The map is missing: its values are not finite." };
  return { ...cell, map, reason: map.some((level) => level > 0) ? "" : "no evidence found" };
}

function withoutMap(reason) {
  return { title: [], role: "", scores: null, map: null, reason };
}

function whyNone(run, at, sample, view) {
  const predicted = run.predicted.at(at, sample);
  const classes = { label: run.classes[sample] ?? [], predicted: predicted < 0 ? [] : [predicted] };
  const roles = { label: "label", predicted: "prediction" };
  if (view === "contrast") return "No contrast of two classes at this step.";
  if (view === "all") return "No further target at this step.";
  if (!classes[view].length) return `The ${roles[view]} is not known.`;
  return `No map of the ${roles[view]}, ${run.namesOf(classes[view])}, at this step.`;
}

function nearestIndex(ascending, value) {
  return ascending.reduce(
    (best, other, index) => (Math.abs(other - value) < Math.abs(ascending[best] - value) ? index : best),
    0,
  );
}

/** The mean of those that are numbers; NaN if none is. */
function mean(values) {
  const numbers = [...values].filter((value) => !Number.isNaN(value));
  return numbers.reduce((sum, value) => sum + value, 0) / (numbers.length || NaN);
}

/** For people: two or three digits, of small numbers the first one that is not 0. */
function shortNumber(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return wholeNumber(Math.round(value));
  if (size === 0) return "0";
  if (size >= 0.0095) return value.toFixed(2);
  return size >= 0.00095 ? value.toFixed(3) : value.toExponential(0).replace("e-", "e−");
}

function wholeNumber(value) {
  return value.toLocaleString("en-GB");
}
