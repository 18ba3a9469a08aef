"use strict";

// The page: one state, and one way from it to what is seen.

class Page {
  constructor({ runs, colorMaps, missing }, pictures) {
    this.runs = runs.map((run) => new Run(run, missing));
    this.offered = VIEWS.map(({ name }) => name).filter((view) => this.runs.some((run) => run.offers(view)));
    this.painter = new Painter(
      pictures,
      colorMaps.map((one) => new ColorMap(one)),
      missing,
    );
    this.state = {
      left: 0,
      right: this.runs.length > 1 ? 1 : null, // null: the left run alone
      step: Infinity, // of the training; brought to the nearest that is shown
      view: ["label", "predicted", "contrast"].find((view) => this.runs[0].covers(view)) ?? "all",
      opacity: OPACITY_BY_DEFAULT,
      colorMap: colorMaps[0].name,
      order: ORDERS[0].name,
      regions: false,
      selected: null, // the number of a sample
      playing: false,
      theme: "auto",
      pane: "samples", // or "curves", where there is room for one of them alone
      optionsOpen: false,
      layout: 0, // counts the changes of the page's size
    };
    const onStep = (step) => this.controls.actions.goTo(step);
    this.samples = new SampleList(byId("sample-list"), { painter: this.painter, onStep });
    this.curves = new CurvePanel(byId("chart-list"), { title: byId("curves-title"), onStep });
    this.controls = new Controls(this);
    this.update({});
    this.watchSizes();
  }

  watchSizes() {
    const [toolbar, samples, curves] = ["toolbar", "samples", "curves"].map(byId);
    const observer = new ResizeObserver(() => {
      document.documentElement.style.setProperty("--toolbar-height", `${toolbar.offsetHeight}px`);
      const widths = `${samples.clientWidth}, ${curves.clientWidth}`; // heights change with every caption
      if (this.widths !== widths) this.update({ layout: this.state.layout + 1 });
      this.widths = widths;
    });
    [toolbar, samples, curves].forEach((node) => observer.observe(node));
  }

  /** Change the state, and show it with the next frame. */
  update(changes) {
    Object.assign(this.state, changes);
    this.timeline = this.timelineOf(this.shownRuns());
    this.state.step = this.timeline[nearestIndex(this.timeline, Math.min(this.state.step, this.timeline.at(-1)))];
    this.frame ??= requestAnimationFrame(() => this.render());
  }

  render() {
    this.frame = null;
    const runs = this.shownRuns();
    this.controls.render(this.state, runs, this.timeline);
    this.samples.render(this.state, runs, this.timeline);
    this.curves.render(this.state, runs, this.timeline);
  }

  shownRuns() {
    return [this.state.left, this.state.right].filter((number) => number !== null).map((number) => this.runs[number]);
  }

  /** The steps at which any of the runs has maps. */
  timelineOf(runs) {
    return [...new Set(runs.flatMap((run) => run.steps))].sort((one, other) => one - other);
  }
}

async function main() {
  const contents = JSON.parse(byId("contents").textContent);
  new Page(contents, await Promise.all(contents.images.map(Picture.load)));
}

main();
