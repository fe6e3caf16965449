// Two images under one lens: zoom and place are shared; flicker shows one at a time; a map shows where they differ.

const stage = document.querySelector(".stage");
const sides = ["a", "b"].map((name) => document.getElementById(`side-${name}`));
const viewports = sides.map((side) => side.querySelector(".viewport"));
const images = viewports.map((viewport) => viewport.querySelector("img"));
const map = document.getElementById("difference");
const lens = { scale: 1, x: 0, y: 0 };

function draw() {
  const limit = (lens.scale - 1) / 2;
  lens.x = Math.min(limit, Math.max(-limit, lens.x));
  lens.y = Math.min(limit, Math.max(-limit, lens.y));
  for (const shown of stage.querySelectorAll(".viewport > img, .viewport > canvas")) {
    // Places are fractions of the viewport, so that both images show the same part.
    shown.style.transform = `translate(${100 * lens.x}%, ${100 * lens.y}%) scale(${lens.scale})`;
  }
}

function zoom(factor, x = 0, y = 0) {
  const scale = Math.min(8, Math.max(1, lens.scale * factor));
  // The point under the pointer stays where it is.
  lens.x = x - ((x - lens.x) * scale) / lens.scale;
  lens.y = y - ((y - lens.y) * scale) / lens.scale;
  lens.scale = scale;
  draw();
}

function cycleZoom() {
  const next = lens.scale < 1.9 ? 2 : lens.scale < 3.9 ? 4 : 1;
  zoom(next / lens.scale);
}

function isBlurred() {
  return images.some((image) => image.classList.contains("blurred"));
}

function flicker() {
  if (!stage.classList.contains("single")) {
    stage.classList.add("single");
    sides[1].hidden = true;
  } else {
    for (const side of sides) side.hidden = !side.hidden;
  }
  press("f", true);
}

function sideBySide() {
  stage.classList.remove("single");
  for (const side of sides) side.hidden = false;
  press("f", false);
}

async function difference() {
  map.hidden = !map.hidden;
  press("d", !map.hidden);
  if (map.hidden) return;
  // A key may be faster than the network; a picture that does not come leaves the map empty.
  try { await Promise.all(images.map((image) => image.decode())); } catch { return; }
  const [a, b] = images;
  const width = Math.min(800, a.naturalWidth), height = Math.round((width * a.naturalHeight) / a.naturalWidth);
  const pixels = [a, b].map((image) => {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height);
  });
  const out = pixels[0];
  for (let i = 0; i < out.data.length; i += 4) {
    let sum = 0;
    for (let c = 0; c < 3; c++) sum += Math.abs(pixels[0].data[i + c] - pixels[1].data[i + c]);
    const value = Math.min(255, sum);
    out.data[i] = value; out.data[i + 1] = value * 0.62; out.data[i + 2] = value * 0.45; out.data[i + 3] = 255;
  }
  const canvas = map.querySelector("canvas");
  canvas.width = width; canvas.height = height;
  canvas.getContext("2d").putImageData(out, 0, 0);
  // What is not to be seen unasked is not to be guessed from the map either.
  canvas.classList.toggle("blurred", isBlurred());
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Map of differences");
  draw();
}

function press(key, isPressed) {
  document.querySelector(`.tools [data-key="${key}"]`)?.setAttribute("aria-pressed", String(isPressed));
}

function facts(isShown) {
  document.body.classList.toggle("no-facts", !isShown);
  press("m", isShown);
  try { localStorage.setItem("facts", isShown ? "shown" : "hidden"); } catch { /* A private window keeps nothing. */ }
}

for (const viewport of stage.querySelectorAll(".viewport")) {
  viewport.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && lens.scale === 1 && event.deltaY > 0) return;
    event.preventDefault();
    const box = viewport.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.25 : 0.8, (event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5);
  }, { passive: false });
  viewport.addEventListener("pointerdown", (event) => {
    if (lens.scale === 1 || event.target.closest("button")) return;
    viewport.setPointerCapture(event.pointerId);
    const box = viewport.getBoundingClientRect(), from = { ...lens, clientX: event.clientX, clientY: event.clientY };
    const move = (moved) => {
      lens.x = from.x + (moved.clientX - from.clientX) / box.width;
      lens.y = from.y + (moved.clientY - from.clientY) / box.height;
      draw();
    };
    viewport.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) viewport.addEventListener(end, () => viewport.removeEventListener("pointermove", move), { once: true });
  });
  viewport.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") zoom(1 / lens.scale);
    else if (step) { lens.x += step[0]; lens.y += step[1]; draw(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
for (const button of document.querySelectorAll(".unblur")) {
  button.addEventListener("click", () => {
    const viewport = button.parentElement;
    button.previousElementSibling.classList.remove("blurred");
    button.remove();
    viewport.focus();
    map.querySelector("canvas").classList.toggle("blurred", isBlurred());
  });
}
let isShown = true;
try { isShown = localStorage.getItem("facts") !== "hidden"; } catch { /* As above. */ }
facts(isShown);

export const VIEW = {
  z: cycleZoom,
  f: flicker,
  d: difference,
  m: () => facts(document.body.classList.contains("no-facts")),
  "?": () => document.getElementById("keys")?.showModal(),
  Escape: sideBySide,
};
