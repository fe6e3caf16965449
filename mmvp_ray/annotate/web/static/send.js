// Requests with the session's token, and what they say to the person.

const { prefix, csrf } = document.body.dataset;

export const link = (path) => prefix + path;

// POST an object; gives {ok, status, body}. A server that is away is status 0.
export async function send(path, fields = {}, { keepalive = false } = {}) {
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Accept": "application/json", "X-CSRF-Token": csrf },
      body: JSON.stringify(fields),
      credentials: "same-origin",
      keepalive,
    });
    const body = await response.json().catch(() => ({}));
    return { ok: response.ok, status: response.status, body };
  } catch {
    return { ok: false, status: 0, body: { message: "The server does not answer; nothing is lost, try again." } };
  }
}

const status = document.getElementById("status");

export function say(text, isProblem = false) {
  if (!status) return;
  status.textContent = text || "";
  status.classList.toggle("problem", isProblem);
}

// Whether a key is meant for the page and not for a field, an input method or the browser.
export function isForPage(event) {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return false;
  const target = event.target;
  // With a dialog open the page behind it is out of reach, wherever the focus went.
  if (document.querySelector("dialog[open]")) return false;
  // A dialog that was just closed has the focus until the next frame.
  if (target.closest("dialog")) return true;
  if (target.matches("textarea, select, [contenteditable]")) return false;
  return !target.matches("input") || ["radio", "checkbox"].includes(target.type);
}

// The browser's back button may bring a page back as it was when its decision was sent: ask for what is due now instead.
export function staysFresh() {
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

const SIGN_OF_LIFE_MS = 60_000;

// Go on holding a pair while its page is open.
export function goesOnHolding(work) {
  if (!work) return;
  setInterval(async () => {
    const { ok, body } = await send(`${work}/hold`);
    if (!ok) say(body.message, true);
  }, SIGN_OF_LIFE_MS);
}

// Fetch the pictures of what comes next.
export function fetchAhead(ids) {
  for (const id of (ids || "").split(" ").filter(Boolean)) new Image().src = link(`/images/${id}.webp`);
}
