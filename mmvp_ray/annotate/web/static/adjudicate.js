// The adjudicator's page: keep, correct or drop.

import { fetchAhead, goesOnHolding, link, say, send, staysFresh } from "./send.js";
import { VIEW } from "./viewer.js";
import { listen } from "./keys.js";
import { PATTERN_KEYS, form, read, showProblems } from "./sheet.js";
import { askReason } from "./reject.js";

const { work, ahead, annotation } = document.getElementById("main").dataset;

let isDecided = false;

async function decide(decision, fields = {}) {
  if (isDecided) return null;
  isDecided = true;
  showProblems({});
  say("Sending ...");
  const { ok, body } = await send(`${work}/${decision}`, { ...fields, annotation_id: annotation });
  if (ok) { location.assign(link(body.next)); return null; }
  isDecided = false;
  if (body.problems) showProblems(body.problems);
  say(body.message, true);
  return body.message;
}

// Warnings count as seen only while nothing was changed since.
let seen = "";
function correct() {
  const content = read(), isSeen = JSON.stringify(content) === seen;
  seen = JSON.stringify(content);
  return decide("correct", { ...content, warnings_seen: isSeen });
}
form.addEventListener("submit", (event) => { event.preventDefault(); correct(); });
// Enter in a field would send half a correction.
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.ctrlKey || event.metaKey) { event.preventDefault(); correct(); }
  else if (event.target.matches("input")) event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  if (event.target.closest("form") || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  correct();
});
listen({
  ...VIEW,
  ...PATTERN_KEYS,
  a: () => document.getElementById("difference-text").focus(),
  k: () => decide("keep"),
  r: () => askReason((reason, note) => decide("drop", { reason, note })),
  s: () => decide("skip"),
});
fetchAhead(ahead);
goesOnHolding(work);
staysFresh();
