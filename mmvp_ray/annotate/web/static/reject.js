// Reasons by digit; another reason needs a note.

const dialog = document.getElementById("reject");
const note = document.getElementById("note");
const problem = document.getElementById("problem-reject");

// Ask for a reason and hand it to decide(reason, note), which gives a message if it was refused.
export function askReason(decide) {
  const buttons = [...dialog.querySelectorAll("[data-reason]")];
  const choose = async (reason) => {
    if (reason === "other" && !note.value.trim()) {
      problem.textContent = "Say which reason.";
      note.focus();
      return;
    }
    problem.textContent = (await decide(reason, note.value)) ?? "";
  };
  for (const button of buttons) button.onclick = () => choose(button.dataset.reason);
  note.onkeydown = (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    choose("other");
  };
  dialog.onkeydown = (event) => {
    if (event.target === note || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = buttons.find((one) => one.getAttribute("aria-keyshortcuts") === event.key);
    if (!button) return;
    event.preventDefault();
    choose(button.dataset.reason);
  };
  problem.textContent = "";
  dialog.showModal();
}
