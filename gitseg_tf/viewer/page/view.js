"use strict";

const PLANES = ["axial", "coronal", "sagittal"];
const SIDES = { axial: "APRL", coronal: "HFRL", sagittal: "HFAP" }; // top, bottom, left, right
// Where a picture's columns and rows are in the other planes.
const ACROSS = { axial: ["sagittal", "coronal"], coronal: ["sagittal", "axial"], sagittal: ["coronal", "axial"] };
const LAYERS = ["truth", "prediction"];
const PICTURES_KEPT = 600;
const AHEAD = 8; // pictures fetched before they are asked for
const FETCHING = 3; // of those at a time
const POLL_MS = 400;
const UNREADABLE = 422; // the status of a scan that cannot be read

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

const state = {
  scan: -1,
  plane: "axial",
  at: { axial: 0, coronal: 0, sagittal: 0 },
  window: null, // [width, level]
  hidden: { truth: new Set(), prediction: new Set() },
  cross: false,
};
let library = null;
let scan = null; // what the server says of the open scan; null until it is read
let opening = 0;
let order = []; // of the list
let sorting = { key: "id", down: false };
let direction = 1;
let predictionSince = 0;

// ---- pictures from the server

const pictures = new Map();

class Refused extends Error {}

async function ask(address) {
  let answer;
  try {
    answer = await fetch(address);
  } catch {
    throw new Refused("The viewer does not answer; is it still running?");
  }
  if (answer.ok) return answer;
  const refusal = await answer.json().catch(() => ({}));
  throw Object.assign(new Refused(refusal.detail || `${answer.status} ${answer.statusText}`), { status: answer.status });
}

function picture(number, layer, plane, index) {
  const key = `${number}/${layer}/${plane}/${index}`;
  let item = pictures.get(key);
  if (item) {
    pictures.delete(key); // the newest is last
  } else {
    item = { value: null };
    item.ready = ask(`api/scans/${key}`)
      .then((answer) => answer.arrayBuffer())
      .then((buffer) => (item.value = layer === "image" ? new Uint16Array(buffer) : { bits: new Uint8Array(buffer) }));
    item.ready.catch(() => pictures.delete(key));
  }
  pictures.set(key, item);
  if (pictures.size > PICTURES_KEPT) pictures.delete(pictures.keys().next().value);
  return item;
}

function contoured() {
  const entry = library.scans[state.scan];
  return LAYERS.filter((layer) => (layer === "truth" ? entry.labelled : scan.predictionReady));
}

let wanted = [];
let fetching = 0;

function prefetch() {
  wanted = [];
  const { plane, at } = state;
  for (let step = 1; step <= AHEAD; step++) {
    for (const index of [at[plane] + direction * step, ...(step < 3 ? [at[plane] - direction * step] : [])]) {
      if (index < 0 || index >= scan.planes[plane].count) continue;
      for (const layer of ["image", ...contoured()]) wanted.push([state.scan, layer, plane, index]);
    }
  }
  fetchNext();
}

function fetchNext() {
  while (fetching < FETCHING && wanted.length) {
    const next = wanted.shift();
    if (next[0] !== state.scan || pictures.has(next.join("/"))) continue;
    fetching++;
    picture(...next).ready.catch(() => null).finally(() => { fetching--; fetchNext(); });
  }
}

// ---- outlines

// Closed lines along the edges of pixels, the organ on the right hand; where two pixels touch at a corner, they stay apart.
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

