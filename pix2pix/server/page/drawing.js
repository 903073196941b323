// The drawing: its pixels, the tools that change them, and what undo brings back. Nothing is anti-aliased: a model of
// labels knows their exact colours alone.

const MOST_STEPS = 60;

export class Drawing {
  // `changed(isNew)` is called after each change; isNew: it is another image, not the next stroke of this one.
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.undos = [];
    this.redos = [];
  }

  get width() { return this.canvas.width; }
  get height() { return this.canvas.height; }

  // Start with an image of one colour, and nothing to undo.
  reset(width, height, colour) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.undos = [];
    this.redos = [];
    this.background = colour;
    this.context.fillStyle = colour;
    this.context.fillRect(0, 0, width, height);
    this.changed(true);
  }

  read() { return this.context.getImageData(0, 0, this.width, this.height); }

  // Note the image as it is, to come back to it.
  begin() {
    this.undos.push(this.read());
    if (this.undos.length > MOST_STEPS) this.undos.shift();
    this.redos = [];
  }

  undo() { this.step(this.undos, this.redos); }
  redo() { this.step(this.redos, this.undos); }

  step(from, to) {
    if (!from.length) return;
    to.push(this.read());
    this.context.putImageData(from.pop(), 0, 0);
    this.changed(true);
  }

  clear() {
    this.begin();
    this.context.fillStyle = this.background;
    this.context.fillRect(0, 0, this.width, this.height);
    this.changed(true);
  }

  // Draw an image over everything, as the server scales images: to the size, whatever its shape was.
  load(image) {
    this.begin();
    this.context.fillStyle = "#ffffff";
    this.context.fillRect(0, 0, this.width, this.height);
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(image, 0, 0, this.width, this.height);
    this.changed(true);
  }

  colourAt(x, y) {
    const [r, g, b] = this.context.getImageData(clamp(x, this.width), clamp(y, this.height), 1, 1).data;
    return "#" + [r, g, b].map((value) => value.toString(16).padStart(2, "0")).join("");
  }

  // A stroke from one point to another: discs of so many pixels along the way.
  line(x0, y0, x1, y1, size0, size1, colour) {
    this.context.fillStyle = colour;
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
    for (let i = 0; i <= steps; i++) {
      const t = i / steps;
      this.disc(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t, (size0 + (size1 - size0) * t) / 2);
    }
    this.changed(false);
  }

  disc(x, y, radius) {
    const top = Math.round(y - radius);
    const rows = Math.max(1, Math.round(2 * radius));
    for (let row = top; row < top + rows; row++) {
      const half = Math.sqrt(Math.max(0, radius ** 2 - (row + 0.5 - (top + rows / 2)) ** 2));
      const left = Math.round(x - half);
      this.context.fillRect(left, row, Math.max(1, Math.round(2 * half)), 1);
    }
  }

  rectangle(x0, y0, x1, y1, colour) {
    this.context.fillStyle = colour;
    const [left, top] = [Math.min(x0, x1), Math.min(y0, y1)].map(Math.floor);
    this.context.fillRect(left, top, Math.abs(Math.floor(x1) - Math.floor(x0)) + 1,
      Math.abs(Math.floor(y1) - Math.floor(y0)) + 1);
    this.changed(false);
  }

  // Give a region of one colour another one.
  fill(x, y, colour) {
    const image = this.read();
    const pixels = new Uint32Array(image.data.buffer);
    const start = clamp(y, this.height) * this.width + clamp(x, this.width);
    const from = pixels[start];
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    const to = new Uint32Array(new Uint8ClampedArray([r, g, b, 255]).buffer)[0];
    if (from === to) {
      this.undos.pop();
      return;
    }
    const todo = [start];
    pixels[start] = to;
    const visit = (next) => {
      if (pixels[next] === from) {
        pixels[next] = to;
        todo.push(next);
      }
    };
    while (todo.length) {
      const at = todo.pop();
      const column = at % this.width;
      if (column > 0) visit(at - 1);
      if (column < this.width - 1) visit(at + 1);
      visit(at - this.width);
      visit(at + this.width);
    }
    this.context.putImageData(image, 0, 0);
    this.changed(false);
  }

  // Show what was there when the present step began, to draw its shape anew.
  restore() { this.context.putImageData(this.undos.at(-1), 0, 0); }
}

function clamp(value, length) { return Math.max(0, Math.min(length - 1, Math.floor(value))); }
