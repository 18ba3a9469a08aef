"use strict";

// What people operate: buttons, sliders, lists and keys. Each tells `page.update` what it wants to be so.

const OPACITY_BY_DEFAULT = 0.6;
const OPACITY_STEP = 0.1;
const LONGEST_FILM = 12000; // ms for all steps
const [SHORTEST_FRAME, LONGEST_FRAME] = [60, 400]; // ms
const OTHER_SAMPLES = "These two runs do not show the same samples: a row holds each run's own sample of that number.";
const CALM_FRAME = 1000; // ms, for who asked the system for less motion

const byId = (id) => document.getElementById(id);

/** The one behind in a list, from its end to its start again. */
function following(list, current, by = 1) {
  return list.at((list.indexOf(current) + by + list.length) % list.length);
}

function clamp(value, lowest, highest) {
  return Math.min(Math.max(value, lowest), highest);
}

/** What keys and buttons do; each by itself a change of the page's state. */
class Actions {
  constructor(page) {
    this.page = page;
  }

  goBy(count) {
    const { timeline, state } = this.page;
    this.goTo(timeline[clamp(nearestIndex(timeline, state.step) + count, 0, timeline.length - 1)]);
  }

  goTo(step) {
    this.page.update({ step, playing: false });
  }

  togglePlay() {
    const { timeline, state } = this.page;
    const starts = !state.playing && timeline.length > 1;
    this.page.update({ playing: starts, step: starts && state.step === timeline.at(-1) ? timeline[0] : state.step });
  }

  selectBy(count) {
    const { order } = this.page.samples;
    const place = order.indexOf(this.page.state.selected);
    const next = place < 0 ? (count > 0 ? 0 : order.length - 1) : clamp(place + count, 0, order.length - 1);
    this.page.update({ selected: order[next] });
    this.page.samples.reveal(order[next]);
  }

  changeOpacity(by) {
    this.page.update({ opacity: clamp(Math.round((this.page.state.opacity + by) * 100) / 100, 0, 1) });
  }

  nextView() {
    this.page.update({ view: following(this.page.offered, this.page.state.view) });
  }

  nextColorMap(by) {
    const names = this.page.painter.colorMaps.map(({ name }) => name);
    this.page.update({ colorMap: following(names, this.page.state.colorMap, by) });
  }

  nextOrder() {
    this.page.update({
      order: following(
        ORDERS.map(({ name }) => name),
        this.page.state.order,
      ),
    });
  }

  toggleRegions() {
    this.page.update({ regions: !this.page.state.regions });
  }

  toggleTheme() {
    this.page.update({ theme: isDark(this.page.state.theme) ? "light" : "dark" });
  }
}

function isDark(theme) {
  return theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : theme === "dark";
}

const KEYS = [
  { keys: ["ArrowLeft"], text: "←", does: "one step back", act: (actions) => actions.goBy(-1) },
  { keys: ["ArrowRight"], text: "→", does: "one step forth", act: (actions) => actions.goBy(1) },
  { keys: ["Home"], text: "Home", does: "the first step", act: (actions) => actions.goBy(-Infinity) },
  { keys: ["End"], text: "End", does: "the last step", act: (actions) => actions.goBy(Infinity) },
  { keys: [" "], text: "Space", does: "play or pause", act: (actions) => actions.togglePlay() },
  { keys: ["ArrowDown", "j"], text: "↓ or j", does: "the next sample", act: (actions) => actions.selectBy(1) },
  { keys: ["ArrowUp", "k"], text: "↑ or k", does: "the sample before", act: (actions) => actions.selectBy(-1) },
  { keys: ["Escape"], text: "Esc", does: "no sample", act: (actions) => actions.page.update({ selected: null }) },
  { keys: ["t"], text: "t", does: "the next target", act: (actions) => actions.nextView() },
  { keys: ["o"], text: "o", does: "more overlay", act: (actions) => actions.changeOpacity(OPACITY_STEP) },
  { keys: ["O"], text: "Shift o", does: "less overlay", act: (actions) => actions.changeOpacity(-OPACITY_STEP) },
  { keys: ["c"], text: "c", does: "the next colour map", act: (actions) => actions.nextColorMap(1) },
  { keys: ["C"], text: "Shift c", does: "the colour map before", act: (actions) => actions.nextColorMap(-1) },
  { keys: ["s"], text: "s", does: "the next order", act: (actions) => actions.nextOrder() },
  { keys: ["r"], text: "r", does: "outlines of the regions", act: (actions) => actions.toggleRegions() },
  { keys: ["d"], text: "d", does: "dark or light", act: (actions) => actions.toggleTheme() },
  { keys: ["?"], text: "?", does: "this help", act: () => byId("help").showModal() },
];

