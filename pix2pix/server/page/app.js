// The page: connects its controls to the drawing, and the drawing to the server.

import { ask, translate } from "./api.js";
import { Drawing } from "./drawing.js";
import { Live } from "./live.js";

const $ = (id) => document.getElementById(id);
const TOOLS = { b: "brush", l: "line", r: "rectangle", f: "fill", i: "eyedropper", e: "eraser" };
const COLOURS = [["black", "#000000"], ["white", "#ffffff"], ["grey", "#808080"], ["red", "#d62828"],
  ["orange", "#f77f00"], ["yellow", "#fcbf49"], ["green", "#2a9d4a"], ["blue", "#1d5fd1"]];
const SAVED = "pix2pix-drawing";
const state = { tool: "brush", colour: "#000000", model: null, saving: 0 };

const drawing = new Drawing($("drawing"), changed);
const live = new Live(send, show, (error) => say(error.message, true));

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function changed(isNew) {
  $("undo").disabled = !drawing.undos.length;
  $("redo").disabled = !drawing.redos.length;
  if (!state.model) return;
  live.request(isNew);
  clearTimeout(state.saving);
  state.saving = setTimeout(autosave, 300);
}

function autosave() {
  try {
    localStorage.setItem(SAVED, $("drawing").toDataURL());
  } catch { /* no storage, or it is full: the drawing is only not kept */ }
}

const blobOf = (canvas) => new Promise((done) => canvas.toBlob(done, "image/png"));

async function send(signal) {
  const sent = drawing.read();
  const answer = await translate(state.model, await blobOf($("drawing")), signal);
  return { sent, image: await createImageBitmap(await answer.blob()) };
}

function show({ sent, image }, milliseconds) {
  const result = $("result");
  Object.assign(result, { width: image.width, height: image.height });
  result.getContext("2d").drawImage(image, 0, 0);
  Object.assign($("before"), { width: sent.width, height: sent.height });
  $("before").getContext("2d").putImageData(sent, 0, 0);
  $("time").textContent = `${milliseconds.toFixed(0)} ms`;
  if ($("status").textContent !== "Ready") say("Ready");
}

// -- tools ------------------------------------------------------------------------------------------------------------

function choose(group, items, chosen) {
  for (const { value, text, colour } of items) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: group, value });
    input.addEventListener("change", () => chosen(value));
    label.append(input);
    if (colour) {
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.style.background = colour;
      label.append(swatch);
    }
    label.append(text);
    $(group).append(label);
  }
}

function check(group, value) {
  const inputs = [...document.getElementsByName(group)];
  for (const input of inputs) input.checked = input.value === value;
  return inputs.some((input) => input.checked);
}

function setTool(tool) {
  state.tool = tool;
  check("tools", tool);
}

function setColour(colour) {
  state.colour = colour;
  $("other").value = colour;
  check("palette", colour);
}

function setSize(size) {
  $("size").value = size;
  $("size-value").textContent = $("size").value;
}

// -- the pen: a pointer's, or the keyboard's --------------------------------------------------------------------------

const pen = { down: false, x: 0, y: 0, width: 0, startX: 0, startY: 0 };

const widthOf = (pressure) => Math.max(1, Number($("size").value) * pressure);
const inkOf = () => (state.tool === "eraser" ? drawing.background : state.colour);

function penDown(x, y, pressure) {
  if (state.tool === "eyedropper") {
    setColour(drawing.colourAt(x, y));
    return;
  }
  drawing.begin();
  Object.assign(pen, { down: true, x, y, startX: x, startY: y, width: widthOf(pressure) });
  if (state.tool === "fill") {
    pen.down = false;
    drawing.fill(x, y, state.colour);
  } else {
    penMove(x, y, pressure);
  }
}

function penMove(x, y, pressure) {
  if (!pen.down) return;
  const width = widthOf(pressure);
  if (state.tool === "line" || state.tool === "rectangle") {
    drawing.restore();
    if (state.tool === "line") drawing.line(pen.startX, pen.startY, x, y, width, width, state.colour);
    else drawing.rectangle(pen.startX, pen.startY, x, y, state.colour);
  } else {
    drawing.line(pen.x, pen.y, x, y, pen.width, width, inkOf());
  }
  Object.assign(pen, { x, y, width });
}

function pointerAt(event) {
  const box = $("drawing").getBoundingClientRect();
  const x = ((event.clientX - box.left) * drawing.width) / box.width;
  const y = ((event.clientY - box.top) * drawing.height) / box.height;
  return [x, y, event.pointerType === "pen" ? 0.1 + 1.4 * event.pressure : 1];
}

function listenToPointers() {
  const canvas = $("drawing");
  let pointer = null; // a second finger does not draw
  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    $("cursor").hidden = true;
    penDown(...pointerAt(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) penMove(...pointerAt(each));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      pen.down = false;
    });
  }
}

const cursor = { x: 0, y: 0 };

function moveCursor(x, y) {
  cursor.x = Math.max(0, Math.min(drawing.width - 1, x));
  cursor.y = Math.max(0, Math.min(drawing.height - 1, y));
  $("cursor").hidden = false;
  $("cursor").classList.toggle("down", pen.down);
  $("cursor").style.left = `${(100 * (cursor.x + 0.5)) / drawing.width}%`;
  $("cursor").style.top = `${(100 * (cursor.y + 0.5)) / drawing.height}%`;
}

