// Shows a photo and its map on a canvas, with pan, zoom and selection of a tile or crack line.

import {drawLines, lineNear, squareAround} from "/static/lines.js";

const MAX_SCALE = 8; // screen pixels per pixel of the photo
const STEP = 1.25;
const OVERLAY_OPACITY = 0.42;
const REVIEW_COLOUR = "#286eff"; // as in page.css
const VERDICT_COLOURS = {crack: "#b3261e", accepted: "#b3261e", intact: "#1b6e3c", rejected: "#1b6e3c"};
const OVERLAY_CELL_PX = 4; // pixels of the photo per pixel of the overlay

// Yellow at the threshold, red at 1; brightness changes too, for readers who do not see the hues.
export function overlayColour(strength) {
  return `hsl(${52 - 52 * strength} 95% ${58 - 18 * strength}%)`;
}

export class Viewer {
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.onPick = onPick;
    this.picture = null; // ImageBitmap or null, drawn over width x height of the photo
    this.map = null;
    this.threshold = 0.5;
    this.showsMap = true; // the tiles
    this.showsLines = true;
    this.lineLayer = document.createElement("canvas");
    this.selected = null;
    this.pointers = new Map();
    this.isMoved = false;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.#wheel(event), {passive: false});
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  show(picture, map) {
    this.picture = picture;
    this.map = map;
    this.selected = null;
    this.fit();
  }

  fit() {
    if (!this.map) return this.draw();
    const {width, height} = this.canvas.getBoundingClientRect();
    this.scale = Math.min(width / this.map.width, height / this.map.height);
    this.left = (width - this.map.width * this.scale) / 2;
    this.top = (height - this.map.height * this.scale) / 2;
    this.isFitted = true;
    this.draw();
  }

  zoom(factor, x, y) {
    const box = this.canvas.getBoundingClientRect();
    const [centreX, centreY] = [x ?? box.width / 2, y ?? box.height / 2];
    const least = Math.min(box.width / this.map.width, box.height / this.map.height) / 2;
    const scale = Math.min(MAX_SCALE, Math.max(least, this.scale * factor));
    this.left = centreX - (centreX - this.left) * (scale / this.scale);
    this.top = centreY - (centreY - this.top) * (scale / this.scale);
    this.scale = scale;
    this.isFitted = false;
    this.draw();
  }

  zoomIn() { this.zoom(STEP); }
  zoomOut() { this.zoom(1 / STEP); }

  // Select a tile or a crack line; with `moves`, also zoom to it and its surroundings.
  select(item, moves) {
    this.selected = item;
    if (item && moves) {
      const {width, height} = this.canvas.getBoundingClientRect();
      const {x, y, size} = item.points ? squareAround(item) : item;
      this.scale = Math.min(MAX_SCALE, Math.min(width, height) / (size * (item.points ? 1.3 : 3)));
      this.left = width / 2 - (x + size / 2) * this.scale;
      this.top = height / 2 - (y + size / 2) * this.scale;
      this.isFitted = false;
    }
    this.draw();
  }

  // Whether a tile counts as cracked; a probability says nothing about a tile unlike the training images.
  isMarked(tile) {
    return tile.in_distribution !== false && tile.probability >= this.threshold;
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const context = this.canvas.getContext("2d");
    const ratio = devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.map) return;
    const scale = this.scale * ratio;
    context.setTransform(scale, 0, 0, scale, this.left * ratio, this.top * ratio);
    context.imageSmoothingEnabled = this.scale < 2;
    if (this.picture) context.drawImage(this.picture, 0, 0, this.map.width, this.map.height);
    else {
      context.fillStyle = "#8a8f94";
      context.fillRect(0, 0, this.map.width, this.map.height);
    }
    if (this.showsMap) {
      context.globalAlpha = OVERLAY_OPACITY;
      context.drawImage(this.#overlay(), 0, 0, this.map.width, this.map.height);
      context.globalAlpha = 1;
      for (const tile of this.map.tiles) this.#markTile(context, tile);
    }
    if (this.showsLines) this.#drawLines(context);
    if (this.selected?.size) this.#outline(context, this.selected, "#ffffff", 4);
    if (this.selected?.size) this.#outline(context, this.selected, "#0b5cad", 2.5);
  }