/** Whether a key belongs to the element that has the focus, which then does what it always does. */
function isTaken(key, focused) {
  const moves = key.startsWith("Arrow") || key === "Home" || key === "End";
  if (focused.matches("select")) return moves || key.length === 1;
  if (focused.matches("input[type=range]")) return moves && focused.id !== "step";
  return key === " " && focused.matches("button, input");
}

function keyRow({ text, does }) {
  return element("tr", {}, element("th", { scope: "row" }, text), element("td", {}, does));
}

function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const binding = KEYS.find(({ keys }) => keys.includes(event.key));
    if (!binding || isTaken(event.key, document.activeElement)) return;
    event.preventDefault();
    binding.act(actions);
  });
}

/** After a click the keys are for the page again; who goes by keys keeps the focus. */
function letGoAfterClicks() {
  let byPointer = false;
  document.addEventListener("pointerdown", () => (byPointer = true), true);
  document.addEventListener("keydown", () => (byPointer = false), true);
  document.addEventListener("change", (event) => byPointer && event.target.blur());
  document.addEventListener("click", (event) => byPointer && event.target.closest("button")?.blur());
}

/** Moves the step on while it plays. */
class Player {
  constructor(page) {
    this.page = page;
    this.timer = null;
  }

  render({ playing }, timeline) {
    if (playing === (this.timer !== null)) return;
    clearInterval(this.timer);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const frame = calm ? CALM_FRAME : clamp(LONGEST_FILM / timeline.length, SHORTEST_FRAME, LONGEST_FRAME);
    this.timer = playing ? setInterval(() => this.next(), frame) : null;
  }

  next() {
    const { state, timeline } = this.page;
    const index = nearestIndex(timeline, state.step) + 1;
    this.page.update({ step: timeline[Math.min(index, timeline.length - 1)], playing: index < timeline.length - 1 });
  }
}

/** The bar of controls, and all that is around the samples and the curves. */
class Controls {
  constructor(page) {
    this.page = page;
    this.actions = new Actions(page);
    this.player = new Player(page);
    this.fill();
    this.listen();
    listenToKeys(this.actions);
    letGoAfterClicks();
  }

  fill() {
    const { runs, painter, offered } = this.page;
    byId("target").append(...VIEWS.map((view) => this.viewButton(view, offered.includes(view.name))));
    byId("color-map").append(...painter.colorMaps.map(({ name }) => element("option", { value: name }, name)));
    byId("order").append(...ORDERS.map(({ name, text }) => element("option", { value: name }, text)));
    const options = () => runs.map(({ name }, number) => element("option", { value: number }, name));
    byId("left").append(...options());
    byId("right").append(element("option", { value: "" }, "none"), ...options());
    byId("runs-option").hidden = runs.length < 2;
    byId("keys").append(...KEYS.map(keyRow));
  }

  viewButton({ name, text, missing }, offered) {
    const button = element("button", { type: "button", "data-view": name }, text);
    Object.assign(button, { disabled: !offered, title: offered ? "" : missing });
    button.addEventListener("click", () => this.page.update({ view: name }));
    return button;
  }

