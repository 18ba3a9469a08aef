"use strict";

// Pixels: images, maps in colours over them, and the outlines of regions.

const LONGER_SIDE = 320; // px of a picture's canvas: as many as a cell has on a screen of twice the density
const RASTER_SIDE = 96; // px, at least, to which a map is enlarged before it is coloured
const MID_GREY = 128;
const NO_MAP_OPACITY = 0.3;

/** An image at the size of a cell's canvas, in colour and in grey. */
class Picture {
  constructor(image) {
    const factor = LONGER_SIDE / Math.max(image.naturalWidth, image.naturalHeight);
    this.width = Math.max(Math.round(image.naturalWidth * factor), 1);
    this.height = Math.max(Math.round(image.naturalHeight * factor), 1);
    this.coloured = newCanvas(this.width, this.height);
    const context = this.coloured.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, this.width, this.height);
    this.grey = greyCopy(this.coloured);
  }

  static async load(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return new Picture(image);
  }
}

function newCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function greyCopy(canvas) {
  const copy = newCanvas(canvas.width, canvas.height);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const { data } = pixels;
  for (let place = 0; place < data.length; place += 4) {
    data.fill(0.299 * data[place] + 0.587 * data[place + 1] + 0.114 * data[place + 2], place, place + 3);
  }
  copy.getContext("2d").putImageData(pixels, 0, 0);
  return copy;
}

/** 256 colours, from the lowest level to the highest. */
class ColorMap {
  constructor({ name, colors }) {
    this.name = name;
    this.bytes = bytesOf(colors);
    const rgba = new Uint8Array(256 * 4).fill(255);
    for (let index = 0; index < 256; index++) rgba.set(this.bytes.subarray(3 * index, 3 * index + 3), 4 * index);
    this.packed = new Uint32Array(rgba.buffer);
  }
}

/** Enlarges maps of one size, value by value, and colours them: colours in between would be others than the map's. */
class Raster {
  constructor(height, width, highest) {
    this.scale = Math.max(Math.ceil(RASTER_SIDE / Math.max(height, width)), 1);
    this.rows = neighbours(height, this.scale);
    this.columns = neighbours(width, this.scale);
    this.size = [height, width];
    this.toColor = 255 / highest;
    this.canvas = newCanvas(width * this.scale, height * this.scale);
    this.context = this.canvas.getContext("2d");
    this.pixels = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.colors = new Uint32Array(this.pixels.data.buffer);
    this.widened = new Float32Array(height * this.canvas.width);
  }

  /** A canvas with the map's colours, valid until the next call. */
  colored(map, colorMap) {
    this.widen(map);
    const width = this.canvas.width;
    this.rows.forEach(({ before, after, share }, row) => {
      const [upper, lower] = [before * width, after * width];
      for (let column = 0; column < width; column++) {
        const above = this.widened[upper + column];
        const level = above + share * (this.widened[lower + column] - above);
        this.colors[row * width + column] = colorMap.packed[(level * this.toColor + 0.5) | 0];
      }
    });
    this.context.putImageData(this.pixels, 0, 0);
    return this.canvas;
  }

  widen(map) {
    const [height, width] = this.size;
    this.columns.forEach(({ before, after, share }, column) => {
      for (let row = 0; row < height; row++) {
        const left = map[row * width + before];
        this.widened[row * this.columns.length + column] = left + share * (map[row * width + after] - left);
      }
    });
  }
}

/** For each place of an enlarged axis the two places that it lies between, and how far it is from the first. */
function neighbours(count, scale) {
  return Array.from({ length: count * scale }, (_, place) => {
    const position = Math.min(Math.max((place + 0.5) / scale - 0.5, 0), count - 1);
    const before = Math.floor(position);
    return { before, after: Math.min(before + 1, count - 1), share: position - before };
  });
}

/** Draws the cells' canvases. */
class Painter {
  constructor(pictures, colorMaps, missing) {
    this.pictures = pictures;
    this.colorMaps = colorMaps;
    this.missing = missing;
    this.rasters = new Map();
    this.outlines = new Map();
  }

  colorMap(name) {
    return this.colorMaps.find((one) => one.name === name);
  }

  /** Give a canvas the size of a picture, which all that is drawn on it has. */
  fit(canvas, image) {
    const { width, height } = this.pictures[image];
    Object.assign(canvas, { width, height });
  }

