// The exported graphs, and the state that the encoder carries from glimpse to glimpse.

import * as ort from "./ort/ort.wasm.min.mjs";

const ARRAYS = { float32: Float32Array, int64: BigInt64Array };
const LARGEST_LOG = Math.log(64); // of a temperature, as in mambaeye/temperature.py

ort.env.wasm.numThreads = 1; // several would need headers that not every server sends
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

/** Return a tensor of integers. */
function integers(values, shape) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
}

export class Model {
  /** Load what export wrote into the page's own folder. */
  static async load() {
    const model = new Model();
    const answer = await fetch("export.json");
    if (!answer.ok) throw new Error("export.json is not there: serve all of the folder that export wrote");
    model.told = await answer.json();
    model.step = await ort.InferenceSession.create("step.onnx");
    model.policy = model.told.policy ? await ort.InferenceSession.create("policy.onnx") : null;
    model.forget();
    return model;
  }

  /** Go back to the state before the first glimpse. */
  forget() {
    this.state = {};
    for (const { name, dtype, shape } of this.told.state) {
      const values = new ARRAYS[dtype](shape.reduce((product, side) => product * side, 1));
      this.state[`state_${name}`] = new ort.Tensor(dtype, values, [1, ...shape]);
    }
    this.features = null;
    this.logits = null;
  }

  /**
   * Take one glimpse, and return the logits.
   * @param {Uint8Array} patch (3, P, P), RGB
   * @param {number[]} place row and column of its first pixel
   */
  async look(patch, place) {
    const side = this.told.patch_size;
    const patches = new ort.Tensor("uint8", patch, [1, 3, side, side]);
    const found = await this.step.run({ patches, positions: integers(place, [1, 2]), ...this.state });
    for (const { name } of this.told.state) this.state[`state_${name}`] = found[`next_${name}`];
    this.features = found.features;
    this.logits = found.logits;
    return Array.from(found.logits.data);
  }

  /** Return the drop in cross entropy that the learned scan expects at each of its candidates, in nats. */
  async gains(scene, candidates) {
    const { blocks } = this.told.policy;
    const found = await this.policy.run({
      features: this.features,
      logits: this.logits,
      glimpses: integers([scene.places.length], [1]),
      boxes: integers(scene.box, [1, 4]),
      last: integers(scene.places.at(-1), [1, 2]),
      covered: new ort.Tensor("float32", scene.inBlocks(blocks), [1, blocks, blocks]),
      candidates: integers(candidates.flat(), [1, candidates.length, 2]),
      new: integers(
        candidates.map((place) => scene.newPixels(place)),
        [1, candidates.length],
      ),
    });
    return Array.from(found.gains.data);
  }

  /** Return the probabilities of logits, tempered if the checkpoint was calibrated. */
  probabilities(logits, scene) {
    const temperature = Math.exp(this.logTemperature(scene));
    const most = Math.max(...logits);
    const powers = logits.map((value) => Math.exp((value - most) / temperature));
    const total = powers.reduce((sum, value) => sum + value, 0);
    return powers.map((value) => value / total);
  }

  logTemperature(scene) {
    if (!this.told.temperature) return 0;
    const { coefficients: w, sides } = this.told.temperature;
    const side = Math.log2(scene.box[2] * scene.box[3]) / 2;
    const below = Math.max(0, Math.log2(sides[0]) - side);
    const above = Math.max(0, side - Math.log2(sides[1]));
    const log = w[0] + w[1] * scene.ratio + (w[2] * Math.log2(scene.places.length)) / 8 + w[3] * below + w[4] * above;
    return Math.min(LARGEST_LOG, Math.max(-LARGEST_LOG, log));
  }
}
