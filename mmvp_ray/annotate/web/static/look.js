// Pages whose forms are plain: viewing keys, Ctrl Enter, and keys of their buttons.

import { fetchAhead, goesOnHolding, staysFresh } from "./send.js";
import { VIEW } from "./viewer.js";
import { listen } from "./keys.js";

const sentences = document.getElementById("sentences");
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing || !sentences) return;
  event.preventDefault();
  if (!document.querySelector("dialog[open]")) sentences.requestSubmit();
});
// Once is enough, however often a key is pressed.
let isSent = false;
for (const form of document.querySelectorAll("main form[method=post]")) {
  form.addEventListener("submit", (event) => {
    if (isSent) event.preventDefault();
    isSent = true;
  });
}
staysFresh();
const submits = Object.fromEntries(
  [...document.querySelectorAll("button[name][data-key]")].map((button) => [button.dataset.key, () => button.click()]),
);
listen({ ...VIEW, ...submits });
fetchAhead(document.getElementById("main").dataset.ahead);
goesOnHolding(document.getElementById("main").dataset.work);