  drawImage(canvas, image) {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.pictures[image].coloured, 0, 0);
  }

  /** The map over the grey image, or without a map the faded image alone. */
  drawMap(canvas, image, map, grid, { opacity, colorMap }) {
    if (map && opacity === 0) return this.drawImage(canvas, image);
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    context.clearRect(0, 0, width, height);
    context.globalAlpha = map ? 1 : NO_MAP_OPACITY;
    context.drawImage(this.pictures[image].grey, 0, 0);
    if (map) {
      context.globalAlpha = opacity;
      context.drawImage(this.raster(grid).colored(map, this.colorMap(colorMap)), 0, 0, width, height);
    }
    context.globalAlpha = 1;
  }

  raster([height, width]) {
    const key = `${height} × ${width}`;
    if (!this.rasters.has(key)) this.rasters.set(key, new Raster(height, width, this.missing - 1));
    return this.rasters.get(key);
  }

  /** A run's regions in one of its samples, each in its colour, which is drawn on a dark one to be seen anywhere. */
  drawOutlines(canvas, run, sample) {
    const context = canvas.getContext("2d");
    run.regions.forEach((region, number) => {
      if (!region.masks[sample]) return;
      const outline = this.outline(region, sample, canvas);
      for (const [width, color] of [
        [5, "#000a"],
        [2.5, regionColor(number)],
      ]) {
        Object.assign(context, { lineWidth: width, strokeStyle: color, lineCap: "square" });
        context.stroke(outline);
      }
    });
  }

  outline(region, sample, canvas) {
    if (!this.outlines.has(region)) this.outlines.set(region, []);
    const known = this.outlines.get(region);
    known[sample] ??= outlineOf(bytesOf(region.masks[sample]), region.size, canvas);
    return known[sample];
  }

  /** The colours as they are seen: blended over mid grey as a map is over an image. */
  drawScale(canvas, { opacity, colorMap }) {
    const context = canvas.getContext("2d");
    const { bytes } = this.colorMap(colorMap);
    for (let column = 0; column < canvas.width; column++) {
      const index = Math.round((255 * column) / (canvas.width - 1));
      const color = [...bytes.subarray(3 * index, 3 * index + 3)];
      const seen = color.map((part) => Math.round((1 - opacity) * MID_GREY + opacity * part));
      context.fillStyle = `rgb(${seen.join(" ")})`;
      context.fillRect(column, 0, 1, 1);
    }
  }
}

/** Bright enough for any picture; the same in light and dark, and in the curves of the region. */
function regionColor(number) {
  return ["#4dd9ff", "#ffd23f", "#ff7ad9", "#7dff8a", "#ff9d57", "#c4a7ff"][number % 6];
}

/** The edges between inside and outside of a packed mask, as long straight lines, in px of a canvas. */
function outlineOf(bits, [height, width], canvas) {
  const path = new Path2D();
  const [down, right] = [canvas.height / height, canvas.width / width];
  const inside = (row, column) => {
    if (row < 0 || column < 0 || row >= height || column >= width) return false;
    const place = row * width + column;
    return Boolean((bits[place >> 3] >> (7 - (place & 7))) & 1);
  };
  const horizontal = (row, column) => inside(row - 1, column) !== inside(row, column);
  const vertical = (column, row) => inside(row, column - 1) !== inside(row, column);
  for (const [row, from, to] of edgeLines(horizontal, height, width)) {
    path.moveTo(from * right, row * down);
    path.lineTo(to * right, row * down);
  }
  for (const [column, from, to] of edgeLines(vertical, width, height)) {
    path.moveTo(column * right, from * down);
    path.lineTo(column * right, to * down);
  }
  return path;
}

/** The straight lines [line, from, to] that edges form, which lie on lines 0 to `lines`, each of `length` places. */
function edgeLines(isEdge, lines, length) {
  const found = [];
  for (let line = 0; line <= lines; line++) {
    let from = null;
    for (let place = 0; place <= length; place++) {
      const edge = place < length && isEdge(line, place);
      if (edge && from === null) from = place;
      if (!edge && from !== null) {
        found.push([line, from, place]);
        from = null;
      }
    }
  }
  return found;
}
