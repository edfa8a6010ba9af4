// A picture on its canvas, and what of it was seen.

export class Scene {
  /**
   * Fit a picture into a square canvas, in the middle, with black around it.
   * @param {CanvasImageSource & {width: number, height: number}} picture
   * @param {number} side of the canvas in pixels
   * @param {number} patch side of a glimpse
   */
  constructor(picture, side, patch) {
    this.side = side;
    this.patch = patch;
    const scale = side / Math.max(picture.width, picture.height);
    const [height, width] = [picture.height, picture.width].map((length) => Math.max(1, Math.round(length * scale)));
    this.box = [Math.floor((side - height) / 2), Math.floor((side - width) / 2), height, width];
    this.canvas = new OffscreenCanvas(side, side);
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "black";
    context.fillRect(0, 0, side, side);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, this.box[1], this.box[0], width, height);
    this.pixels = context.getImageData(0, 0, side, side).data; // RGBA, row by row
    this.forget();
  }

  forget() {
    this.places = []; // [row, col] of each glimpse
    this.seen = new Uint8Array(this.side ** 2);
    this.own = 0; // pixels of the picture itself that were seen
  }

  /** The share of the picture's own pixels that were seen. */
  get ratio() {
    return this.own / (this.box[2] * this.box[3]);
  }

  /** First and last valid start of a glimpse, [row, col] each: on the picture, as the encoder was trained. */
  get starts() {
    const first = [0, 1].map((axis) => this.box[axis] - (Math.max(0, this.patch - this.box[axis + 2]) >> 1));
    const last = [0, 1].map((axis) => first[axis] + Math.max(0, this.box[axis + 2] - this.patch));
    return [first, last];
  }

  /** Return the nearest place at which a glimpse lies wholly on the canvas. */
  nearest([row, col]) {
    return [row, col].map((at) => Math.min(this.side - this.patch, Math.max(0, Math.round(at))));
  }

  /** Return the glimpse at a place: (3, P, P). */
  cut([row, col]) {
    const { patch, side, pixels } = this;
    const cut = new Uint8Array(3 * patch * patch);
    for (let channel = 0, at = 0; channel < 3; channel++)
      for (let y = row; y < row + patch; y++)
        for (let x = col; x < col + patch; x++) cut[at++] = pixels[4 * (y * side + x) + channel];
    return cut;
  }

  /** Note that the glimpse at a place was seen. */
  show(place) {
    this.own += this.newPixels(place);
    const [row, col] = place;
    for (let y = row; y < row + this.patch; y++)
      this.seen.fill(1, y * this.side + col, y * this.side + col + this.patch);
    this.places.push(place);
  }

  /** Return how many of the picture's own pixels a glimpse at a place would be the first to show. */
  newPixels([row, col]) {
    return this.unseenIn(row, row + this.patch, col, col + this.patch)[0];
  }

  /** Return the share of each of blocks x blocks parts of the picture that was shown, row by row. */
  inBlocks(blocks) {
    const [top, left, height, width] = this.box;
    const shares = new Float32Array(blocks * blocks);
    const from = (at, first, length) => first + Math.floor((at * length) / blocks);
    const to = (at, first, length) => first + Math.ceil(((at + 1) * length) / blocks);
    for (let y = 0; y < blocks; y++)
      for (let x = 0; x < blocks; x++) {
        const [unseen, all] = this.unseenIn(
          from(y, top, height),
          to(y, top, height),
          from(x, left, width),
          to(x, left, width),
        );
        shares[y * blocks + x] = 1 - unseen / all;
      }
    return shares;
  }

  /** Return how many of the picture's pixels between two rows and columns were not seen, and how many there are. */
  unseenIn(firstRow, endRow, firstCol, endCol) {
    const [top, left, height, width] = this.box;
    let [unseen, all] = [0, 0];
    for (let y = Math.max(firstRow, top); y < Math.min(endRow, top + height); y++)
      for (let x = Math.max(firstCol, left); x < Math.min(endCol, left + width); x++) {
        all++;
        unseen += 1 - this.seen[y * this.side + x];
      }
    return [unseen, all];
  }
}
