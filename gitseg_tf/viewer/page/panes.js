"use strict";

// Outlines of labels, and the three pictures of a scan. The scripts of the page share their names; index.html has their order.

// ---- outlines

// Closed lines along the edges of pixels, the label on the right; pixels that touch at a corner stay apart.
function outline(bits, width, height, bit) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x] & bit;
  const ends = new Map();
  const add = (x0, y0, x1, y1) => {
    const from = y0 * (width + 1) + x0, to = y1 * (width + 1) + x1;
    if (ends.has(from)) ends.get(from).push(to); else ends.set(from, [to]);
  };
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!(bits[i] & bit)) continue;
      if (!inside(x, y - 1)) add(x, y, x + 1, y);
      if (!inside(x + 1, y)) add(x + 1, y, x + 1, y + 1);
      if (!inside(x, y + 1)) add(x + 1, y + 1, x, y + 1);
      if (!inside(x - 1, y)) add(x, y + 1, x, y);
    }
  }
  const path = new Path2D(), row = width + 1, right = { 1: row, [row]: -1, [-1]: -row, [-row]: 1 };
  for (const start of ends.keys()) {
    while (ends.get(start).length) {
      let here = start, step = 0;
      path.moveTo(here % row, Math.floor(here / row));
      do {
        const out = ends.get(here);
        const turn = out.length > 1 ? out.indexOf(here + right[step]) : 0;
        const next = out.splice(Math.max(turn, 0), 1)[0];
        if (next - here !== step) path.lineTo(here % row, Math.floor(here / row));
        step = next - here;
        here = next;
      } while (here !== start);
      path.closePath();
    }
  }
  return path;
}

// The outline of a label, or null where the picture does not show it. Label k is bit k % 8 of the picture's group k >> 3.
function outlineOf(item, k, width, height) {
  const size = width * height, group = k >> 3, bit = 1 << (k & 7);
  item.paths ??= new Map();
  item.shown ??= Array.from({ length: item.bits.length / size }, (_, g) => {
    let all = 0;
    for (let i = g * size; i < (g + 1) * size; i++) all |= item.bits[i];
    return all;
  });
  if (!(item.shown[group] & bit)) return null;
  if (!item.paths.has(k)) item.paths.set(k, outline(item.bits.subarray(group * size, (group + 1) * size), width, height, bit));
  return item.paths.get(k);
}

// ---- panes

