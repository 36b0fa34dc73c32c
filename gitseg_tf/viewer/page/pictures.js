"use strict";

// The state of the page, and pictures from the server. The scripts of the page share their names; index.html has their order.

const PLANES = ["axial", "coronal", "sagittal"];
const SIDES = { axial: "APRL", coronal: "HFRL", sagittal: "HFAP" }; // top, bottom, left, right
// Where a picture's columns and rows are in the other planes.
const ACROSS = { axial: ["sagittal", "coronal"], coronal: ["sagittal", "axial"], sagittal: ["coronal", "axial"] };
const LAYERS = ["truth", "prediction"];
const PICTURES_KEPT = 600;
const AHEAD = 8; // pictures fetched before they are asked for
const FETCHING = 3; // of those at a time
const POLL_MS = 400;
const MANY = 8; // labels, from which on there is a search box
const NUMBERS = { uint16: Uint16Array, int16: Int16Array, float32: Float32Array };
const UNREADABLE = 422; // the status of a scan that cannot be read

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });

const state = {
  scan: -1,
  plane: "axial",
  at: { axial: 0, coronal: 0, sagittal: 0 },
  window: null, // [width, level]
  hidden: { truth: new Set(), prediction: new Set() },
  channel: 0,
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
    throw new Refused("The viewer does not respond; is it still running?");
  }
  if (answer.ok) return answer;
  const refusal = await answer.json().catch(() => ({}));
  throw Object.assign(new Refused(refusal.detail || `${answer.status} ${answer.statusText}`), { status: answer.status });
}

function picture(number, layer, plane, index) {
  const key = `${number}/${layer}/${plane}/${index}${layer === "image" && state.channel ? `?channel=${state.channel}` : ""}`;
  let item = pictures.get(key);
  if (item) {
    pictures.delete(key); // the newest is last
  } else {
    item = { value: null };
    // What a scan's intensities are is known before its first picture is asked for.
    const Numbers = layer === "image" ? NUMBERS[scan.kind] : null;
    item.ready = ask(`api/scans/${key}`)
      .then((answer) => answer.arrayBuffer())
      .then((buffer) => (item.value = Numbers ? new Numbers(buffer) : { bits: new Uint8Array(buffer) }));
    item.ready.catch(() => pictures.delete(key));
  }
  pictures.set(key, item);
  if (pictures.size > PICTURES_KEPT) pictures.delete(pictures.keys().next().value);
  return item;
}

function contoured() {
  const entry = library.scans[state.scan];
  return LAYERS.filter((layer) => (layer === "truth" ? entry.annotated : scan.predictionReady));
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
    if (!scan || next[0] !== state.scan) continue;
    fetching++;
    picture(...next).ready.catch(() => null).finally(() => { fetching--; fetchNext(); });
  }
}
