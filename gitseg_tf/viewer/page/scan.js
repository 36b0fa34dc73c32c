"use strict";

// Opening a scan, its prediction, and moving through its slices and planes. The scripts of the page share their names; index.html has their order.

// ---- what is said

function tell(text, failed = false) {
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
  tell("Loading the scan …");
  const truth = entry.annotated ? labelsOf(number, "truth") : null; // contours are read while the image is
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
  if (state.channel >= scan.channels.length) state.channel = 0;
  if (then.channel !== undefined && then.channel < scan.channels.length) state.channel = then.channel;
  state.window = then.window || windowOf(...channel().shades);
  scan.labels = {};
  buildLayers();
  buildChannels();
  setUpWindow();
  showPlane();
  keepLabels(number, "truth", truth);
  if (entry.predicted) followPrediction();
}

function refuseScan(reason) {
  tell(reason, true);
  $("place").textContent = "";
  buildList();
}

const labelsOf = (number, layer) => ask(`api/scans/${number}/${layer}/labels`).then((answer) => answer.json()).catch(() => null);

async function keepLabels(number, layer, promised) {
  const shown = await promised;
  if (number === state.scan && shown && scan) {
    scan.labels[layer] = shown;
    markLabels();
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
      keepLabels(number, "prediction", labelsOf(number, "prediction"));
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
    pane.figure.title = `Enlarge the ${pane.plane} plane`;
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

// The labels that have a line in the strip: all, or of many those that the scan shows and that are not hidden.
function stripLines(layers) {
  const all = library.labels.map((_, k) => k);
  if (all.length <= MANY) return all;
  const shown = new Set(layers.flatMap((layer) => scan.labels[layer][state.plane].flat().filter((k) => !state.hidden[layer].has(k))));
  return all.filter((k) => shown.has(k));
}

function drawStrip() {
  const canvas = $("strip"), scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  if (!scan) return;
  const { count } = scan.planes[state.plane], inset = 8 * scale, step = (canvas.width - 2 * inset) / Math.max(1, count - 1);
  const rows = LAYERS.filter((layer) => scan.labels[layer]), lines = stripLines(rows);
  const high = canvas.height / Math.max(3, lines.length * rows.length);
  rows.forEach((layer, r) => scan.labels[layer][state.plane].forEach((shown, i) => {
    for (const k of shown) {
      if (state.hidden[layer].has(k)) continue;
      context.globalAlpha = layer === "prediction" ? 0.55 : 1;
      context.fillStyle = `rgb(${library.labels[k].color})`;
      context.fillRect(inset + (i - 0.5) * step, (lines.indexOf(k) * rows.length + r) * high + 1, step + 0.5, Math.max(1, high - scale * 0.5));
    }
  }));
  context.globalAlpha = 1;
  context.fillStyle = "#fff";
  context.fillRect(inset + state.at[state.plane] * step - scale, 0, 2 * scale, canvas.height);
}
