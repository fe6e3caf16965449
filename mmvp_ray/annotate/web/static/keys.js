// One table of keys for a page: each also is a button with the same data-key.

import { isForPage } from "./send.js";

export function listen(actions) {
  for (const button of document.querySelectorAll("button[type=button][data-key]")) {
    button.addEventListener("click", () => actions[button.dataset.key]?.());
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target.matches("input, textarea") && !event.target.closest("dialog")) {
      event.target.blur();
      return;
    }
    if (!isForPage(event)) return;
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  // Whoever drives the page by a program sees that keys work from here on.
  document.body.dataset.keys = "on";
}
