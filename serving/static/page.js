// The page: photos come in, maps are shown, tiles are reviewed, labels go out.

import {ApiError, getModel, mapPhoto, onMissingKey, sendReviews} from "/static/api.js";
import {Viewer, overlayColour} from "/static/viewer.js";

const AT_ONCE = 2; // photos under way: one travels while another is looked at
const THUMBNAIL_PX = 96;
const MOST_TILES = 400; // listed; more than that nobody reviews in one photo
const REVIEWER = "cracks-reviewer";

const byId = (id) => document.getElementById(id);
const photos = []; // {file, state: waiting|working|done|failed, map, message, item}
let model = null;
let current = null; // of photos
let listed = []; // tiles of the current photo, as the list shows them
let selected = null; // of its tiles

const viewer = new Viewer(byId("canvas"), (tile) => selectTile(tile, false));

// ---------------------------------------------------------------- words

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.01 ? 1 : 0)} %`;
const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

const inWords = (error) => (error instanceof ApiError && error.lines.length ? error.lines.join(" ") : error.message);

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------- model

async function showModel() {
  try {
    model = await getModel();
  } catch (error) {
    byId("model").textContent = error.message;
    setTimeout(showModel, 3000);
    return;
  }
  byId("model").textContent = `Looks with ${model.description}.`;
  const warnings = [];
  if (model.is_demo) warnings.push("This model learned from drawn images: its answers say nothing about real concrete.");
  if (model.refused) warnings.push(`Version ${model.refused} was to replace this model and is broken; this one goes on.`);
  byId("warning").textContent = warnings.join(" ");
  byId("warning").hidden = warnings.length === 0;
  setThreshold(model.threshold);
}

function askForKey() {
  const dialog = byId("key-dialog");
  byId("key").value = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(byId("key").value), {once: true}));
}

// ---------------------------------------------------------------- photos

function addPhotos(files) {
  for (const file of files) {
    const photo = {file, state: "waiting", map: null, message: "waiting"};
    photo.item = photoItem(photo);
    byId("photo-list").append(photo.item);
    photos.push(photo);
  }
  if (photos.length === 0) return;
  byId("empty").hidden = true;
  byId("work").hidden = false;
  if (!current) openPhoto(photos[0]);
  showProgress();
  for (let n = photos.filter((photo) => photo.state === "working").length; n < AT_ONCE; n++) work();
}

async function work() {
  const photo = photos.find((candidate) => candidate.state === "waiting");
  if (!photo) return;
  photo.state = "working";
  updatePhoto(photo, "looking …");
  try {
    photo.picture = await createImageBitmap(photo.file).catch(() => null);
    photo.map = await mapPhoto(photo.file, photo.picture === null);
    if (photo.map.preview) {
      photo.preview = Object.assign(new Image(), {src: photo.map.preview});
      await photo.preview.decode();
      photo.picture = await createImageBitmap(photo.preview);
    }
    photo.state = "done";
    drawThumbnail(photo.item.querySelector("canvas"), photo.picture, null);
    updatePhoto(photo, severity(photo));
  } catch (error) {
    photo.state = "failed";
    updatePhoto(photo, inWords(error));
  }
  if (photo !== current) letGo(photo);
  else openPhoto(photo);
  showProgress();
  work();
}

// A decoded photo takes four bytes a pixel: only the one that is shown is kept.
function letGo(photo) {
  photo.picture?.close();
  photo.picture = null;
}

function severity(photo) {
  const nToReview = photo.map.tiles.filter((tile) => tile.label === "review" && !tile.said).length;
  return `${percent(photo.map.cracked_share)} cracked` + (nToReview ? `, ${nToReview} to review` : "");
}

function photoItem(photo) {
  const button = element(
    "button",
    {type: "button", className: "photo"},
    element("canvas", {width: THUMBNAIL_PX, height: THUMBNAIL_PX}),
    element("span", {className: "name", textContent: photo.file.name, title: photo.file.name}),
    element("span", {className: "state", textContent: photo.message}),
  );
  button.addEventListener("click", () => openPhoto(photo));
  return element("li", {}, button);
}

function updatePhoto(photo, message) {
  photo.message = message;
  photo.item.querySelector(".state").textContent = message;
  photo.item.dataset.state = photo.state;
}

function showProgress() {
  const nEnded = photos.filter((photo) => ["done", "failed"].includes(photo.state)).length;
  const nFailed = photos.filter((photo) => photo.state === "failed").length;
  byId("progress").value = nEnded / photos.length;
  byId("progress").hidden = nEnded === photos.length;
  byId("progress-text").textContent =
    `${nEnded} of ${count(photos.length, "photo")} looked at` + (nFailed ? `, ${nFailed} could not be` : "");
}

async function openPhoto(photo) {
  if (current && current !== photo) letGo(current);
  current = photo;
  for (const other of photos) other.item.firstChild.setAttribute("aria-current", String(other === photo));
  photo.item.scrollIntoView({block: "nearest"});
  const note = {waiting: "Waiting for its turn …", working: "Looking for cracks …", failed: photo.message}[photo.state];
  byId("stage-note").textContent = note ?? "";
  byId("stage-note").hidden = !note;
  if (photo.map && !photo.picture) {
    const picture = await createImageBitmap(photo.preview ?? photo.file);
    if (current !== photo) return picture.close();
    photo.picture = picture;
  }
  viewer.show(photo.picture, photo.map);
  byId("canvas").setAttribute("aria-label", `${photo.file.name} with its map`);
  byId("notes").replaceChildren(...(photo.map?.notes ?? []).map((text) => element("li", {textContent: text})));
  selected = null;
  showTiles();
}

// ---------------------------------------------------------------- threshold

function setThreshold(value) {
  byId("threshold").value = value;
  viewer.threshold = value;
  byId("threshold-value").textContent = value.toFixed(2);
  byId("legend-from").textContent = value.toFixed(2);
  viewer.draw();
  showSummary();
  if (byId("filter").value === "marked") showTiles();
}

function showSummary() {
  const tiles = current?.map?.tiles ?? [];
  const nMarked = tiles.filter((tile) => tile.probability >= viewer.threshold).length;
  byId("summary").textContent = tiles.length
    ? `${nMarked} of ${count(tiles.length, "tile")} marked (${percent(nMarked / tiles.length)})`
    : "";
}

// ---------------------------------------------------------------- review

const FILTERS = {
  review: (tile) => tile.label === "review",
  marked: (tile) => tile.probability >= viewer.threshold,
  labelled: (tile) => Boolean(tile.said),
  all: () => true,
};

function showTiles() {
  const tiles = current?.map?.tiles ?? [];
  listed = tiles.filter(FILTERS[byId("filter").value]).sort((one, other) => other.probability - one.probability);
  const nShown = Math.min(listed.length, MOST_TILES);
  listed = listed.slice(0, nShown);
  for (const tile of tiles) tile.item = null;
  byId("tile-list").replaceChildren(...listed.map(tileItem));
  if (!listed.includes(selected)) selected = null;
  viewer.selected = selected;
  viewer.draw();
  showSummary();
  showReview();
}

function tileItem(tile) {
  const canvas = element("canvas", {width: THUMBNAIL_PX, height: THUMBNAIL_PX});
  if (current.picture) drawThumbnail(canvas, current.picture, tile);
  tile.item = element(
    "li",
    {className: "tile"},
    canvas,
    element("span", {className: "probability", textContent: tile.probability.toFixed(2)}),
    element("span", {className: "said"}),
  );
  tile.item.id = `tile-${tile.row}-${tile.col}`;
  tile.item.setAttribute("role", "option");
  tile.item.addEventListener("click", () => selectTile(tile, true));
  updateTile(tile);
  return tile.item;
}

function drawThumbnail(canvas, picture, tile) {
  const context = canvas.getContext("2d");
  const side = Math.min(picture.width, picture.height);
  const scale = tile ? picture.width / current.map.width : 1;
  const [x, y, size] = tile
    ? [tile.x * scale, tile.y * scale, tile.size * scale]
    : [(picture.width - side) / 2, (picture.height - side) / 2, side];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, size, size, 0, 0, canvas.width, canvas.height);
}

function updateTile(tile) {
  if (!tile.item) return;
  tile.item.dataset.said = tile.said ?? "";
  const guess = tile.in_distribution === false ? "unlike known concrete" : tile.label;
  tile.item.querySelector(".said").textContent = tile.said ?? guess;
}

function selectTile(tile, moves) {
  selected?.item?.removeAttribute("aria-selected");
  selected = tile;
  tile?.item?.setAttribute("aria-selected", "true");
  byId("tile-list").setAttribute("aria-activedescendant", tile?.item?.id ?? "");
  tile?.item?.scrollIntoView({block: "nearest"});
  viewer.select(tile, moves);
  showReview();
}

function step(by) {
  if (listed.length === 0) return;
  const position = listed.indexOf(selected) + by;
  if (!selected) return selectTile(listed[by > 0 ? 0 : listed.length - 1], true);
  selectTile(listed[Math.max(0, Math.min(listed.length - 1, position))], true);
}

function say(label) {
  if (!selected) return step(1);
  selected.said = label;
  selected.isExported = false;
  updateTile(selected);
  updatePhoto(current, severity(current));
  if (label && selected !== listed.at(-1)) step(1);
  viewer.draw();
  showReview();
}

function showReview() {
  const tiles = current?.map?.tiles ?? [];
  const nSaid = listed.filter((tile) => tile.said).length;
  byId("review-text").textContent = !current?.map
    ? ""
    : listed.length
      ? `${nSaid} of ${listed.length} labelled, the most probable crack first.`
      : "There are none in this photo.";
  for (const id of ["confirm", "reject"]) byId(id).disabled = !selected;
  byId("undo").disabled = !selected?.said;
  const n = toExport().length;
  byId("export-button").disabled = n === 0;
  byId("export-button").textContent = n ? `Export ${count(n, "label")}` : "Export labels";
}

// ---------------------------------------------------------------- export

const toExport = () => photos.flatMap((photo) => (photo.map?.tiles ?? []).filter((tile) => tile.said && !tile.isExported));

// Photos that go into one request together: as many as the server takes, all of one model version.
function parts() {
  const made = [];
  for (const photo of photos) {
    const tiles = (photo.map?.tiles ?? []).filter((tile) => tile.said && !tile.isExported);
    if (tiles.length === 0) continue;
    const last = made.at(-1);
    const nBytes = photo.file.size;
    const fits = last && last.version === photo.map.model_version && last.nBytes + nBytes < model.max_body_mb * 0.95e6
      && last.photos.length < model.max_files && last.nTiles + tiles.length <= 5000;
    if (fits) Object.assign(last, {nBytes: last.nBytes + nBytes, nTiles: last.nTiles + tiles.length});
    if (fits) last.photos.push({photo, tiles});
    else made.push({version: photo.map.model_version, nBytes, nTiles: tiles.length, photos: [{photo, tiles}]});
  }
  return made;
}

async function exportLabels(reviewer) {
  const all = parts();
  const text = byId("export-text");
  let n = 0;
  for (const [number, part] of all.entries()) {
    text.textContent = all.length > 1 ? `Sending part ${number + 1} of ${all.length} …` : "Sending …";
    const tiles = part.photos.flatMap(({tiles: own}, file) =>
      own.map(({x, y, size, said}) => ({file, x, y, size, label: said})));
    const files = part.photos.map(({photo}) => photo.file);
    const answer = await sendReviews(files, {reviewer, model_version: part.version, tiles});
    if (answer.blob) save(answer.name, answer.blob);
    for (const {tiles: own} of part.photos) for (const tile of own) tile.isExported = true;
    n += part.nTiles;
    text.textContent = answer.blob
      ? `${count(n, "label")} saved as ${answer.name}.`
      : `${count(n, "label")} sent to be trained on, as ${answer.batch}.`;
  }
}

function save(name, blob) {
  const link = element("a", {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function onExport(event) {
  event.preventDefault();
  const reviewer = byId("reviewer").value.trim();
  localStorage.setItem(REVIEWER, reviewer);
  byId("export-button").disabled = true;
  byId("export-text").className = "";
  try {
    await exportLabels(reviewer);
  } catch (error) {
    byId("export-text").className = "error";
    byId("export-text").textContent = inWords(error);
  }
  showReview();
}

// ---------------------------------------------------------------- input

const KEYS = {
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  c: () => say("crack"),
  x: () => say("intact"),
  u: () => say(null),
  n: () => openNeighbour(1),
  p: () => openNeighbour(-1),
  m: () => byId("show-map").click(),
  "+": () => viewer.zoomIn(),
  "=": () => viewer.zoomIn(),
  "-": () => viewer.zoomOut(),
  0: () => viewer.fit(),
};

function openNeighbour(by) {
  const neighbour = photos[photos.indexOf(current) + by];
  if (neighbour) openPhoto(neighbour);
}

function onKey(event) {
  const isTyping = event.target.matches("input:not([type=checkbox]), select, dialog *");
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || isTyping || event.ctrlKey || event.metaKey || event.altKey || !current?.map) return;
  event.preventDefault();
  act();
}

function listen() {
  for (const id of ["choose", "choose-first"]) byId(id).addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", () => {
    addPhotos(byId("files").files);
    byId("files").value = ""; // so that the same photo can be chosen again
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("overlay").hidden = false;
  });
  addEventListener("dragleave", (event) => (byId("overlay").hidden = event.relatedTarget === null));
  addEventListener("drop", (event) => {
    event.preventDefault();
    byId("overlay").hidden = true;
    addPhotos(event.dataTransfer.files);
  });
  addEventListener("keydown", onKey);
  addEventListener("beforeunload", (event) => {
    if (toExport().length > 0) event.preventDefault(); // the browser asks
  });
  byId("threshold").addEventListener("input", () => setThreshold(Number(byId("threshold").value)));
  byId("threshold-reset").addEventListener("click", () => setThreshold(model.threshold));
  byId("show-map").addEventListener("change", () => {
    viewer.showsMap = byId("show-map").checked;
    viewer.draw();
  });
  byId("zoom-in").addEventListener("click", () => current?.map && viewer.zoomIn());
  byId("zoom-out").addEventListener("click", () => current?.map && viewer.zoomOut());
  byId("zoom-fit").addEventListener("click", () => viewer.fit());
  byId("filter").addEventListener("change", showTiles);
  byId("confirm").addEventListener("click", () => say("crack"));
  byId("reject").addEventListener("click", () => say("intact"));
  byId("undo").addEventListener("click", () => say(null));
  byId("export").addEventListener("submit", onExport);
}

byId("reviewer").value = localStorage.getItem(REVIEWER) ?? "";
byId("legend").querySelector("b").style.background =
  `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(overlayColour).join(", ")})`;
onMissingKey(askForKey);
listen();
showModel();
