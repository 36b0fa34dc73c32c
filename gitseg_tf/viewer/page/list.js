"use strict";

// The list of scans, and the address as a link to what is shown. The scripts of the page share their names; index.html has their order.

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

function chooseNeighbor(step) {
  const next = order[order.indexOf(state.scan) + step];
  if (next !== undefined) chooseScan(next);
}

// ---- the address: a link to what is shown

let soon = 0;

function remember(push = false) {
  clearTimeout(soon);
  if (!scan) return;
  const { plane, at } = state, own = windowOf(...channel().shades);
  const facts = { scan: library.scans[state.scan].id, plane, slice: labelOf(plane, at[plane]) };
  if (state.channel) facts.channel = state.channel;
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
  if (/^\d$/.test(facts.get("channel") || "")) read.channel = Number(facts.get("channel"));
  const shade = (facts.get("window") || "").match(/^(\d*\.?\d+),(-?\d*\.?\d+)$/);
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
  state.channel = Math.min(read.channel ?? 0, scan.channels.length - 1);
  buildChannels();
  state.window = read.window || windowOf(...channel().shades);
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