  #drawLines(context) {
    const {width, height} = this.canvas;
    Object.assign(this.lineLayer, {width, height});
    const layer = this.lineLayer.getContext("2d");
    layer.setTransform(context.getTransform());
    drawLines(layer, this.map.lines, this.selected?.points ? this.selected : null, this.scale);
    context.save();
    context.resetTransform();
    context.drawImage(this.lineLayer, 0, 0);
    context.restore();
    for (const line of this.map.lines) if (line.reviewed) this.#badge(context, line, line.points[line.points.length >> 1]);
  }

  // Whether a shade would hide a crack line: the tile is only outlined.
  #isTraced(tile) {
    return this.showsLines && tile.has_line;
  }

  // The overlay without its opacity, cached by what it depends on. Where tiles overlap, the highest probability is shown.
  #overlay() {
    const {map, threshold, showsLines} = this;
    const isCached = this.overlay?.map === map && this.overlay.threshold === threshold;
    if (isCached && this.overlay.showsLines === showsLines) return this.overlay.canvas;
    const canvas = document.createElement("canvas");
    canvas.width = Math.ceil(this.map.width / OVERLAY_CELL_PX);
    canvas.height = Math.ceil(this.map.height / OVERLAY_CELL_PX);
    const context = canvas.getContext("2d");
    context.scale(canvas.width / this.map.width, canvas.height / this.map.height);
    // A shade would hide what a person must judge: tiles to review are only outlined, and those with a crack line.
    const marked = map.tiles.filter((tile) => tile.label !== "review" && this.isMarked(tile) && !this.#isTraced(tile));
    for (const tile of marked.sort((one, other) => one.probability - other.probability)) {
      context.fillStyle = this.#colour(tile);
      context.fillRect(tile.x, tile.y, tile.size, tile.size);
    }
    this.overlay = {map, threshold, showsLines, canvas};
    return canvas;
  }

  #markTile(context, tile) {
    const isMarked = this.isMarked(tile);
    if (tile.reviewed) this.#mark(context, tile);
    else if (tile.label === "review" || (isMarked && this.#isTraced(tile))) {
      this.#outline(context, tile, isMarked ? this.#colour(tile) : REVIEW_COLOUR, 1.5);
    }
  }

  #colour(tile) {
    return overlayColour((tile.probability - this.threshold) / Math.max(1 - this.threshold, 1e-6));
  }

  // A label from the reviewer: a red or green frame with its letter.
  #mark(context, tile) {
    this.#outline(context, tile, VERDICT_COLOURS[tile.reviewed], 2.5);
    this.#badge(context, tile, [tile.x, tile.y]);
  }

  // The letter of a reviewer's label, to the right of and below a place.
  #badge(context, item, [x, y]) {
    const side = Math.min(18 / this.scale, (item.size ?? Infinity) / 3);
    context.fillStyle = VERDICT_COLOURS[item.reviewed];
    context.fillRect(x, y, side, side);
    context.fillStyle = "#ffffff";
    context.font = `bold ${side * 0.8}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(["crack", "accepted"].includes(item.reviewed) ? "C" : "X", x + side / 2, y + side * 0.54);
  }

  #outline(context, tile, colour, width) {
    context.strokeStyle = colour;
    context.lineWidth = width / this.scale;
    const inset = width / 2 / this.scale;
    context.strokeRect(tile.x + inset, tile.y + inset, tile.size - 2 * inset, tile.size - 2 * inset);
  }

  #resize() {
    const {width, height} = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.round(width * devicePixelRatio);
    this.canvas.height = Math.round(height * devicePixelRatio);
    if (this.isFitted) this.fit();
    else this.draw();
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return {x: event.clientX - box.left, y: event.clientY - box.top};
  }

  #wheel(event) {
    event.preventDefault();
    if (!this.map) return;
    const {x, y} = this.#place(event);
    this.zoom(Math.exp(-event.deltaY / 400), x, y);
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.#place(event));
    if (this.pointers.size === 1) this.isMoved = false;
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.map) return;
    const now = this.#place(event);
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const distance = (place) => Math.hypot(place.x - other.x, place.y - other.y);
      this.zoom(distance(now) / Math.max(distance(before), 1), (now.x + other.x) / 2, (now.y + other.y) / 2);
      this.isMoved = true;
    } else if (this.isMoved || Math.hypot(now.x - before.x, now.y - before.y) > 3) {
      this.isMoved = true;
      this.#pan(now.x - before.x, now.y - before.y);
    } else return;
    this.pointers.set(event.pointerId, now);
  }

  #up(event) {
    const place = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (event.type !== "pointerup" || this.isMoved || !place || !this.map) return;
    const [x, y] = [(place.x - this.left) / this.scale, (place.y - this.top) / this.scale];
    const isHit = (tile) => x >= tile.x && y >= tile.y && x < tile.x + tile.size && y < tile.y + tile.size;
    const hit = (this.showsLines && lineNear(this.map.lines, x, y, this.scale)) || this.map.tiles.find(isHit);
    if (hit) this.onPick(hit);
  }

  #pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.isFitted = false;
    this.draw();
  }

  #key(event) {
    const moves = {ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60]};
    if (!this.map || !moves[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    this.#pan(...moves[event.key]);
  }
}