class Pane {
  constructor(figure, rank) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    this.rank = rank;
    this.raw = document.createElement("canvas");
    this.shown = "";
    new ResizeObserver(() => this.fit()).observe(figure);
  }

  get plane() {
    return [state.plane, ...PLANES.filter((plane) => plane !== state.plane)][this.rank];
  }

  fit() {
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.figure.clientWidth * scale));
    this.canvas.height = Math.max(1, Math.round(this.figure.clientHeight * scale));
    if (scan) this.draw();
  }

  clear() {
    this.shown = "";
    this.canvas.dataset.shown = "";
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  // Draws what is there, and draws again when the rest has come; until then the last slice stays, with its own contours.
  draw() {
    const plane = this.plane, index = state.at[plane], number = state.scan;
    // The plane may be in another pane by then, which has found the picture awaited already.
    const again = () => {
      if (!scan || number !== state.scan || index !== state.at[plane]) return;
      panes.filter((pane) => pane.plane === plane).forEach((pane) => pane.draw());
    };
    const image = picture(number, "image", plane, index);
    const layers = contoured().map((layer) => [layer, picture(number, layer, plane, index)]);
    for (const [layer, item] of [["image", image], ...layers]) {
      if (item.value || item.awaited) continue;
      item.awaited = true;
      item.ready.then(() => { item.awaited = false; again(); }, (error) => this.refused(error, layer, number));
    }
    if (image.value) this.paint(plane, index, image.value, layers.filter(([, item]) => item.value));
  }

  refused(error, layer, number) {
    if (!scan || number !== state.scan) return;
    if (layer === "prediction" && error.status === 404) followPrediction(); // it was let go to make room
    else if (layer === "truth") note(`Contours: ${error.message}`);
    else tell(error.message, true);
  }

  paint(plane, index, image, layers) {
    const { width, height, mm } = scan.planes[plane];
    if (this.raw.width !== width || this.raw.height !== height) Object.assign(this.raw, { width, height });
    const pixels = new ImageData(width, height);
    shade(image, new Uint32Array(pixels.data.buffer));
    this.raw.getContext("2d").putImageData(pixels, 0, 0);

    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const fit = Math.min(this.canvas.width / (width * mm[0]), this.canvas.height / (height * mm[1]));
    const sx = fit * mm[0], sy = fit * mm[1];
    const left = (this.canvas.width - width * sx) / 2, top = (this.canvas.height - height * sy) / 2;
    this.placed = { left, top, sx, sy };
    context.imageSmoothingQuality = "high";
    context.drawImage(this.raw, left, top, width * sx, height * sy);

    const thick = (window.devicePixelRatio || 1) * (this.rank ? 1 : 1.6);
    for (const [layer, item] of layers) {
      library.labels.forEach((label, k) => {
        if (state.hidden[layer].has(k)) return;
        const path = outlineOf(item.value, k, width, height);
        if (!path) return;
        const placed = new Path2D();
        placed.addPath(path, new DOMMatrix([sx, 0, 0, sy, left, top]));
        const dashed = layer === "prediction" && library.has_model;
        if (dashed) this.stroke(context, placed, "rgb(0 0 0 / .55)", thick * 2, []);
        this.stroke(context, placed, `rgb(${label.color})`, thick, dashed ? [thick * 4, thick * 2.5] : []);
      });
    }
    if (state.cross) this.paintCross(context, plane, thick);
    this.shown = `${library.scans[state.scan].id}/${plane}/${index}`;
    this.canvas.dataset.layers = layers.map(([layer]) => layer).join(" ");
    this.canvas.dataset.shown = this.shown;
    if (this.rank === 0) {
      tell("");
      state.window && prefetch();
    }
  }

  stroke(context, path, style, width, dash) {
    Object.assign(context, { strokeStyle: style, lineWidth: width, lineJoin: "round" });
    context.setLineDash(dash);
    context.stroke(path);
  }

  paintCross(context, plane, thick) {
    const [columns, rows] = ACROSS[plane], { left, top, sx, sy } = this.placed;
    const x = left + (rowOf(columns) + 0.5) * sx, y = top + (rowOf(rows) + 0.5) * sy, path = new Path2D();
    path.moveTo(x, 0);
    path.lineTo(x, this.canvas.height);
    path.moveTo(0, y);
    path.lineTo(this.canvas.width, y);
    this.stroke(context, path, "rgb(108 176 245 / .8)", thick * 0.7, [thick * 3, thick * 3]);
  }

  // The other planes' slices at a place of the page.
  under(event) {
    if (!this.placed || !this.shown) return null;
    const box = this.canvas.getBoundingClientRect(), scale = this.canvas.width / box.width;
    const { left, top, sx, sy } = this.placed, [columns, rows] = ACROSS[this.plane];
    const x = Math.floor(((event.clientX - box.left) * scale - left) / sx);
    const y = Math.floor(((event.clientY - box.top) * scale - top) / sy);
    const { width, height } = scan.planes[this.plane];
    if (x < 0 || y < 0 || x >= width || y >= height) return null;
    return { [columns]: x, [rows]: rows === "axial" ? sliceAt(y) : y, pixel: y * width + x };
  }
}

// Rows of coronal and sagittal planes stand for slices, missing ones included.
const rowOf = (plane) => (plane === "axial" ? scan.numbers[state.at.axial] - scan.numbers[0] : state.at[plane]);

function sliceAt(row) {
  const number = row + scan.numbers[0];
  return scan.numbers.reduce((best, n, i) => (Math.abs(n - number) < Math.abs(scan.numbers[best] - number) ? i : best), 0);
}

let shades = { key: "", table: new Uint32Array(65536) };

const grayOf = (value, low, width) => Math.max(0, Math.min(255, Math.round(((value - low) / width) * 255)));

// Fill 32-bit pixels with the grays of the window: integers by a table, floats one by one.
function shade(image, words) {
  const [width, level] = state.window, low = level - width / 2;
  if (image instanceof Float32Array) {
    for (let i = 0; i < image.length; i++) words[i] = 0xff000000 | (grayOf(image[i], low, width) * 0x010101);
    return;
  }
  const first = image instanceof Int16Array ? -32768 : 0, key = `${width},${level},${first}`;
  if (shades.key !== key) {
    for (let i = 0; i < 65536; i++) shades.table[i] = 0xff000000 | (grayOf(i + first, low, width) * 0x010101);
    shades.key = key;
  }
  for (let i = 0; i < image.length; i++) words[i] = shades.table[image[i] - first];
}

let panes = [];
const redraw = () => scan && panes.forEach((pane) => pane.draw());
