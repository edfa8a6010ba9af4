// The page: what is clicked, dragged, pressed and dropped, and the loop that looks.

import { Model } from "./model.js";
import { paintClasses, paintCurve, paintStage, percent } from "./paint.js";
import { learned, random, randomOf, sobol, varied } from "./scans.js";
import { Scene } from "./scene.js";

const PAPER = 256; // pixels of what is drawn by hand
const BRUSH = 34;
const SOFT = 14; // pixels that edges of what was drawn are blurred by: the quickstart's digits were scanned at 8 x 8
const TIMES = 50; // glimpses whose median time is shown
const PLANNED = { random, sobol, varied };
const NAMES = { random: "random", sobol: "Sobol", varied: "varied", learned: "the learned scan" };

const at = (id) => document.getElementById(id);
const stage = at("stage");

const app = {
  model: null,
  scene: null,
  history: [], // of each glimpse: place, logits, probabilities
  times: [], // milliseconds
  picture: null,
  paper: null, // what is drawn on, if the picture is drawn
  drawing: false,
  playing: false,
  scan: "sobol",
  seed: 1,
  cursor: null,
  last: Promise.resolve(), // glimpses are taken one after another
};
globalThis.mambaeye = app; // for the console, and for tests

start().catch((error) => {
  at("status").hidden = false;
  at("status").textContent = `The model cannot be loaded: ${error.message}`;
});

async function start() {
  app.model = await Model.load();
  const { told } = app.model;
  at("about").textContent =
    `${told.encoder}, ${told.parameters.toLocaleString("en")} parameters, ${told.classes.length} classes: ` +
    `glimpses of ${told.patch_size} × ${told.patch_size} pixels, and an answer after each.`;
  at("state").textContent = `${(told.state_bytes / 1024).toFixed(0)} KiB`;
  offerScans(told.policy ? Object.keys(NAMES) : Object.keys(PLANNED));
  offerSides(told);
  listen();
  at("status").hidden = true;
  at("app").hidden = false;
  blankPaper();
  document.documentElement.dataset.ready = "true";
}

function offerScans(names) {
  app.scan = names.includes("learned") ? "learned" : "sobol";
  for (const name of names) {
    const [label, input] = [document.createElement("label"), document.createElement("input")];
    Object.assign(input, { type: "radio", name: "scan", value: name, checked: name === app.scan });
    input.addEventListener("change", () => {
      app.scan = name;
    });
    label.append(input, NAMES[name]);
    at("scans").append(label);
  }
}

/** Offer the sides that the model was trained on, and some beyond. */
function offerSides({ canvas, resolutions, patch_size: patch }) {
  const known = [...canvas, ...resolutions, ...(canvas.length + resolutions.length ? [] : [224])];
  const side = at("side");
  side.min = Math.max(patch, Math.min(...known));
  side.max = Math.max(...known);
  side.value = resolutions.length ? resolutions[0] : (Number(side.min) + Number(side.max)) / 2;
}

