// The annotator's page: keys, drafts, and what becomes of the pair.

import { fetchAhead, link, say, send, staysFresh } from "./send.js";
import { VIEW } from "./viewer.js";
import { listen } from "./keys.js";
import { PATTERN_KEYS, fill, form, read, showProblems } from "./sheet.js";
import { askReason } from "./reject.js";

const main = document.getElementById("main");
const work = main.dataset.work;
const warnings = document.getElementById("warnings");
const DRAFT_PAUSE_MS = 700, SIGN_OF_LIFE_MS = 60_000;
let suggestion = Number(main.dataset.suggestion) || null;
let isDecided = false, isChanged = false, timer = null;
let seen = "", isAsking = false;

async function keepDraft(options) {
  clearTimeout(timer);
  if (isDecided) return;
  isChanged = false;
  const { ok, body } = await send(`${work}/draft`, read(), options);
  if (isDecided) return;
  if (ok) say("Draft kept.");
  else { isChanged = true; say(body.message || "The draft could not be kept.", true); }
}

form.addEventListener("input", () => {
  isChanged = true;
  clearTimeout(timer);
  timer = setTimeout(keepDraft, DRAFT_PAUSE_MS);
});
// A sign of life alone: a page that lies open elsewhere does not write its old text over a newer draft.
setInterval(() => (isChanged ? keepDraft() : isDecided || send(`${work}/draft`)), SIGN_OF_LIFE_MS);
document.addEventListener("visibilitychange", () => { if (document.hidden && isChanged) keepDraft({ keepalive: true }); });
window.addEventListener("pagehide", () => { if (isChanged) keepDraft({ keepalive: true }); });

// Send a decision; go on where the server says. Gives the message of a refusal.
async function decide(path, fields) {
  if (isDecided) return null;
  // What was typed this moment is wanted when the pair comes again.
  if (isChanged && !path.endsWith("/annotation")) await keepDraft();
  isDecided = true;
  clearTimeout(timer);
  say("Sending ...");
  const { ok, status, body } = await send(path, fields);
  if (ok) { location.assign(link(body.next)); return null; }
  isDecided = false;
  if (status === 422 && body.problems) showProblems(body.problems);
  if (body.warnings) showWarnings(body.warnings);
  say(body.message, true);
  return body.message;
}

function showWarnings(texts) {
  seen = JSON.stringify(read());
  warnings.hidden = false;
  warnings.replaceChildren(...[...texts, "Accept again if it is meant so."].map((text) => {
    const line = document.createElement("p");
    line.textContent = text;
    return line;
  }));
}

function accept() {
  showProblems({});
  const content = read();
  // Warnings count as seen only while nothing was changed since.
  const fields = { ...content, suggestion_id: suggestion, warnings_seen: JSON.stringify(content) === seen };
  warnings.hidden = true;
  return decide(`${work}/annotation`, fields);
}

async function propose() {
  if (isAsking) return;
  isAsking = true;
  say("Asking the model ...");
  const { ok, body } = await send(`${work}/suggestion`);
  isAsking = false;
  say(body.message, !ok);
  if (!ok) return;
  suggestion = body.suggestion_id ?? suggestion;
  fill(body.content);
  form.dispatchEvent(new Event("input"));
}

form.addEventListener("submit", (event) => { event.preventDefault(); accept(); });
// Enter in a field would send half an annotation.
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.ctrlKey || event.metaKey) { event.preventDefault(); event.stopPropagation(); accept(); }
  else if (event.target.matches("input")) event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  if (event.target.closest("form") || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  accept();
});

listen({
  ...VIEW,
  ...PATTERN_KEYS,
  a: () => document.getElementById("difference-text").focus(),
  r: () => askReason((reason, note) => decide(`${work}/rejection`, { reason, note })),
  s: () => decide(`${work}/skip`),
  u: () => decide(link("/tasks/annotate/undo")),
  g: () => document.querySelector('[data-key="g"]') && propose(),
});
fetchAhead(main.dataset.ahead);
staysFresh();
