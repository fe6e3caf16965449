// The adjudicator's page: keep, correct or drop.

import { fetchAhead, link, say, send } from "./send.js";
import { VIEW } from "./viewer.js";
import { listen } from "./keys.js";
import { form, read, showProblems } from "./sheet.js";
import { askReason } from "./reject.js";

const { work, ahead } = document.getElementById("main").dataset;

async function decide(decision, fields = {}) {
  say("Sending ...");
  const { ok, body } = await send(`${work}/${decision}`, fields);
  if (ok) { location.assign(link(body.next)); return null; }
  if (body.problems) showProblems(body.problems);
  say(body.message, true);
  return body.message;
}

const correct = () => decide("correct", read());
form.addEventListener("submit", (event) => { event.preventDefault(); correct(); });
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  if (event.ctrlKey || event.metaKey) { event.preventDefault(); correct(); }
  else if (event.target.matches("input")) event.preventDefault();
});
listen({
  ...VIEW,
  k: () => decide("keep"),
  r: () => askReason((reason, note) => decide("drop", { reason, note })),
  s: () => decide("skip"),
});
fetchAhead(ahead);