function listen() {
  at("file").addEventListener("change", () => open(at("file").files[0]));
  at("draw").addEventListener("click", () => setDrawing(!app.drawing));
  at("clear").addEventListener("click", blankPaper);
  at("play").addEventListener("click", () => setPlaying(!app.playing));
  at("once").addEventListener("click", lookByItself);
  at("again").addEventListener("click", forget);
  at("ghost").addEventListener("change", paint);
  at("pace").addEventListener("input", sayNumbers);
  at("side").addEventListener("input", () => setPicture(app.picture));
  for (const kind of ["dragover", "dragleave", "drop"])
    addEventListener(kind, (event) => {
      event.preventDefault();
      stage.classList.toggle("over", kind === "dragover");
      if (kind === "drop") open(event.dataTransfer.files[0]);
    });
  addEventListener("paste", (event) => open(event.clipboardData.files[0]));
  stage.addEventListener("pointerdown", pressed);
  stage.addEventListener("pointermove", moved);
  stage.addEventListener("pointerleave", () => point(null));
  stage.addEventListener("keydown", typed);
  addEventListener("resize", paint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
}

async function open(file) {
  if (!file) return;
  try {
    const picture = await createImageBitmap(file);
    app.paper = null;
    setDrawing(false);
    setPicture(picture);
    say("A new picture: nothing of it was seen yet.");
  } catch {
    say(`${file.name} is no picture that this browser reads.`);
  }
}

function blankPaper() {
  app.drawing = true;
  app.paper = new OffscreenCanvas(PAPER, PAPER);
  const context = app.paper.getContext("2d");
  context.fillStyle = "black";
  context.fillRect(0, 0, PAPER, PAPER);
  Object.assign(context, { strokeStyle: "white", lineWidth: BRUSH, lineCap: "round", lineJoin: "round" });
  app.ink = [];
  setPicture(app.paper);
  setDrawing(true);
}

function setPicture(picture) {
  app.picture = picture;
  app.scene = new Scene(picture, Number(at("side").value), app.model.told.patch_size);
  forget();
}

function setDrawing(drawing) {
  if (drawing && !app.paper) {
    blankPaper();
    return;
  }
  app.drawing = drawing;
  at("draw").setAttribute("aria-pressed", drawing);
  at("hint").textContent = drawing
    ? "Draw with mouse, pen or finger, white on black; then press Look. Or drop a picture here."
    : "Click or drag to look; or arrow keys and Enter. Drop a picture here, or paste one.";
  if (drawing) setPlaying(false);
  if (app.paper) setPicture(drawing ? app.paper : drawn());
  else paint();
}

/** Return what was drawn, softly, with as little black around it as a square has: models of digits know them so. */
function drawn() {
  if (!app.ink.length) return app.paper;
  const first = [0, 1].map((axis) => Math.min(...app.ink.map((point) => point[axis])) - BRUSH / 2);
  const last = [0, 1].map((axis) => Math.max(...app.ink.map((point) => point[axis])) + BRUSH / 2);
  const side = Math.max(last[0] - first[0], last[1] - first[1]);
  const [top, left] = [0, 1].map((axis) => (first[axis] + last[axis] - side) / 2);
  const framed = new OffscreenCanvas(PAPER, PAPER);
  const context = framed.getContext("2d");
  context.fillStyle = "black";
  context.fillRect(0, 0, PAPER, PAPER);
  context.filter = `blur(${SOFT}px)`;
  context.drawImage(app.paper, left, top, side, side, 0, 0, PAPER, PAPER);
  return framed;
}

function setPlaying(playing) {
  if (playing === app.playing) return;
  app.playing = playing;
  at("play").textContent = playing ? "Stop" : "Look";
  if (playing) play();
}

async function play() {
  while (app.playing) {
    await lookByItself();
    if (app.scene.places.length >= app.model.told.glimpses) setPlaying(false);
    await new Promise((resolve) => setTimeout(resolve, 1000 / at("pace").value));
  }
}

/** Forget all that was seen. */
function forget() {
  app.last = app.last.then(() => {
    app.model.forget();
    app.scene.forget();
    app.history = [];
    const draw = randomOf(app.seed++);
    app.draw = draw;
    app.plans = Object.fromEntries(Object.entries(PLANNED).map(([name, scan]) => [name, scan(app.scene, draw)]));
    say("No glimpse yet.");
    paint();
  });
}

/** Look at the place that the chosen scan says. */
function lookByItself() {
  if (app.drawing) setDrawing(false);
  return inTurn(async () => {
    const { scene, model, plans, draw } = app;
    return app.scan === "learned" ? learned(scene, model, plans.random, draw) : plans[app.scan].next().value;
  });
}

/** Take a glimpse at the place that a function returns, after those that are being taken. */
function inTurn(decide) {
  app.last = app.last.then(async () => {
    const { scene, model } = app;
    const place = scene.nearest(await decide());
    const began = performance.now();
    const logits = await model.look(scene.cut(place), place);
    app.times = [...app.times.slice(1 - TIMES), performance.now() - began];
    scene.show(place);
    const probabilities = model.probabilities(logits, scene);
    app.history.push({ place, logits, probabilities });
    const best = probabilities.indexOf(Math.max(...probabilities));
    say(`${model.told.classes[best]}, ${percent(probabilities[best])} sure`);
    paint();
  });
  return app.last;
}

/** Return where a pointer is, as row and column on a canvas of so many pixels. */
function whereIs(event, side) {
  const box = stage.getBoundingClientRect();
  return [((event.clientY - box.top) / box.height) * side, ((event.clientX - box.left) / box.width) * side];
}

/** Return the glimpse in whose middle a pointer is. */
function under(event) {
  return app.scene.nearest(whereIs(event, app.scene.side).map((middle) => middle - app.scene.patch / 2));
}

function pressed(event) {
  stage.setPointerCapture(event.pointerId);
  if (app.drawing) {
    app.stroke = whereIs(event, PAPER);
    stroke(event);
  } else {
    look(under(event));
  }
}

function moved(event) {
  if (app.drawing) {
    if (event.buttons) stroke(event);
    return;
  }
  const place = under(event);
  point(place);
  const far = app.aim && Math.hypot(place[0] - app.aim[0], place[1] - app.aim[1]) >= app.scene.patch / 2;
  if (event.buttons && far) look(place);
}

function look(place) {
  setPlaying(false);
  app.aim = place;
  inTurn(() => place);
}

function stroke(event) {
  const context = app.paper.getContext("2d");
  const to = whereIs(event, PAPER);
  context.beginPath();
  context.moveTo(app.stroke[1], app.stroke[0]);
  context.lineTo(to[1], to[0]);
  context.stroke();
  app.stroke = to;
  app.ink.push(to);
  setPicture(app.paper);
}

function point(place) {
  app.cursor = place;
  paint();
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function typed(event) {
  const { side, patch } = app.scene;
  const here = app.cursor ?? app.scene.nearest([(side - patch) / 2, (side - patch) / 2]);
  if (event.key in ARROWS) {
    const far = event.shiftKey ? 1 : patch / 2;
    point(app.scene.nearest(ARROWS[event.key].map((way, axis) => here[axis] + way * far)));
  } else if (event.key === "Enter") {
    if (app.drawing) setDrawing(false);
    point(here);
    look(here);
  } else {
    return;
  }
  event.preventDefault();
}

function say(text) {
  at("answer").textContent = text;
}

function sayNumbers() {
  const times = [...app.times].sort((a, b) => a - b);
  at("glimpses").textContent = app.history.length;
  at("seen").textContent = percent(app.scene.ratio);
  at("speed").textContent = times.length ? `${times[times.length >> 1].toFixed(1)} ms` : "–";
  at("pace-out").textContent = at("pace").value;
  at("side-out").textContent = `${at("side").value} px`;
}

function paint() {
  const uniform = app.model.told.classes.map((_, __, all) => 1 / all.length);
  paintStage(stage, app.scene, {
    whole: app.drawing,
    ghost: at("ghost").checked,
    cursor: app.drawing ? null : app.cursor,
  });
  paintClasses(at("classes"), app.model.told.classes, app.history.at(-1)?.probabilities ?? uniform);
  paintCurve(at("curve"), app.history);
  sayNumbers();
}