  listen() {
    const { page, actions } = this;
    const on = (id, event, act) => byId(id).addEventListener(event, (given) => act(given.target, given));
    on("step", "input", (slider) => actions.goTo(page.timeline[slider.value]));
    on("play", "click", () => actions.togglePlay());
    on("back", "click", () => actions.goBy(-1));
    on("forth", "click", () => actions.goBy(1));
    on("opacity", "input", (slider) => page.update({ opacity: slider.value / 100 }));
    on("opacity-reset", "click", () => page.update({ opacity: OPACITY_BY_DEFAULT }));
    on("color-map", "change", (list) => page.update({ colorMap: list.value }));
    on("order", "change", (list) => page.update({ order: list.value }));
    on("regions", "change", (box) => page.update({ regions: box.checked }));
    on("left", "change", (list) => page.update({ left: Number(list.value) }));
    on("right", "change", (list) => page.update({ right: list.value === "" ? null : Number(list.value) }));
    on("theme", "click", () => actions.toggleTheme());
    on("help-open", "click", () => byId("help").showModal());
    on("options-open", "click", () => page.update({ optionsOpen: !page.state.optionsOpen }));
    on("show-samples", "click", () => page.update({ pane: "samples" }));
    on("show-curves", "click", () => page.update({ pane: "curves" }));
    on("deselect", "click", () => page.update({ selected: null }));
    on("sample-list", "click", (target) => this.clickSample(target));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.update({}));
  }

  clickSample(target) {
    const row = target.closest("[data-sample]");
    const marksText = String(getSelection()) && !target.closest("button");
    if (!row || marksText || target.closest(".chart")) return;
    const sample = Number(row.dataset.sample);
    this.page.update({ selected: this.page.state.selected === sample ? null : sample });
  }

  render(state, runs, timeline) {
    this.player.render(state, timeline);
    this.renderStep(state, runs, timeline);
    this.renderOptions(state, runs);
    this.renderRuns(state, runs);
    this.renderFrame(state);
  }

  renderStep({ step, playing }, runs, timeline) {
    const place = timeline.indexOf(step);
    const [text, rest] = stepTexts(place, runs[0], timeline);
    const widest = stepTexts(timeline.length - 1, runs[0], timeline).join(" ").length;
    byId("step-shown").style.setProperty("--step-width", `${0.88 * widest}ch`); // or the slider would change its length
    setText(byId("step-number"), text);
    setText(byId("step-place"), rest);
    const slider = byId("step");
    Object.assign(slider, { max: timeline.length - 1, value: place, disabled: timeline.length < 2 });
    slider.setAttribute("aria-valuetext", `${text}, ${rest}`);
    byId("back").disabled = place === 0;
    byId("forth").disabled = place === timeline.length - 1;
    byId("play").disabled = timeline.length < 2;
    byId("play").classList.toggle("playing", playing);
    byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  }

  renderOptions({ view, opacity, colorMap, order, regions }, runs) {
    for (const button of byId("target").children) button.setAttribute("aria-pressed", button.dataset.view === view);
    byId("opacity").value = Math.round(opacity * 100);
    setText(byId("opacity-shown"), `${Math.round(opacity * 100)} %`);
    byId("opacity-reset").classList.toggle("out", opacity === OPACITY_BY_DEFAULT);
    byId("color-map").value = colorMap;
    this.page.painter.drawScale(byId("color-bar"), { opacity, colorMap });
    byId("order").value = order;
    byId("regions").checked = regions;
    this.renderRegionNames(regions, runs);
  }

  renderRegionNames(shown, runs) {
    byId("regions-option").hidden = !runs.some((run) => run.regions.length);
    const names = [...new Set(runs.flatMap((run) => run.regions.map(({ name }) => name)))];
    const told = JSON.stringify([shown, names]);
    if (this.toldRegions === told) return;
    this.toldRegions = told;
    const items = names.map((name, number) => element("li", {}, swatch(`region-${number % 6}`), userText(name)));
    byId("region-names").replaceChildren(...(shown ? items : []));
  }

  renderRuns({ left, right }, runs) {
    byId("left").value = left;
    byId("right").value = right ?? "";
    setText(byId("summary"), this.page.runs.length > 1 ? "" : summaryOf(runs[0]));
    ["left-about", "right-about"].forEach((id, number) => {
      const run = runs[number];
      setText(byId(id), run ? summaryOf(run) : "");
    });
    const differ = runs.length > 1 && showDifferentSamples(...runs);
    byId("notice").classList.toggle("shown", differ);
    setText(byId("notice"), differ ? OTHER_SAMPLES : "");
  }

  renderFrame({ theme, pane, optionsOpen, selected }) {
    const dark = isDark(theme);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    setText(byId("theme"), dark ? "Light" : "Dark");
    document.body.dataset.pane = pane;
    byId("options").classList.toggle("open", optionsOpen);
    byId("options-open").setAttribute("aria-expanded", optionsOpen);
    byId("show-samples").setAttribute("aria-pressed", pane === "samples");
    byId("show-curves").setAttribute("aria-pressed", pane === "curves");
    byId("deselect").hidden = selected === null;
  }
}

/** A step of the slider in words: the step of the training, and where that is. */
function stepTexts(place, run, timeline) {
  const step = timeline[place];
  const epoch = run.epochs[run.nearest(step)];
  return [`step ${wholeNumber(step)}`, `${epoch < 0 ? "" : `epoch ${epoch} · `}${place + 1} of ${timeline.length}`];
}

function summaryOf(run) {
  const wrong = run.classes.filter((_, sample) => run.isMisclassified(sample)).length;
  const known = run.classes.some((_, sample) => run.hasLabel(sample));
  const count = (number, what) => `${wholeNumber(number)} ${what}${number === 1 ? "" : "s"}`;
  return `${count(run.steps.length, "step")} · ${count(run.count, "sample")}${known ? ` · ${wrong} misclassified at the end` : ""}`;
}

function showDifferentSamples(one, other) {
  return one.count !== other.count || one.images.some((image, sample) => image !== other.images[sample]);
}
