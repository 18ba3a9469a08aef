"use strict";

// The samples in rows: each with its image, the maps of one run or of two, and what is known at the step.

/** An element; texts among the children stay texts, whatever is in them. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A user's text, which may run from right to left and must not turn what stands beside it. */
function userText(text) {
  return element("bdi", {}, text);
}

/** A piece of a colour, for legends. */
function swatch(color, className = "swatch") {
  return element("span", { class: className, "data-color": color });
}

function faint(text) {
  return element("span", { class: "faint" }, text);
}

/** Set the text of an element only where it changes, as most do not from step to step. */
function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

const ORDERS = [
  { name: "misclassified-drift", text: "Misclassified, drift", keys: ["misclassified", "drift"] },
  { name: "misclassified", text: "Misclassified", keys: ["misclassified"] },
  { name: "drift", text: "Drift", keys: ["drift"] },
  { name: "index", text: "Number", keys: [] },
];

/** The numbers of the samples in an order, by what the left run says of them. */
function orderedSamples(run, count, order) {
  const { keys } = ORDERS.find((one) => one.name === order);
  const ranks = Array.from({ length: count }, (_, sample) => {
    const known = sample < run.count;
    return { misclassified: Number(known && run.isMisclassified(sample)), drift: run.meanDrift(sample) || 0 };
  });
  const compare = (one, other) => keys.map((key) => ranks[other][key] - ranks[one][key]).find((sign) => sign) ?? 0;
  return [...ranks.keys()].sort((one, other) => compare(one, other) || one - other);
}

/** A canvas with lines below it. */
class Cell {
  constructor(className) {
    this.canvas = element("canvas", { role: "img" });
    this.picture = element("div", { class: "picture" }, this.canvas);
    this.caption = element("figcaption");
    this.node = element("figure", { class: className }, this.picture, this.caption);
  }
}

class ImageCell extends Cell {
  constructor(painter, run, sample) {
    super("original");
    this.show = { painter, run, sample };
    this.canvas.setAttribute("aria-label", `Image of sample ${sample}`);
    painter.fit(this.canvas, run.images[sample]);
    const classes = run.classes[sample];
    const known = element("p", { class: "title" }, faint("label: "), userText(run.namesOf(classes ?? []) || "none"));
    this.caption.append(classes === null ? "label not known" : known);
  }

  draw(state) {
    const { painter, run, sample } = this.show;
    if (this.drawn === state.regions) return;
    this.drawn = state.regions;
    painter.drawImage(this.canvas, run.images[sample]);
    if (state.regions) painter.drawOutlines(this.canvas, run, sample);
  }
}

class MapCell extends Cell {
  /** `number` tells the cells of one sample and run apart where a view has several. */
  constructor(painter, run, sample, number) {
    super("map");
    this.show = { painter, run, sample, number };
    this.reason = element("p", { class: "reason" });
    this.picture.append(this.reason);
    this.title = element("p", { class: "title" });
    this.role = element("p", { class: "faint" });
    this.scores = element("p");
    this.caption.append(this.title, this.role, this.scores);
    if (sample < run.count) painter.fit(this.canvas, run.images[sample]);
  }

  draw(state, at) {
    const { painter, run, sample, number } = this.show;
    const contents = cellContents(run, at, sample, state.view, number);
    if (sample < run.count) {
      painter.drawMap(this.canvas, run.images[sample], contents.map, run.grid, state);
      if (state.regions) painter.drawOutlines(this.canvas, run, sample);
    }
    this.tell(contents);
  }

  tell({ title, role, scores, map, reason }) {
    const { run, sample } = this.show;
    const plain = title.map((part) => part.name ?? part).join("");
    const parts = title.map((part) => (part.name === undefined ? part : userText(part.name)));
    const probability = scores ? `${run.scoreName} ${shortNumber(scores.score)}${scores.ofTwo ? " of the two" : ""}` : "";
    this.canvas.setAttribute("aria-label", `Map of sample ${sample} in ${run.name}: ${plain || reason}`);
    this.node.classList.toggle("without-map", !map);
    setText(this.reason, map ? "" : reason);
    const told = `${plain} ${probability}`;
    if (this.told !== told) this.title.replaceChildren(...parts, " ", faint(probability));
    [this.told, this.title.title] = [told, plain];
    setText(this.role, map && reason ? `${role}: ${reason}` : role);
    const [kept, removed] = [scores?.preserved, scores?.removed].map(shortNumber);
    setText(this.scores, scores ? `kept ${kept} · removed ${removed}` : "");
  }
}

