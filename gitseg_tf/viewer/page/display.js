"use strict";

// The window of intensities, channels, and which contours are shown. The scripts of the page share their names; index.html has their order.

// ---- window

const channel = () => scan.channels[state.channel];

// Windows are whole numbers, unless the intensities are small.
function rounded(value) {
  const [low, high] = channel().range;
  return high - low > 50 ? Math.round(value) : Number(value.toPrecision(4));
}

const windowOf = (low, high) => [Math.max(narrowest(), rounded(high - low)), rounded((low + high) / 2)];

function narrowest() {
  const [low, high] = channel().range;
  return high - low > 50 || high === low ? 1 : (high - low) / 1000;
}

function setUpWindow() {
  const [low, high] = channel().range, step = narrowest(), room = Math.max(2 * step, high - low);
  Object.assign($("level"), { min: low, max: Math.max(high, low + step), step });
  Object.assign($("width"), { min: step, max: room, step });
  document.querySelectorAll("[data-window^=ct]").forEach((button) => (button.hidden = !isCt()));
  showWindow();
}

// Hounsfield units: signed integers with air far below zero.
const isCt = () => scan.kind === "int16" && channel().range[0] <= -500;

function showWindow() {
  const [width, level] = state.window;
  $("width").value = width;
  $("level").value = level;
  $("width-value").textContent = width;
  $("level-value").textContent = level;
}

function chooseWindow(width, level) {
  if (!scan) return;
  const [low, high] = channel().range;
  state.window = [
    rounded(Math.max(narrowest(), Math.min(2 * Math.max(2 * narrowest(), high - low), width))),
    rounded(Math.max(low, Math.min(high, level))),
  ];
  showWindow();
  redraw();
  rememberSoon();
}

// Width and level of the usual windows in Hounsfield units.
const CT_WINDOWS = { "ct-soft": [400, 40], "ct-lung": [1500, -600], "ct-bone": [1800, 400] };

function preset(name) {
  if (!scan) return;
  const [low, high] = channel().shades;
  if (name === "scan") chooseWindow(...windowOf(low, high));
  if (name === "narrow") chooseWindow(...windowOf(low + (high - low) / 4, high - (high - low) / 4));
  if (name === "full") chooseWindow(...windowOf(...channel().range));
  if (CT_WINDOWS[name]) chooseWindow(...CT_WINDOWS[name]);
  const image = picture(state.scan, "image", state.plane, state.at[state.plane]).value;
  if (name === "slice" && image) {
    const sorted = image.slice().sort();
    chooseWindow(...windowOf(sorted[Math.floor(sorted.length * 0.01)], sorted[Math.floor(sorted.length * 0.995)]));
  }
}

// ---- channels

function buildChannels() {
  const names = scan.channels.map((c) => c.name), list = $("channel");
  $("channels").hidden = names.length < 2;
  list.replaceChildren(...names.map((name, c) => Object.assign(make("option", name), { value: c })));
  list.value = state.channel;
}

function chooseChannel(number) {
  if (!scan || number === state.channel) return;
  state.channel = number;
  state.window = windowOf(...channel().shades);
  $("channel").value = number;
  setUpWindow();
  redraw();
  rememberSoon();
}

// ---- contours on and off

function buildLayers() {
  const entry = library.scans[state.scan], table = $("layers");
  const layers = LAYERS.filter((layer) => (layer === "truth" ? entry.annotated : entry.predicted));
  const names = { truth: library.has_model ? "Reference" : "All", prediction: "Prediction" };
  table.replaceChildren();
  if (!layers.length) {
    table.append(make("caption", "This scan has no contours."));
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
  library.labels.forEach((label, k) => {
    const row = body.insertRow(), name = make("th"), dot = make("span", "", "dot");
    row.dataset.row = k;
    dot.style.setProperty("--label", `rgb(${label.color})`);
    name.append(dot, label.title);
    name.title = label.title;
    row.append(name);
    for (const layer of layers) row.insertCell().append(box(layer, k));
    if (scored) {
      const dice = entry.scores.labels[label.name]?.dice;
      row.append(make("td", dice === null || dice === undefined ? "–" : dice.toFixed(3), "score"));
    }
  });
  $("find-label").hidden = library.labels.length <= MANY;
  table.parentElement.classList.toggle("many", library.labels.length > MANY);
  findLabels();
  markLabels();
  showLayers();
}

// Of the labels' rows only those whose title contains what is searched for.
function findLabels() {
  const text = $("find-label").value.trim().toLowerCase();
  for (const row of $("layers").querySelectorAll("tr[data-row]")) {
    row.hidden = !library.labels[row.dataset.row].title.toLowerCase().includes(text);
  }
}

// Tell which labels the scan does not show, and which it is not annotated with.
function markLabels() {
  const truth = scan?.labels?.truth;
  for (const row of $("layers").querySelectorAll("tr[data-row]")) {
    const k = Number(row.dataset.row), missing = truth?.unannotated.includes(k);
    const shown = LAYERS.some((layer) => scan?.labels?.[layer]?.axial.some((labels) => labels.includes(k)));
    row.classList.toggle("absent", Boolean(truth) && !shown);
    row.classList.toggle("unannotated", Boolean(missing));
    row.title = missing ? "not annotated in this scan" : "";
  }
}

function box(layer, label) {
  const input = Object.assign(document.createElement("input"), { type: "checkbox" });
  input.dataset.layer = layer;
  if (label !== null) input.dataset.label = label;
  const what = label === null ? "all" : library.labels[label].title;
  input.setAttribute("aria-label", `${layer === "truth" ? "reference" : layer}, ${what}`);
  input.addEventListener("change", () => toggle([layer], label === null ? library.labels.map((_, k) => k) : [label], input.checked));
  return input;
}

function toggle(layers, labels, on) {
  for (const layer of layers) for (const k of labels) state.hidden[layer][on ? "delete" : "add"](k);
  showLayers();
  drawStrip();
  redraw();
}

function showLayers() {
  document.querySelectorAll("[data-layer]").forEach((input) => {
    const hidden = state.hidden[input.dataset.layer];
    if (input.dataset.label !== undefined) {
      input.checked = !hidden.has(Number(input.dataset.label));
    } else {
      input.checked = hidden.size < library.labels.length;
      input.indeterminate = hidden.size > 0 && input.checked;
    }
  });
}
