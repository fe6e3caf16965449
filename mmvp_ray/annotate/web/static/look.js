// Pages whose forms are plain: viewing keys, Ctrl Enter, and keys of their buttons.

import { fetchAhead } from "./send.js";
import { VIEW } from "./viewer.js";
import { listen } from "./keys.js";

const form = document.querySelector("main form");
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && form && document.getElementById("sentences")) form.requestSubmit();
});
const submits = Object.fromEntries(
  [...document.querySelectorAll("button[name][data-key]")].map((button) => [button.dataset.key, () => button.click()]),
);
listen({ ...VIEW, ...submits });
fetchAhead(document.getElementById("main").dataset.ahead);