function listenToKeys() {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  $("drawing").addEventListener("keydown", (event) => {
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key].map((step) => step * (event.shiftKey ? 10 : 1));
      moveCursor(cursor.x + dx, cursor.y + dy);
      penMove(cursor.x, cursor.y, 1);
    } else if (event.key === " ") {
      if (pen.down) pen.down = false;
      else penDown(cursor.x, cursor.y, 1);
      moveCursor(cursor.x, cursor.y);
      say(`Pen ${pen.down ? "down" : "up"} at ${cursor.x}, ${cursor.y}`);
    } else return;
    event.preventDefault();
  });
  $("drawing").addEventListener("blur", () => { pen.down = false; });
  document.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key !== "z" && key !== "y") return;
      event.preventDefault();
      if (pen.down) return;
      if (key === "y" || event.shiftKey) drawing.redo();
      else drawing.undo();
    } else if (!event.altKey && event.target.tagName !== "SELECT") {
      if (TOOLS[key]) setTool(TOOLS[key]);
      else if (key === "[" || key === "]") setSize(Number($("size").value) + (key === "]" ? 2 : -2));
    }
  });
}

// -- images from elsewhere, and to files ------------------------------------------------------------------------------

async function open(file) {
  try {
    drawing.load(await createImageBitmap(file));
  } catch {
    say(`${file.name || "This"} is no image that the browser can open`, true);
  }
}

async function save(canvas, name) {
  const link = Object.assign(document.createElement("a"), { download: name });
  link.href = URL.createObjectURL(await blobOf(canvas));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function listenToImages() {
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) open($("file").files[0]);
    $("file").value = "";
  });
  const imageIn = (items) => [...(items ?? [])].find((file) => file.type.startsWith("image/"));
  document.addEventListener("paste", (event) => {
    const file = imageIn(event.clipboardData.files);
    if (file) open(file);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = imageIn(event.dataTransfer.files);
    if (file) open(file);
  });
  $("save-input").addEventListener("click", () => save($("drawing"), "drawing.png"));
  $("save-output").addEventListener("click", () => save($("result"), "result.png"));
}

function listenToCamera() {
  const dialog = $("camera-dialog");
  const video = $("video");
  $("camera").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      dialog.showModal();
    } catch {
      say("There is no webcam, or it may not be used", true);
    }
  });
  $("snap").addEventListener("click", () => {
    if (video.videoWidth) drawing.load(video);
    dialog.close();
  });
  $("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  });
}

// -- the start --------------------------------------------------------------------------------------------------------

function showExamples(addresses) {
  for (const [i, address] of addresses.entries()) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const image = Object.assign(document.createElement("img"), { src: address, alt: `Example ${i + 1}` });
    button.append(image);
    button.addEventListener("click", () => { if (image.complete) drawing.load(image); });
    $("examples").append(button);
  }
}

async function setModel(model) {
  state.model = null;
  const palette = model.palette.length ? model.palette.map(({ name, colour }) => [name, colour]) : COLOURS;
  for (const label of [...$("palette").querySelectorAll("label")]) label.remove();
  choose("palette", palette.map(([text, colour]) => ({ value: colour, text, colour })), setColour);
  setColour(palette[Math.min(1, palette.length - 1)][1]);
  drawing.reset(model.size, model.size, palette[0][1]);
  moveCursor(model.size >> 1, model.size >> 1);
  $("cursor").hidden = true;
  const saved = localStorage.getItem(SAVED);
  if (saved) {
    const image = new Image();
    image.src = saved;
    try {
      await image.decode();
      drawing.context.drawImage(image, 0, 0, drawing.width, drawing.height);
    } catch { /* damaged: start anew */ }
  }
  state.model = model;
  changed(true);
}

async function start() {
  const settings = await (await ask("/page/settings.json")).json();
  const { models } = await (await ask("/models")).json();
  choose("tools", Object.entries(TOOLS).map(([key, value]) => ({ value, text: `${value} (${key.toUpperCase()})` })),
    setTool);
  setTool("brush");
  showExamples(settings.examples);
  for (const model of models) $("model").append(new Option(model.name));
  $("model-label").hidden = models.length < 2;
  $("model").addEventListener("change", () => setModel(models[$("model").selectedIndex]));
  $("other").addEventListener("input", () => setColour($("other").value));
  $("size").addEventListener("input", () => setSize($("size").value));
  $("slider").addEventListener("input", () => {
    $("before").style.clipPath = `inset(0 ${100 - $("slider").value}% 0 0)`;
  });
  $("before").style.clipPath = "inset(0 100% 0 0)";
  $("undo").addEventListener("click", () => drawing.undo());
  $("redo").addEventListener("click", () => drawing.redo());
  $("clear").addEventListener("click", () => drawing.clear());
  listenToPointers();
  listenToKeys();
  listenToImages();
  listenToCamera();
  await setModel(models[0]);
}

start().catch((error) => say(error.message, true));
