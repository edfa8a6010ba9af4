// What is drawn: the stage, the classes and the curve.

const SHOWN = 5; // classes
const TRAIL = 12; // glimpses whose way is drawn

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Give a canvas the pixels of its place on the screen, and return its context and sides in CSS pixels. */
function prepared(canvas) {
  const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, devicePixelRatio || 1];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return [context, width, height];
}

/** Draw what was seen; all of the picture if it is still being drawn, or faintly if asked to. */
export function paintStage(canvas, scene, { whole, ghost, cursor }) {
  const [context, width] = prepared(canvas);
  const unit = width / scene.side;
  context.imageSmoothingEnabled = false;
  const size = Math.max(8, width / 40);
  for (let y = 0, row = 0; y < width; y += size, row++)
    for (let x = 0, col = 0; x < width; x += size, col++) {
      context.fillStyle = color((row + col) % 2 ? "--unseen" : "--unseen-2");
      context.fillRect(x, y, size, size);
    }
  context.globalAlpha = whole ? 1 : ghost ? 0.25 : 0;
  context.drawImage(scene.canvas, 0, 0, width, width);
  context.globalAlpha = 1;
  if (!whole && scene.places.length) context.drawImage(seenOf(scene), 0, 0, width, width);
  paintTrail(context, scene, unit);
  if (cursor) frame(context, cursor, scene.patch, unit, color("--quiet"), 1.5, [5, 4]);
}

/** Return a canvas of what was seen, and nothing where nothing was. */
function seenOf(scene) {
  const image = new ImageData(new Uint8ClampedArray(scene.pixels), scene.side);
  for (let at = 0; at < scene.seen.length; at++) image.data[4 * at + 3] = 255 * scene.seen[at];
  const canvas = new OffscreenCanvas(scene.side, scene.side);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function paintTrail(context, scene, unit) {
  const last = scene.places.slice(-TRAIL);
  if (!last.length) return;
  context.strokeStyle = color("--accent");
  context.lineWidth = 1.5;
  for (let at = 1; at < last.length; at++) {
    context.globalAlpha = at / last.length / 1.5;
    context.beginPath();
    for (const [row, col] of last.slice(at - 1, at + 1))
      context.lineTo((col + scene.patch / 2) * unit, (row + scene.patch / 2) * unit);
    context.stroke();
  }
  context.globalAlpha = 1;
  frame(context, last.at(-1), scene.patch, unit, color("--accent"), 3, []);
}

function frame(context, [row, col], patch, unit, stroke, width, dashes) {
  context.strokeStyle = stroke;
  context.lineWidth = width;
  context.setLineDash(dashes);
  context.strokeRect(col * unit, row * unit, patch * unit, patch * unit);
  context.setLineDash([]);
}

/** List the likeliest classes with bars. */
export function paintClasses(list, names, probabilities) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  list.replaceChildren(
    ...order.slice(0, SHOWN).map((index) => {
      const line = document.createElement("li");
      const bar = document.createElement("i");
      bar.style.width = `${100 * probabilities[index]}%`;
      const [name, share] = [document.createElement("span"), document.createElement("span")];
      name.textContent = names[index];
      share.textContent = percent(probabilities[index]);
      line.append(bar, name, share);
      return line;
    }),
  );
}

/** Draw the probability of every class over the glimpses, the last answer's in color. */
export function paintCurve(canvas, history) {
  const [context, width, height] = prepared(canvas);
  context.fillStyle = color("--unseen");
  context.fillRect(0, 0, width, height);
  if (!history.length) return;
  const final = history.at(-1).probabilities;
  const answer = final.indexOf(Math.max(...final));
  const likely = final
    .map((_, index) => index)
    .filter((index) => history.some((one) => one.probabilities[index] > 0.1));
  for (const index of [...likely.filter((one) => one !== answer), answer]) {
    context.strokeStyle = color(index === answer ? "--accent" : "--quiet");
    context.globalAlpha = index === answer ? 1 : 0.4;
    context.lineWidth = index === answer ? 3 : 1.5;
    context.beginPath();
    history.forEach((one, at) => {
      const x = 4 + ((width - 8) * at) / Math.max(1, history.length - 1);
      context.lineTo(x, height - 4 - (height - 8) * one.probabilities[index]);
    });
    if (history.length === 1) context.lineTo(8, height - 4 - (height - 8) * history[0].probabilities[index]);
    context.stroke();
  }
  context.globalAlpha = 1;
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.995 && share >= 0.1 ? 0 : 1)}%`;
