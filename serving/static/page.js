// The page: adds photos, shows their maps, records reviews of tiles and crack lines, exports the labels.

import {ApiError, getModel, mapPhoto, onMissingKey, sendReviews} from "/static/api.js";
import {closeUp} from "/static/lines.js";
import {Viewer, overlayColour} from "/static/viewer.js";

const MAX_CONCURRENT_PHOTOS = 2; // one is uploaded while another is scored
const THUMBNAIL_PX = 96;
const MAX_ITEMS = 5000; // of a request for reviews
const MAX_TILE_PIXELS = 60e6;
const MAX_LINE_POINTS = 30_000; // 500 kB as JSON, of which the server takes 1 MB
const LINE_POINTS = 40; // as long as the numbers of a line
const MAX_LISTED = 400; // more than anyone reviews in one photo
const NO_LINE = "No crack line was found. That is no proof that there is no crack.";
const REVIEWER = "cracks-reviewer";

const byId = (id) => document.getElementById(id);
const photos = []; // {file, name, state: waiting|working|done|failed, map, message, item}
let model = null;
let settings = {}; // what the inspector said of the photos: prevalence, the share of tiles that are cracked; mm_per_px
let current = null; // the photo that is shown
let listed = []; // its tiles, or its crack lines, in the list, in order
let nListable = 0; // how many there are: the list has the first of very many
let selected = null; // one of its tiles or lines

const viewer = new Viewer(byId("canvas"), pick);

// ---------------------------------------------------------------- text

const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