function outlines(item, width, height) {
  item.paths ??= library.organs.map((_, k) => outline(item.bits, width, height, 1 << k));
  return item.paths;
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
    else say(error.message, true);
  }

  paint(plane, index, image, layers) {
    const { width, height, mm } = scan.planes[plane];
    if (this.raw.width !== width || this.raw.height !== height) Object.assign(this.raw, { width, height });
    const pixels = new ImageData(width, height), words = new Uint32Array(pixels.data.buffer), shades = shadeTable();
    for (let i = 0; i < image.length; i++) words[i] = shades[image[i]];
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
      outlines(item.value, width, height).forEach((path, k) => {
        if (state.hidden[layer].has(k)) return;
        const placed = new Path2D();
        placed.addPath(path, new DOMMatrix([sx, 0, 0, sy, left, top]));
        const dashed = layer === "prediction" && library.has_model;
        if (dashed) this.stroke(context, placed, "rgb(0 0 0 / .55)", thick * 2, []);
        this.stroke(context, placed, `rgb(${library.organs[k].color})`, thick, dashed ? [thick * 4, thick * 2.5] : []);
      });
    }
    if (state.cross) this.paintCross(context, plane, thick);
    this.shown = `${library.scans[state.scan].id}/${plane}/${index}`;
    this.canvas.dataset.layers = layers.map(([layer]) => layer).join(" ");
    this.canvas.dataset.shown = this.shown;
    if (this.rank === 0) {
      say("");
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

function shadeTable() {
  const [width, level] = state.window, key = `${width},${level}`;
  if (shades.key !== key) {
    const low = level - width / 2;
    for (let i = 0; i < 65536; i++) {
      const grey = Math.max(0, Math.min(255, Math.round(((i - low) / width) * 255)));
      shades.table[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
    }
    shades.key = key;
  }
  return shades.table;
}

let panes = [];
const redraw = () => scan && panes.forEach((pane) => pane.draw());

// ---- what is said

function say(text, failed = false) {
  const message = $("message");
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle("failed", failed);
}

function note(text) {
  if ([...$("notes").children].some((item) => item.textContent === text)) return;
  $("notes").append(make("li", text));
}

// ---- opening a scan

async function openScan(number, then = {}) {
  const turn = ++opening, entry = library.scans[number];
  Object.assign(state, { scan: number, plane: then.plane || state.plane });
  scan = null;
  panes.forEach((pane) => pane.clear());
  drawStrip();
  markList();
  showPrediction("none", "");
  $("scan-name").textContent = entry.id;
  document.title = `${entry.id} · ${library.name}`;
  if (entry.broken) {
    refuseScan(entry.broken);
    return;
  }
  say("Reading the scan …");
  const truth = entry.labelled ? organsOf(number, "truth") : null; // contours are read while the image is
  try {
    const answer = await (await ask(`api/scans/${number}`)).json();
    if (turn !== opening) return;
    scan = answer;
  } catch (error) {
    if (turn !== opening) return;
    if (error.status === UNREADABLE) entry.broken = error.message; // other failures may pass
    refuseScan(error.message);
    return;
  }
  for (const plane of PLANES) state.at[plane] = Math.floor((scan.planes[plane].count - 1) / 2);
  if (then.slice !== undefined) state.at[state.plane] = indexOfSlice(state.plane, then.slice);
  state.window = then.window || windowOf(...scan.shades);
  scan.organs = {};
  buildLayers();
  setUpWindow();
  showPlane();
  keepOrgans(number, "truth", truth);
  if (entry.predicted) followPrediction();
}

function refuseScan(reason) {
  say(reason, true);
  $("place").textContent = "";
  buildList();
}

const organsOf = (number, layer) => ask(`api/scans/${number}/${layer}/organs`).then((answer) => answer.json()).catch(() => null);

async function keepOrgans(number, layer, promised) {
  const shown = await promised;
  if (number === state.scan && shown && scan) {
    scan.organs[layer] = shown;
    drawStrip();
  }
}

let following = 0;

async function followPrediction() {
  const turn = ++following, number = state.scan;
  scan.predictionReady = false;
  predictionSince = performance.now();
  for (;;) {
    let answer;
    try {
      answer = await (await ask(`api/scans/${number}/prediction`)).json();
    } catch (error) {
      answer = { state: "failed", line: error.message };
    }
    if (turn !== following || number !== state.scan || !scan) return;
    showPrediction(answer.state, answer.line);
    if (answer.state === "ready") {
      scan.predictionReady = true;
      keepOrgans(number, "prediction", organsOf(number, "prediction"));
      redraw();
    }
    if (["ready", "failed", "none"].includes(answer.state)) return;
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

function showPrediction(kind, line) {
  const place = $("prediction"), busy = kind === "waiting" || kind === "running";
  const seconds = Math.round((performance.now() - predictionSince) / 1000);
  place.hidden = !busy && kind !== "failed";
  place.className = busy ? "busy" : kind;
  place.dataset.state = kind;
  place.title = line;
  place.textContent = busy ? `Prediction: ${line}, ${seconds} s` : kind === "failed" ? `No prediction: ${line}` : "";
}

// ---- slices and planes

const labelOf = (plane, index) => (plane === "axial" ? scan.numbers[index] : index + 1);

function indexOfSlice(plane, label) {
  const count = scan.planes[plane].count;
  const index = plane === "axial" ? sliceAt(label - scan.numbers[0]) : label - 1;
  return Math.max(0, Math.min(count - 1, index));
}

function showPlane() {
  const { plane } = state, { count } = scan.planes[plane];
  document.querySelectorAll("[data-plane]").forEach((b) => b.setAttribute("aria-pressed", b.dataset.plane === plane));
  ["top", "bottom", "left", "right"].forEach((side, i) => ($("main").querySelector(`.${side}`).textContent = SIDES[plane][i]));
  $("slice").max = count - 1;
  $("voxel").textContent = "";
  showSlice();
}

function showSlice() {
  const { plane, at } = state;
  $("slice").value = at[plane];
  $("place").textContent = `${plane === "axial" ? "slice" : plane === "coronal" ? "row" : "column"} ${labelOf(plane, at[plane])} of ${labelOf(plane, scan.planes[plane].count - 1)}`;
  for (const pane of panes.slice(1)) {
    pane.figure.querySelector("figcaption").textContent = `${pane.plane} ${labelOf(pane.plane, at[pane.plane])}`;
    pane.figure.title = `Show the ${pane.plane} plane large`;
  }
  drawStrip();
  redraw();
  rememberSoon();
}

function goTo(index) {
  if (!scan) return;
  const { plane, at } = state, to = Math.max(0, Math.min(scan.planes[plane].count - 1, index));
  if (to === at[plane]) return;
  direction = to > at[plane] ? 1 : -1;
  at[plane] = to;
  showSlice();
}

function choosePlane(plane) {
  if (!scan || plane === state.plane) return;
  remember();
  state.plane = plane;
  panes.forEach((pane) => pane.clear());
  showPlane();
  remember(true);
}

function drawStrip() {
  const canvas = $("strip"), scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  if (!scan) return;
  const { count } = scan.planes[state.plane], inset = 8 * scale, step = (canvas.width - 2 * inset) / Math.max(1, count - 1);
  const rows = LAYERS.filter((layer) => scan.organs[layer]);
  const high = canvas.height / Math.max(3, 3 * rows.length);
  rows.forEach((layer, r) => scan.organs[layer][state.plane].forEach((bits, i) => {
    library.organs.forEach((organ, k) => {
      if (!(bits & (1 << k)) || state.hidden[layer].has(k)) return;
      context.globalAlpha = layer === "prediction" ? 0.55 : 1;
      context.fillStyle = `rgb(${organ.color})`;
      context.fillRect(inset + (i - 0.5) * step, (k * rows.length + r) * high + 1, step + 0.5, high - scale * 0.5);
    });
  }));
  context.globalAlpha = 1;
  context.fillStyle = "#fff";
  context.fillRect(inset + state.at[state.plane] * step - scale, 0, 2 * scale, canvas.height);
}

// ---- window

const windowOf = (low, high) => [Math.max(1, high - low), Math.round((low + high) / 2)];

function setUpWindow() {
  const [low, high] = scan.range, room = Math.max(2, high - low);
  Object.assign($("level"), { min: low, max: Math.max(high, low + 1) });
  Object.assign($("width"), { min: 1, max: room });
  showWindow();
}

function showWindow() {
  const [width, level] = state.window;
  $("width").value = width;
  $("level").value = level;
  $("width-value").textContent = width;
  $("level-value").textContent = level;
}

function chooseWindow(width, level) {
  if (!scan) return;
  const [low, high] = scan.range;
  state.window = [
    Math.round(Math.max(1, Math.min(2 * Math.max(2, high - low), width))),
    Math.round(Math.max(low, Math.min(high, level))),
  ];
  showWindow();
  redraw();
  rememberSoon();
}

function preset(name) {
  if (!scan) return;
  const [low, high] = scan.shades;
  if (name === "scan") chooseWindow(...windowOf(low, high));
  if (name === "narrow") chooseWindow(...windowOf(low + (high - low) / 4, high - (high - low) / 4));
  if (name === "full") chooseWindow(...windowOf(...scan.range));
  const image = picture(state.scan, "image", state.plane, state.at[state.plane]).value;
  if (name === "slice" && image) {
    const sorted = image.slice().sort();
    chooseWindow(...windowOf(sorted[Math.floor(sorted.length * 0.01)], sorted[Math.floor(sorted.length * 0.995)]));
  }
}

// ---- contours on and off

function buildLayers() {
  const entry = library.scans[state.scan], table = $("layers");
  const layers = LAYERS.filter((layer) => (layer === "truth" ? entry.labelled : entry.predicted));
  const names = { truth: library.has_model ? "Truth" : "All", prediction: "Prediction" };
  table.replaceChildren();
  if (!layers.length) {
    table.append(make("caption", "This scan has none."));
    return;
  }
  const scored = entry.scores !== null;
  const head = table.createTHead().insertRow();
  head.append(make("th"));
  for (const layer of layers) {
    const cell = make("th"), label = make("label", names[layer]);
    label.append(make("span", "", `line ${layer}`), box(layer, null));
    cell.append(label);
    head.append(cell);
  }
  if (scored) head.append(make("th", "Dice"));
  const body = table.createTBody();
  library.organs.forEach((organ, k) => {
    const row = body.insertRow(), name = make("th"), dot = make("span", "", "dot");
    dot.style.setProperty("--organ", `rgb(${organ.color})`);
    name.append(dot, organ.name.replace("_", " "));
    row.append(name);
    for (const layer of layers) row.insertCell().append(box(layer, k));
    if (scored) {
      const dice = entry.scores.organs[organ.name]?.dice;
      row.append(make("td", dice === null || dice === undefined ? "–" : dice.toFixed(3), "score"));
    }
  });
  showLayers();
}

function box(layer, organ) {
  const input = Object.assign(document.createElement("input"), { type: "checkbox" });
  input.dataset.layer = layer;
  if (organ !== null) input.dataset.organ = organ;
  const what = organ === null ? "all" : library.organs[organ].name.replace("_", " ");
  input.setAttribute("aria-label", `${layer}, ${what}`);
  input.addEventListener("change", () => toggle([layer], organ === null ? library.organs.map((_, k) => k) : [organ], input.checked));
  return input;
}

function toggle(layers, organs, on) {
  for (const layer of layers) for (const k of organs) state.hidden[layer][on ? "delete" : "add"](k);
  showLayers();
  drawStrip();
  redraw();
}

function showLayers() {
  document.querySelectorAll("[data-layer]").forEach((input) => {
    const hidden = state.hidden[input.dataset.layer];
    if (input.dataset.organ !== undefined) {
      input.checked = !hidden.has(Number(input.dataset.organ));
    } else {
      input.checked = hidden.size < library.organs.length;
      input.indeterminate = hidden.size > 0 && input.checked;
    }
  });
}

// ---- the list

const COLUMNS = [
  { key: "id", title: "Scan", value: (s) => s.id },
  { key: "score", title: "Score", value: (s) => s.scores?.score, digits: 3 },
  { key: "dice", title: "Dice", value: (s) => s.scores?.dice, digits: 3 },
  { key: "hd95_mm", title: "HD95 mm", value: (s) => s.scores?.hd95_mm, digits: 1 },
];

function columns() {
  return COLUMNS.filter((column) => column.key === "id" || library.scans.some((s) => s.scores));
}

function sortBy(key) {
  sorting = { key, down: sorting.key === key && !sorting.down };
  buildList();
}

function buildList() {
  const { value } = COLUMNS.find((column) => column.key === sorting.key), collator = new Intl.Collator("en", { numeric: true });
  const known = (v) => v !== undefined && v !== null;
  order = library.scans.map((_, i) => i).sort((i, j) => {
    const a = value(library.scans[i]), b = value(library.scans[j]);
    if (known(a) !== known(b)) return known(a) ? -1 : 1; // what has no score comes last
    const way = !known(a) ? 0 : typeof a === "number" ? a - b : collator.compare(a, b);
    return (sorting.down ? -way : way) || collator.compare(library.scans[i].id, library.scans[j].id);
  });
  $("columns").replaceChildren(...columns().map((column) => {
    const cell = make("th"), button = make("button", column.title);
    cell.dataset.key = column.key;
    if (column.key === sorting.key) cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    button.addEventListener("click", () => sortBy(column.key));
    cell.append(button);
    return cell;
  }));
  $("rows").replaceChildren(...order.map((number) => {
    const entry = library.scans[number], row = make("tr", "", entry.broken ? "broken" : "");
    Object.assign(row.dataset, { number, scan: entry.id });
    row.tabIndex = 0;
    for (const column of columns()) {
      const v = column.value(entry);
      row.append(make("td", column.key === "id" ? v : known(v) ? v.toFixed(column.digits) : "–"));
    }
    if (entry.broken) row.firstChild.append(make("span", "cannot be read", "tag"));
    if (entry.trained_on) row.firstChild.append(make("span", "trained on", "tag"));
    if (entry.broken) row.title = entry.broken;
    row.addEventListener("click", () => chooseScan(number));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") chooseScan(number); });
    return row;
  }));
  markList();
}

function markList() {
  for (const row of $("rows").children) {
    const chosen = Number(row.dataset.number) === state.scan;
    row.setAttribute("aria-selected", chosen);
    if (chosen) row.scrollIntoView({ block: "nearest" });
  }
}

async function chooseScan(number) {
  if (number === state.scan && scan) return;
  if (scan) remember();
  if (number !== state.scan) history.pushState(null, "", `#${new URLSearchParams({ scan: library.scans[number].id, plane: state.plane })}`);
  $("list").classList.remove("open");
  $("toggle-list").setAttribute("aria-expanded", false);
  await openScan(number);
}

function chooseNeighbour(step) {
  const next = order[order.indexOf(state.scan) + step];
  if (next !== undefined) chooseScan(next);
}

// ---- the address: a link to what is shown

let soon = 0;

function remember(push = false) {
  clearTimeout(soon);
  if (!scan) return;
  const { plane, at } = state, own = windowOf(...scan.shades);
  const facts = { scan: library.scans[state.scan].id, plane, slice: labelOf(plane, at[plane]) };
  if (state.window.join() !== own.join()) facts.window = state.window.join();
  const hash = `#${new URLSearchParams(facts).toString().replaceAll("%2C", ",")}`;
  if (hash !== location.hash) history[push ? "pushState" : "replaceState"](null, "", hash);
}

// Browsers refuse to change the address some hundred times in a row.
function rememberSoon() {
  clearTimeout(soon);
  soon = setTimeout(remember, 200);
}

function readAddress() {
  const facts = new URLSearchParams(location.hash.slice(1)), read = {};
  read.number = library.scans.findIndex((entry) => entry.id === facts.get("scan"));
  if (PLANES.includes(facts.get("plane"))) read.plane = facts.get("plane");
  if (/^\d+$/.test(facts.get("slice") || "")) read.slice = Number(facts.get("slice"));
  const shade = (facts.get("window") || "").match(/^(\d+),(\d+)$/);
  if (shade && Number(shade[1]) > 0) read.window = [Number(shade[1]), Number(shade[2])];
  if (facts.has("scan") && read.number < 0) note(`The link names ${facts.get("scan")}, which is not in the list.`);
  return read;
}

async function followAddress() {
  clearTimeout(soon);
  const read = readAddress();
  if (read.number < 0) return;
  if (read.number !== state.scan || !scan) {
    await openScan(read.number, read);
    return;
  }
  if (read.plane && read.plane !== state.plane) panes.forEach((pane) => pane.clear());
  state.plane = read.plane || state.plane;
  if (read.slice !== undefined) state.at[state.plane] = indexOfSlice(state.plane, read.slice);
  state.window = read.window || windowOf(...scan.shades);
  showWindow();
  showPlane();
}

async function copyLink() {
  remember();
  const button = $("copy-link");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "See the address bar"; // the clipboard is for localhost and https
  }
  setTimeout(() => (button.textContent = "Copy link"), 1500);
}

// ---- mouse and keys

function toggleCross() {
  state.cross = !state.cross;
  $("cross").checked = state.cross;
  redraw();
}

function isOn(layer, organs) {
  return organs.some((k) => !state.hidden[layer].has(k));
}

const KEYS = {
  ArrowLeft: () => goTo(state.at[state.plane] - 1),
  ArrowUp: () => goTo(state.at[state.plane] - 1),
  ArrowRight: () => goTo(state.at[state.plane] + 1),
  ArrowDown: () => goTo(state.at[state.plane] + 1),
  PageUp: () => goTo(state.at[state.plane] - 10),
  PageDown: () => goTo(state.at[state.plane] + 10),
  Home: () => goTo(0),
  End: () => goTo(Infinity),
  a: () => choosePlane("axial"),
  c: () => choosePlane("coronal"),
  s: () => choosePlane("sagittal"),
  b: () => chooseNeighbour(-1),
  n: () => chooseNeighbour(1),
  t: () => toggle(["truth"], [0, 1, 2], !isOn("truth", [0, 1, 2])),
  p: () => toggle(["prediction"], [0, 1, 2], !isOn("prediction", [0, 1, 2])),
  1: () => toggleOrgan(0),
  2: () => toggleOrgan(1),
  3: () => toggleOrgan(2),
  x: toggleCross,
  w: () => preset("scan"),
  "?": () => $("help").showModal(),
};

function toggleOrgan(k) {
  toggle(LAYERS, [k], !LAYERS.some((layer) => isOn(layer, [k])));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const own = event.target.matches("input[type=range]") && !["slice"].includes(event.target.id);
  if (!action || (own && event.key.length > 1)) return;
  event.preventDefault();
  action();
}

let wheeled = 0;

function onWheel(event) {
  if (!scan || event.ctrlKey) return;
  event.preventDefault();
  wheeled += event.deltaMode ? event.deltaY * 40 : event.deltaY;
  const steps = Math.trunc(wheeled / 40) || (Math.abs(event.deltaY) >= 40 ? Math.sign(event.deltaY) : 0);
  if (!steps) return; // a touchpad scrolls in small parts
  wheeled = 0;
  goTo(state.at[state.plane] + Math.sign(steps));
}

function listenToPane(pane) {
  const { figure } = pane;
  let from = null;
  figure.addEventListener("contextmenu", (event) => event.preventDefault());
  figure.addEventListener("wheel", onWheel, { passive: false });
  figure.addEventListener("pointerdown", (event) => {
    if (!scan) return;
    if (event.button === 2) from = { x: event.clientX, y: event.clientY, window: state.window };
    if (event.button === 0) putOthers(pane.under(event));
    figure.setPointerCapture(event.pointerId);
  });
  figure.addEventListener("pointermove", (event) => {
    if (!scan) return;
    if (from && event.buttons & 2) {
      const step = Math.max(1, scan.shades[1] - scan.shades[0]) / 400; // the scan's window in 400 pixels
      chooseWindow(from.window[0] + (event.clientX - from.x) * step, from.window[1] - (event.clientY - from.y) * step);
    } else if (event.buttons & 1) {
      putOthers(pane.under(event));
    }
    showVoxel(pane.under(event));
  });
  figure.addEventListener("pointerup", () => (from = null));
  figure.addEventListener("pointerleave", () => showVoxel(null));
}

function putOthers(place) {
  if (!place) return;
  for (const plane of ACROSS[state.plane]) state.at[plane] = place[plane];
  showSlice();
}

function showVoxel(place) {
  const image = place && picture(state.scan, "image", state.plane, state.at[state.plane]).value;
  $("voxel").textContent = image ? `${ACROSS[state.plane].map((plane) => labelOf(plane, place[plane])).join(", ")}: ${image[place.pixel]}` : "";
}

function listen() {
  document.addEventListener("keydown", onKey);
  window.addEventListener("popstate", followAddress);
  listenToPane(panes[0]);
  for (const pane of panes.slice(1)) {
    pane.figure.addEventListener("click", () => choosePlane(pane.plane));
  }
  document.querySelectorAll("[data-plane]").forEach((b) => b.addEventListener("click", () => choosePlane(b.dataset.plane)));
  document.querySelectorAll("[data-window]").forEach((b) => b.addEventListener("click", () => preset(b.dataset.window)));
  $("slice").addEventListener("input", (event) => goTo(Number(event.target.value)));
  $("strip").addEventListener("click", (event) => {
    if (!scan) return;
    const box = event.target.getBoundingClientRect(), { count } = scan.planes[state.plane];
    goTo(Math.round(((event.clientX - box.left - 8) / (box.width - 16)) * (count - 1)));
  });
  $("width").addEventListener("input", (event) => scan && chooseWindow(Number(event.target.value), state.window[1]));
  $("level").addEventListener("input", (event) => scan && chooseWindow(state.window[0], Number(event.target.value)));
  $("cross").addEventListener("change", toggleCross);
  $("copy-link").addEventListener("click", copyLink);
  $("open-help").addEventListener("click", () => $("help").showModal());
  $("toggle-list").addEventListener("click", () => {
    $("toggle-list").setAttribute("aria-expanded", $("list").classList.toggle("open"));
  });
  new ResizeObserver(drawStrip).observe($("strip"));
}

async function start() {
  panes = ["main", "second", "third"].map((id, rank) => new Pane($(id), rank));
  say("Reading the list …");
  try {
    library = await (await ask("api/scans")).json();
  } catch (error) {
    say(error.message, true);
    return;
  }
  $("name").textContent = library.name;
  library.notes.forEach(note);
  if (library.scans.some((entry) => entry.scores)) sorting.key = "score"; // the worst first
  buildList();
  listen();
  const read = readAddress(), first = order.find((number) => !library.scans[number].broken) ?? order[0];
  await openScan(read.number >= 0 ? read.number : first, read);
}

start();