/** What one run has of a sample. */
class RunPart {
  constructor(painter, run, sample, { mark, view, withImage }) {
    this.run = run;
    this.sample = sample;
    const numbers = [...Array(run.cellCount(view, sample)).keys()];
    this.cells = numbers.map((number) => new MapCell(painter, run, sample, number));
    if (withImage && sample < run.count) this.image = new ImageCell(painter, run, sample);
    const figures = [this.image, ...this.cells].filter(Boolean).map((cell) => cell.node);
    this.facts = element("dl", { class: "facts" });
    this.node = element("div", { class: "run-part" }, element("div", { class: "figures" }, ...figures), this.facts);
    this.step = faint("");
    const name = element("span", { class: "name" }, userText(run.name));
    if (mark) this.node.prepend(element("p", { class: "run-name" }, runMark(mark), name, this.step));
  }

  draw(state) {
    const at = this.run.nearest(state.step);
    this.image?.draw(state);
    for (const cell of this.cells) cell.draw(state, at);
    setText(this.step, `step ${wholeNumber(this.run.steps[at])}`);
    if (this.sample < this.run.count) this.tell(at);
  }

  tell(at) {
    if (this.told === at) return;
    this.told = at;
    const { run, sample } = this;
    const facts = [
      ["predicted", predictionText(run, at, sample)],
      ["drift", [shortNumber(run.value("drift", at, sample))]],
      ["settled", [settledText(run, sample)]],
    ];
    this.facts.replaceChildren(
      ...facts.map(([name, texts]) => element("div", {}, element("dt", {}, name), element("dd", {}, ...texts))),
    );
  }
}

function runMark(mark) {
  return element("span", { class: "mark", "data-run": mark }, mark);
}

function predictionText(run, at, sample) {
  const predicted = run.predicted.at(at, sample);
  if (predicted < 0) return ["not known"];
  const right = run.isRight(at, sample);
  const [verdict, sign] = right ? ["right", "✓"] : ["wrong", "✗"];
  const mark = element("span", { class: verdict, role: "img", "aria-label": verdict }, sign);
  const probability = faint(`${run.scoreName} ${shortNumber(run.predictedScores.at(at, sample))}`);
  return [...(run.hasLabel(sample) ? [mark, " "] : []), userText(run.className(predicted)), " ", probability];
}

function settledText(run, sample) {
  if (!run.settled) return "–";
  return run.settled[sample] === null ? "not yet" : `at step ${wholeNumber(run.settled[sample])}`;
}

/** One sample: a row of the list. */
class SampleRow {
  constructor(sample, runs, view, { painter, onStep }) {
    const [left, right] = runs;
    const shared = !right || (left.images[sample] !== undefined && left.images[sample] === right.images[sample]);
    this.sample = sample;
    this.pick = element("button", { type: "button", class: "pick" }, `Sample ${sample}`);
    this.image = shared ? new ImageCell(painter, left, sample) : null;
    this.parts = runs.map(
      (run, number) => new RunPart(painter, run, sample, { mark: right && "AB"[number], view, withImage: !shared }),
    );
    this.track = right ? null : new Track(left, sample, onStep);
    const head = element("div", { class: "sample-head" }, this.pick, ...badges(runs, sample), driftNote(runs, sample));
    const parts = element("div", { class: "run-parts" }, ...this.parts.map((part) => part.node));
    const body = element("div", { class: "sample-body" });
    body.append(...[this.image?.node, parts, this.track?.node].filter(Boolean));
    this.node = element("li", { class: "sample", "data-sample": sample }, head, body);
  }

  draw(state, timeline) {
    this.image?.draw(state);
    for (const part of this.parts) part.draw(state);
    this.track?.draw(state, timeline);
    const selected = state.selected === this.sample;
    this.node.classList.toggle("selected", selected);
    this.pick.setAttribute("aria-pressed", selected);
  }
}

function badges(runs, sample) {
  const marks = runs.length > 1 ? ["A", "B"] : [""];
  const wrong = marks.filter((_, number) => sample < runs[number].count && runs[number].isMisclassified(sample));
  if (!wrong.length) return [];
  const where = wrong.length === marks.length ? "" : ` in ${wrong.join()}`;
  return [element("span", { class: "badge" }, `misclassified at the end${where}`)];
}

