// A question with options: digits choose, Enter sends, the time from showing to sending goes along.

import { fetchAhead, goesOnHolding, isForPage, staysFresh } from "./send.js";

const form = document.querySelector("form.choose");
const choices = [...form.querySelectorAll("[name=choice]")];
const picture = document.querySelector(".picture img");
let shownAt = performance.now();
// Thinking begins when the image is there, not when the page is.
if (picture && !picture.complete) picture.addEventListener("load", () => { shownAt = performance.now(); }, { once: true });

for (const button of document.querySelectorAll(".unblur")) {
  button.addEventListener("click", () => { button.previousElementSibling.classList.remove("blurred"); button.remove(); });
}
document.addEventListener("keydown", (event) => {
  if (!isForPage(event)) return;
  if (event.key === "Enter" && !event.target.matches("button, a")) { event.preventDefault(); form.requestSubmit(); return; }
  if (!/^[0-9]$/.test(event.key)) return;
  const choice = event.key === "0" ? choices.at(-1) : choices.slice(0, -1)[Number(event.key) - 1];
  if (!choice) return;
  event.preventDefault();
  choice.checked = true;
  choice.focus();
});
let isSent = false;
form.addEventListener("submit", (event) => {
  if (isSent) { event.preventDefault(); return; }
  isSent = true;
  form.elements.seconds.value = ((performance.now() - shownAt) / 1000).toFixed(3);
});
staysFresh();
document.body.dataset.keys = "on";
fetchAhead(document.getElementById("main").dataset.ahead);
goesOnHolding(document.getElementById("main").dataset.work);
