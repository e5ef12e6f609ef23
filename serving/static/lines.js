// Crack lines over a photo: what is drawn, and which line a click means. Coordinates are pixels of the photo, whose
// centres are integers.

const OUTLINE_PX = 1.5; // of the screen, as all that ends in _PX here
const GAP_PX = 1.5; // between a crack and its outline
const HALO_PX = 3; // around the selected line
const NEAR_PX = 10; // a click so close to a line means it
const DASHES_PX = [4, 7]; // of a rejected line
const CROPPED = 256; // side of a close-up of a line, in pixels of the photo

// A square around the middle of a line, {x, y, size}, as tiles have, within a photo of width x height.
export function closeUp({points}, {width, height}) {
  const [x, y] = points[Math.floor(points.length / 2)];
  const size = Math.min(CROPPED, width, height);
  const start = (at, side) => Math.min(Math.max(0, at - size / 2), side - size);
  return {x: start(x, width), y: start(y, height), size};
}

// The smallest square around a line, {x, y, size}.
export function squareAround({points}) {
  const bounds = [0, 1].map((axis) => {
    const along = points.map((point) => point[axis]);
    return [Math.min(...along), Math.max(...along)];
  });
  const size = Math.max(...bounds.map(([low, high]) => high - low));
  const [x, y] = bounds.map(([low, high]) => (low + high - size) / 2);
  return {x, y, size};
}

// The line nearest to a place of the photo, null if none is near; `scale` is screen pixels per pixel of the photo.
export function lineNear(lines, x, y, scale) {
  let [nearest, least] = [null, NEAR_PX / scale];
  for (const line of lines) {
    for (let n = 1; n < line.points.length; n++) {
      const distance = distanceTo(line.points[n - 1], line.points[n], x - 0.5, y - 0.5);
      if (distance < least) [nearest, least] = [line, distance];
    }
  }
  return nearest;
}

function distanceTo([x1, y1], [x2, y2], x, y) {
  const [dx, dy] = [x2 - x1, y2 - y1];
  const share = ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy || 1);
  const at = Math.min(1, Math.max(0, share));
  return Math.hypot(x - x1 - at * dx, y - y1 - at * dy);
}

// Draws each line as an outline, inside which its crack stays visible, on a canvas that shows nothing else.
export function drawLines(context, lines, selected, scale) {
  context.lineJoin = "round";
  context.translate(0.5, 0.5);
  const stroke = (line, colour, extra) => {
    context.strokeStyle = colour;
    context.lineWidth = line.width_p95_px + (2 * extra) / scale;
    line.path ??= new Path2D(`M${line.points.join("L")}`);
    context.stroke(line.path);
  };
  if (selected) stroke(selected, "#0b5cad", GAP_PX + OUTLINE_PX + HALO_PX);
  if (selected) stroke(selected, "#ffffff", GAP_PX + OUTLINE_PX + HALO_PX / 2);
  for (const line of lines) {
    context.setLineDash(line.reviewed === "rejected" ? DASHES_PX.map((length) => length / scale) : []);
    stroke(line, line.stroke, GAP_PX + OUTLINE_PX);
  }
  context.setLineDash([]);
  context.globalCompositeOperation = "destination-out";
  for (const line of lines) stroke(line, "#000000", GAP_PX);
  context.globalCompositeOperation = "source-over";
}