function driftNote(runs, sample) {
  const drifts = runs.map((run) => shortNumber(sample < run.count ? run.meanDrift(sample) : NaN));
  return faint(`mean drift ${drifts.join(" | ")}`);
}

const TRACK_HEIGHT = 116; // px
const TRACK_CURVES = [
  { curve: "preserved", text: "kept", color: "1" },
  { curve: "removed", text: "removed", color: "2" },
  { curve: "drift", text: "drift", color: "3" },
];

/** One sample's own curves, small, where there is room for them. */
class Track {
  constructor(run, sample, onStep) {
    const curves = TRACK_CURVES.filter(({ curve }) => run.curves.has(curve));
    const common = { steps: run.steps, strong: true };
    this.lines = curves.map(({ curve, color }) => ({ ...common, color, values: run.series(curve, sample) }));
    this.label = `Curves of sample ${sample}`;
    this.onStep = onStep;
    this.place = element("div", { class: "track-chart" });
    const legend = curves.map(({ text, color }) => element("li", {}, swatch(color), text));
    this.node = element("div", { class: "track" }, this.place, element("ul", { class: "legend" }, ...legend));
  }

  draw({ step, layout }, timeline) {
    if (!this.lines.length) return;
    if (this.layout !== layout) this.make(this.place.clientWidth, [timeline[0], timeline.at(-1)]);
    this.layout = layout;
    this.chart?.moveCursor(step);
  }

  make(width, steps) {
    this.chart = null;
    if (!width) return; // there is no room
    const range = extent(
      [0, 1],
      this.lines.flatMap((line) => line.values),
    );
    this.chart = new Chart({ lines: this.lines, range, steps, width, height: TRACK_HEIGHT, label: this.label });
    this.chart.onDrag(this.onStep);
    this.place.replaceChildren(this.chart.node);
  }
}

/** All rows; made anew where the runs or the view change, moved where the order does, and drawn at each step. */
class SampleList {
  constructor(node, tools) {
    this.node = node;
    this.tools = tools; // {painter, onStep}
    this.rows = [];
    this.order = [];
    this.inView = new Set(); // numbers of samples
    this.watcher = new IntersectionObserver((entries) => entries.forEach((entry) => this.noteView(entry)));
  }

  noteView({ target, isIntersecting }) {
    const sample = Number(target.dataset.sample);
    if (isIntersecting) this.inView.add(sample);
    else this.inView.delete(sample);
  }

  render(state, runs, timeline) {
    const count = Math.max(...runs.map((run) => run.count));
    const made = [state.left, state.right, state.view].join();
    if (this.made !== made) {
      this.rows = Array.from({ length: count }, (_, sample) => new SampleRow(sample, runs, state.view, this.tools));
      this.watcher.disconnect();
      this.rows.forEach((row) => this.watcher.observe(row.node));
      this.node.dataset.runs = runs.length;
      this.node.dataset.view = state.view;
    }
    if (this.made !== made || this.sorted !== state.order) {
      this.order = orderedSamples(runs[0], count, state.order);
      this.node.replaceChildren(...this.order.map((sample) => this.rows[sample].node));
    }
    [this.made, this.sorted] = [made, state.order];
    this.drawRows(state, timeline);
  }

  /** Those in view at once, the others as soon as there is time, so that many samples do not make the steps jerk. */
  drawRows(state, timeline) {
    const draw = (sample) => this.rows[sample].draw(state, timeline);
    this.cancel?.();
    this.order.filter((sample) => this.inView.has(sample)).forEach(draw);
    this.cancel = inTurn(
      this.order.filter((sample) => !this.inView.has(sample)),
      draw,
    );
  }

  /** Bring a sample's row into view. */
  reveal(sample) {
    this.rows[sample]?.node.scrollIntoView({ block: "nearest" });
  }
}

/** Do some work for one after the other while the browser has nothing else to do; returns what calls that off. */
function inTurn(waiting, work) {
  const [ask, forget] = window.requestIdleCallback
    ? [(turn) => requestIdleCallback(turn, { timeout: 200 }), cancelIdleCallback]
    : [(turn) => setTimeout(turn, 20, { timeRemaining: () => 0 }), clearTimeout];
  const queue = [...waiting];
  const turn = (deadline) => {
    do work(queue.shift());
    while (queue.length && deadline.timeRemaining() > 3);
    if (queue.length) handle = ask(turn);
  };
  let handle = queue.length ? ask(turn) : null;
  return () => handle !== null && forget(handle);
}