// As in the answers of the API: marks that reverse the direction of reading, and control characters, are written out.
const printable = (text) =>
  text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`);

const errorText = (error) => (error instanceof ApiError && error.lines.length ? error.lines.join(" ") : error.message);

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
  byId("model").textContent = `Model: ${model.description}.`;
  const warnings = [];
  if (model.refused) warnings.push(`Version ${model.refused}, which was to replace this model, is broken. This model stays in use.`);
  byId("warning").textContent = warnings.join(" ");
  byId("warning").hidden = warnings.length === 0;
  setThreshold(model.review_to);
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
    const photo = {file, name: printable(file.name), state: "waiting", map: null, message: "waiting"};
    photo.item = photoItem(photo);
    byId("photo-list").append(photo.item);
    photos.push(photo);
  }
  if (photos.length === 0) return;
  byId("empty").hidden = true;
  byId("work").hidden = false;
  if (!current) openPhoto(photos[0]);
  showProgress();
  startProcessing();
}

function startProcessing() {
  for (let n = photos.filter((photo) => photo.state === "working").length; n < MAX_CONCURRENT_PHOTOS; n++) processNext();
}

// Maps every photo again, with other settings; a photo that is being mapped waits for its turn.
function onSetting() {
  if (![byId("prevalence"), byId("scale")].every((input) => input.reportValidity())) return;
  settings = {};
  if (byId("prevalence").value) settings.prevalence = Number(byId("prevalence").value) / 100;
  if (byId("scale").value) settings.mm_per_px = Number(byId("scale").value);
  for (const photo of photos) if (["done", "failed"].includes(photo.state)) photo.state = "waiting";
  if (photos.length) showProgress();
  startProcessing();
}

// What the inspector said of the tiles and lines of a photo holds for its new map.
function keepReviews(before, after) {
  const place = ({points, x, y}) => (points ?? [x, y]).join();
  const reviewed = new Map(itemsOf({map: before}).filter((item) => item.reviewed).map((item) => [place(item), item]));
  for (const item of itemsOf({map: after})) {
    const {reviewed: label, isExported} = reviewed.get(place(item)) ?? {};
    if (label) Object.assign(item, {reviewed: label, isExported});
  }
}

async function processNext() {
  const photo = photos.find((candidate) => candidate.state === "waiting");
  if (!photo) return;
  photo.state = "working";
  updatePhoto(photo, "mapping …");
  try {
    const asked = settings;
    photo.picture ??= await createImageBitmap(photo.file).catch(() => null);
    const map = await mapPhoto(photo.file, photo.picture === null, asked);
    keepReviews(photo.map, map);
    photo.map = map;
    if (photo.map.preview) {
      photo.preview = Object.assign(new Image(), {src: photo.map.preview});
      await photo.preview.decode();
      photo.picture = await createImageBitmap(photo.preview);
    }
    photo.state = asked === settings ? "done" : "waiting";
    drawThumbnail(photo.item.querySelector("canvas"), photo.picture, null);
    updatePhoto(photo, summary(photo.map));
  } catch (error) {
    photo.state = "failed";
    updatePhoto(photo, errorText(error));
  }
  if (photo !== current) releasePicture(photo);
  else openPhoto(photo);
  showProgress();
  processNext();
}

// A decoded photo takes four bytes per pixel: only the photo that is shown stays in memory.
function releasePicture(photo) {
  photo.picture?.close();
  photo.picture = null;
}

// What the list of photos and the line below a photo say; at the model's own threshold the same as `cracks map`.
function summary({tiles, lines}) {
  const nOf = (isOne) => tiles.filter(isOne).length;
  const nLeft = (label) => nOf((tile) => tile.label === label && !tile.reviewed);
  const [nToReview, nUndecided] = [nLeft("review"), nLeft("undecided")];
  const nLines = lines.filter((line) => line.reviewed !== "rejected").length;
  return (nLines ? `${count(nLines, "crack line")}, ` : "")
    + `${nOf((tile) => viewer.isMarked(tile))} of ${count(tiles.length, "tile")} marked`
    + (nToReview ? `, ${nToReview} to review` : "") + (nUndecided ? `, ${nUndecided} undecided` : "");
}

function photoItem(photo) {
  const button = element(
    "button",
    {type: "button", className: "photo"},
    element("canvas", {width: THUMBNAIL_PX, height: THUMBNAIL_PX}),
    element("span", {className: "name", textContent: photo.name, title: photo.name}),
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
    `${nEnded} of ${count(photos.length, "photo")} processed` + (nFailed ? `, ${nFailed} failed` : "");
}

async function openPhoto(photo) {
  if (current && current !== photo) releasePicture(current);
  current = photo;
  for (const other of photos) other.item.firstChild.setAttribute("aria-current", String(other === photo));
  photo.item.scrollIntoView({block: "nearest"});
  const note = {waiting: "Waiting …", working: "Looking for cracks …", failed: photo.message}[photo.state];
  byId("stage-note").textContent = note ?? "";
  byId("stage-note").hidden = !note;
  if (photo.map && !photo.picture) {
    const picture = await createImageBitmap(photo.preview ?? photo.file);
    if (current !== photo) return picture.close();
    photo.picture = picture;
  }
  viewer.show(photo.picture, photo.map);
  byId("canvas").setAttribute("aria-label", `${photo.name} with its map`);
  byId("notes").replaceChildren(...(photo.map?.notes ?? []).map((text) => element("li", {textContent: text})));
  const byWidth = (photo.map?.lines ?? []).toSorted((one, other) => one.width_p95_px - other.width_p95_px);
  const legend = new Map(byWidth.map((line) => [line.width_class ?? "crack line", line.stroke]));
  byId("legend-lines").replaceChildren(...[...legend].map(([text, colour]) => legendItem(text, colour)));
  selected = null;
  showList();
}

function legendItem(text, colour) {
  const key = element("i");
  key.style.borderColor = colour;
  return element("span", {}, key, text);
}

// ---------------------------------------------------------------- threshold

function setThreshold(value) {
  byId("threshold").value = value;
  viewer.threshold = value;
  byId("threshold-value").textContent = value.toFixed(2);
  byId("legend-from").textContent = value.toFixed(2);
  viewer.draw();
  for (const photo of photos) if (photo.state === "done") updatePhoto(photo, summary(photo.map));
  showSummary();
  if (byId("filter").value === "marked") showList();
}

function showSummary() {
  byId("summary").textContent = current?.map ? summary(current.map) : "";
}

// ---------------------------------------------------------------- review

const FILTERS = {
  review: (tile) => tile.label === "review",
  undecided: (tile) => tile.label === "undecided",
  marked: (tile) => viewer.isMarked(tile),
  labelled: (tile) => Boolean(tile.reviewed),
  all: () => true,
};

// The tiles and crack lines of a photo, which a person can label.
const itemsOf = ({map}) => [...(map?.tiles ?? []), ...(map?.lines ?? [])];
const isLine = (item) => Boolean(item?.points);

function showList() {
  const isOdd = (tile) => tile.in_distribution === false; // whose probability says nothing: last
  const listsLines = byId("filter").value === "lines";
  listed = listsLines
    ? current?.map?.lines ?? [] // the longest first
    : (current?.map?.tiles ?? [])
      .filter(FILTERS[byId("filter").value])
      .sort((one, other) => isOdd(one) - isOdd(other) || other.probability - one.probability);
  nListable = listed.length;
  listed = listed.slice(0, MAX_LISTED);
  for (const item of current ? itemsOf(current) : []) item.item = null;
  byId("list").replaceChildren(...listed.map(listsLines ? lineItem : tileItem));
  if (!listed.includes(selected)) selected = null;
  viewer.selected = selected;
  viewer.draw();
  showSummary();
  showReview();
}

function tileItem(tile) {
  const probability = element("span", {className: "probability", textContent: tile.probability.toFixed(2)});
  return listItem(tile, `tile-${tile.row}-${tile.col}`, tile, probability);
}

function lineItem(line) {
  const numbers = element("span", {}, `${line.length} long`, element("br"), `width ${line.width}`);
  return listItem(line, `line-${line.id}`, closeUp(line, current.map), numbers);
}

function listItem(item, id, square, numbers) {
  const canvas = element("canvas", {width: THUMBNAIL_PX, height: THUMBNAIL_PX});
  if (current.picture) drawThumbnail(canvas, current.picture, square);
  const label = element("span", {className: "verdict-label"});
  item.item = element("li", {id, className: isLine(item) ? "line" : "tile"}, canvas, numbers, label);
  item.item.setAttribute("role", "option");
  item.item.addEventListener("click", () => select(item, true));
  updateItem(item);
  return item.item;
}

function drawThumbnail(canvas, picture, square) {
  const context = canvas.getContext("2d");
  const side = Math.min(picture.width, picture.height);
  const scale = square ? picture.width / current.map.width : 1;
  const [x, y, size] = square
    ? [square.x * scale, square.y * scale, square.size * scale]
    : [(picture.width - side) / 2, (picture.height - side) / 2, side];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, size, size, 0, 0, canvas.width, canvas.height);
}

function updateItem(item) {
  if (!item.item) return;
  item.item.dataset.reviewed = item.reviewed ?? "";
  const why = item.in_distribution === false ? "unlike the training images" : "unsure";
  const predicted = isLine(item) ? item.width_class ?? "" : item.label === "review" ? why : item.label;
  item.item.querySelector(".verdict-label").textContent = item.reviewed ?? predicted;
}

function pick(item) {
  if (isLine(item) && byId("filter").value !== "lines") {
    byId("filter").value = "lines";
    showList();
  }
  select(item, false);
}

function select(item, moves) {
  selected?.item?.removeAttribute("aria-selected");
  selected = item;
  item?.item?.setAttribute("aria-selected", "true");
  byId("list").setAttribute("aria-activedescendant", item?.item?.id ?? "");
  item?.item?.scrollIntoView({block: "nearest"});
  viewer.select(item, moves);
  showReview();
}

function step(by) {
  if (listed.length === 0) return;
  const position = listed.indexOf(selected) + by;
  if (!selected) return select(listed[by > 0 ? 0 : listed.length - 1], true);
  select(listed[Math.max(0, Math.min(listed.length - 1, position))], true);
}

// Label the selected tile or line; `isCrack` is null to take its label back.
function setLabel(isCrack) {
  if (!selected) return step(1);
  const [yes, no] = isLine(selected) ? ["accepted", "rejected"] : ["crack", "intact"];
  selected.reviewed = isCrack === null ? null : isCrack ? yes : no;
  selected.isExported = false;
  updateItem(selected);
  updatePhoto(current, summary(current.map));
  showSummary();
  if (isCrack !== null && selected !== listed.at(-1)) step(1);
  viewer.draw();
  showReview();
}

function showReview() {
  const nLabelled = listed.filter((item) => item.reviewed).length;
  const order = isLine(listed[0]) ? "longest" : "most probable crack";
  const rest = listed.length < nListable ? ` Only the first of ${nListable} are listed.` : "";
  byId("review-text").textContent = !current?.map
    ? ""
    : listed.length
      ? `${nLabelled} of ${listed.length} labelled, the ${order} first.${rest}`
      : "This photo has none of these.";
  byId("confirm-text").textContent = isLine(selected) ? "Accept" : "Crack";
  byId("reject-text").textContent = isLine(selected) ? "Reject" : "Intact";
  byId("numbers").textContent = isLine(selected)
    ? numbersOf(selected)
    : current?.map && (current.map.lines.length ? "Click a crack line for its numbers." : NO_LINE);
  for (const id of ["confirm", "reject"]) byId(id).disabled = !selected;
  byId("undo").disabled = !selected?.reviewed;
  const n = toExport().length;
  byId("export-button").disabled = n === 0;
  byId("export-button").textContent = n ? `Export ${count(n, "label")}` : "Export labels";
}

function numbersOf({id, length, width, width_p95: widest, width_class: name, confidence}) {
  const widths = [`width ${width}`, `95th percentile ${widest}`, name && `class ${name}`];
  const parts = [`length ${length}`, ...widths, `confidence ${confidence.toFixed(2)}`];
  return `Crack ${id}: ${parts.filter(Boolean).join(", ")}`;
}

// ---------------------------------------------------------------- export

const isUnsent = (item) => item.reviewed && !item.isExported;
const toExport = () => photos.flatMap((photo) => itemsOf(photo).filter(isUnsent));

// Groups labels into requests within the server's limits, each of one model version.
function reviewRequests() {
  const limits = {
    nPhotos: model.max_files, nBytes: model.max_body_mb * 0.95e6, nItems: MAX_ITEMS, nPixels: MAX_TILE_PIXELS,
    nPoints: MAX_LINE_POINTS,
  };
  const requests = [];
  for (const photo of photos) {
    for (const item of itemsOf(photo).filter(isUnsent)) {
      const cost = {nItems: 1, nPixels: (item.size ?? 0) ** 2, nPoints: isLine(item) ? item.points.length + LINE_POINTS : 0};
      const first = {...cost, nPhotos: 1, nBytes: photo.file.size};
      const last = requests.at(-1);
      const added = last?.photos.includes(photo) ? cost : first;
      const fits = last?.version === photo.map.model_version
        && Object.entries(added).every(([name, n]) => last.sums[name] + n <= limits[name]);
      if (!fits) requests.push({version: photo.map.model_version, photos: [photo], items: [{photo, item}], sums: first});
      else {
        for (const [name, n] of Object.entries(added)) last.sums[name] += n;
        if (added === first) last.photos.push(photo);
        last.items.push({photo, item});
      }
    }
  }
  return requests;
}

// What a request says of its tiles and of its lines.
function labelsIn({photos: sent, items}) {
  const [tiles, lines] = [[], []];
  for (const {photo, item} of items) {
    const file = sent.indexOf(photo);
    const {x, y, size, reviewed, item: _, isExported, path, ...line} = item;
    if (isLine(item)) lines.push({file, ...line, decision: reviewed});
    else tiles.push({file, x, y, size, label: reviewed});
  }
  return {tiles, lines};
}

async function exportLabels(reviewer) {
  const requests = reviewRequests();
  const text = byId("export-text");
  let [nTiles, nLines] = [0, 0];
  for (const [number, request] of requests.entries()) {
    text.textContent = requests.length > 1 ? `Sending part ${number + 1} of ${requests.length} …` : "Sending …";
    const files = request.photos.map(({file}) => file);
    const answer = await sendReviews(files, {reviewer, model_version: request.version, ...labelsIn(request)});
    if (answer.blob) save(answer.name, answer.blob);
    for (const {item} of request.items) item.isExported = true;
    nTiles += request.items.filter(({item}) => !isLine(item)).length;
    nLines += request.items.filter(({item}) => isLine(item)).length;
    const decisions = nLines ? ` ${count(nLines, "decision")} about lines: with the labels, not trained on.` : "";
    text.textContent = answer.blob
      ? `${count(nTiles + nLines, "label")} saved as ${answer.name}.`
      : `${count(nTiles, "label")} sent for training, as ${answer.batch}.${decisions}`;
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
    byId("export-text").textContent = errorText(error);
  }
  showReview();
}

// ---------------------------------------------------------------- input

const KEYS = {
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  c: () => setLabel(true),
  x: () => setLabel(false),
  u: () => setLabel(null),
  n: () => openNeighbour(1),
  p: () => openNeighbour(-1),
  l: () => byId("show-lines").click(),
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

function addListeners() {
  for (const id of ["choose", "choose-first"]) byId(id).addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", () => {
    addPhotos(byId("files").files);
    byId("files").value = ""; // allows choosing the same photo again
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
    if (toExport().length > 0) event.preventDefault(); // the browser asks for confirmation
  });
  byId("threshold").addEventListener("input", () => setThreshold(Number(byId("threshold").value)));
  for (const id of ["prevalence", "scale"]) byId(id).addEventListener("change", onSetting);
  byId("threshold-reset").addEventListener("click", () => setThreshold(model.review_to));
  byId("show-map").addEventListener("change", () => {
    viewer.showsMap = byId("show-map").checked;
    viewer.draw();
  });
  byId("show-lines").addEventListener("change", () => {
    viewer.showsLines = byId("show-lines").checked;
    viewer.draw();
  });
  byId("zoom-in").addEventListener("click", () => current?.map && viewer.zoomIn());
  byId("zoom-out").addEventListener("click", () => current?.map && viewer.zoomOut());
  byId("zoom-fit").addEventListener("click", () => viewer.fit());
  byId("filter").addEventListener("change", showList);
  byId("confirm").addEventListener("click", () => setLabel(true));
  byId("reject").addEventListener("click", () => setLabel(false));
  byId("undo").addEventListener("click", () => setLabel(null));
  byId("export").addEventListener("submit", onExport);
}

byId("reviewer").value = localStorage.getItem(REVIEWER) ?? "";
byId("legend").querySelector("b").style.background =
  `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(overlayColour).join(", ")})`;
onMissingKey(askForKey);
addListeners();
showModel();
