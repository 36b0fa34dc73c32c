"use strict";

// Mouse, keys, and the start. The scripts of the page share their names; index.html has their order.

// ---- mouse and keys

function toggleCross() {
  state.cross = !state.cross;
  $("cross").checked = state.cross;
  redraw();
}

function isOn(layer, labels) {
  return labels.some((k) => !state.hidden[layer].has(k));
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
  b: () => chooseNeighbor(-1),
  n: () => chooseNeighbor(1),
  t: () => toggleAll("truth"),
  p: () => toggleAll("prediction"),
  ...Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8, 9].map((n) => [n, () => toggleLabel(n - 1)])),
  x: toggleCross,
  w: () => preset("scan"),
  "?": () => $("help").showModal(),
};

function toggleAll(layer) {
  const all = library.labels.map((_, k) => k);
  toggle([layer], all, !isOn(layer, all));
}

function toggleLabel(k) {
  if (k >= library.labels.length) return;
  toggle(LAYERS, [k], !LAYERS.some((layer) => isOn(layer, [k])));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (event.target.matches("input[type=search], select")) return;
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
      const step = (channel().shades[1] - channel().shades[0] || 1) / 400; // the scan's window in 400 pixels
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
  $("voxel").textContent = image ? `${ACROSS[state.plane].map((plane) => labelOf(plane, place[plane])).join(", ")}: ${isCt() ? `${image[place.pixel]} HU` : rounded(image[place.pixel])}` : "";
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
  $("channel").addEventListener("change", (event) => chooseChannel(Number(event.target.value)));
  $("find-label").addEventListener("input", findLabels);
  $("copy-link").addEventListener("click", copyLink);
  $("open-help").addEventListener("click", () => $("help").showModal());
  $("toggle-list").addEventListener("click", () => {
    $("toggle-list").setAttribute("aria-expanded", $("list").classList.toggle("open"));
  });
  new ResizeObserver(drawStrip).observe($("strip"));
}

async function start() {
  panes = ["main", "second", "third"].map((id, rank) => new Pane($(id), rank));
  tell("Loading the list …");
  try {
    library = await (await ask("api/scans")).json();
  } catch (error) {
    tell(error.message, true);
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
