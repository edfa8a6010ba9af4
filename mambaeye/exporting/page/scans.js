// Where to look next, of its own accord. A scan is a function: scene -> endless places, [row, col] each.

/** Return a generator of numbers in [0, 1): mulberry32. */
export function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Return the valid start at a point of the unit square. */
function startAt(scene, point) {
  const [first, last] = scene.starts;
  return first.map((low, axis) => low + Math.floor(point[axis] * (last[axis] - low + 1)));
}

export function* random(scene, draw) {
  for (;;) yield startAt(scene, [draw(), draw()]);
}

/** A Sobol sequence in two dimensions, with its digits flipped at random: evenly spread at any count. */
export function* sobol(scene, draw) {
  const directions = [[], []];
  for (let bit = 0, number = 1; bit < 32; bit++) {
    directions[0].push((1 << (31 - bit)) >>> 0);
    directions[1].push((number << (31 - bit)) >>> 0);
    number = (number ^ (number << 1)) >>> 0; // of the polynomial x + 1
  }
  const flips = [0, 1].map(() => Math.floor(draw() * 2 ** 32));
  const point = [0, 0];
  for (let index = 1; ; index++) {
    yield startAt(
      scene,
      point.map((value, axis) => ((value ^ flips[axis]) >>> 0) / 2 ** 32),
    );
    const bit = 31 - Math.clz32(index & -index); // the lowest that is set: Gray code
    point.forEach((value, axis) => {
      point[axis] = (value ^ directions[axis][bit]) >>> 0;
    });
  }
}

/** Paths over lattices of any pitch, a new one whenever one is over: lines at any angle, rings, strides, any order. */
export function* varied(scene, draw) {
  for (;;) {
    const points = lattice(scene, draw);
    const orders = [lines, lines, lines, rings, strides, shuffled];
    yield* orders[Math.floor(draw() * orders.length)](points, draw);
  }
}

/** Return the starts of a lattice from edge to edge, with where each is in pitches from the middle. */
function lattice(scene, draw) {
  const [first, last] = scene.starts;
  const axes = first.map((low, axis) => {
    const room = last[axis] - low;
    const steps = Math.max(Math.round(room / (scene.patch * (0.5 + draw()))), Math.min(room, 1));
    return Array.from({ length: steps + 1 }, (_, at) => low + (steps ? Math.round((room * at) / steps) : 0));
  });
  const middle = axes.map((starts) => (starts.length - 1) / 2);
  return axes[0].flatMap((row, y) =>
    axes[1].map((col, x) => ({ place: [row, col], y: y - middle[0], x: x - middle[1] })),
  );
}

function inOrder(points, key) {
  return points
    .map((point) => ({ point, key: key(point) }))
    .sort((a, b) => a.key[0] - b.key[0] || a.key[1] - b.key[1])
    .map(({ point }) => point.place);
}

function lines(points, draw) {
  const quarter = Math.floor(draw() * 4) * (Math.PI / 2);
  const angle = draw() < 0.5 ? quarter : draw() * 2 * Math.PI;
  const [sine, cosine, turns] = [Math.sin(angle), Math.cos(angle), draw() < 0.5];
  return inOrder(points, ({ y, x }) => {
    const line = Math.round(y * cosine - x * sine);
    const along = y * sine + x * cosine;
    return [line, turns && line % 2 ? -along : along];
  });
}

function rings(points, draw) {
  const [outwards, clockwise, turn] = [draw() < 0.5 ? -1 : 1, draw() < 0.5 ? -1 : 1, draw() * 2 * Math.PI];
  return inOrder(points, ({ y, x }) => {
    const angle = (clockwise * Math.atan2(x, y) + turn + 4 * Math.PI) % (2 * Math.PI);
    return [outwards * Math.floor(Math.hypot(y, x)), angle];
  });
}

function strides(points, draw) {
  const common = (a, b) => (b ? common(b, a % b) : a);
  const first = Math.floor(draw() * points.length);
  let stride = 1 + Math.floor(draw() * points.length);
  while (common(stride, points.length) !== 1) stride++;
  return points.map((_, at) => points[(first + stride * at) % points.length].place);
}

function shuffled(points, draw) {
  return inOrder(points, () => [draw(), 0]);
}

/** Return the next place of the learned scan: its best candidate, or the planned one where it leads no more. */
export async function learned(scene, model, plan, draw) {
  const planned = plan.next().value;
  const { candidates, leads, hand_over: least } = model.told.policy;
  if (scene.places.length === 0 || scene.places.length >= leads) return planned;
  const places = Array.from({ length: candidates - 1 }, () => startAt(scene, [draw(), draw()]));
  places.push(planned);
  const gains = await model.gains(scene, places);
  const best = gains.indexOf(Math.max(...gains));
  return gains[best] >= least ? places[best] : planned;
}
