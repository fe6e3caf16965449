// The form of an annotation: its options grow and shrink, its fields become an object, problems stand beside what they are about.

const form = document.getElementById("annotation");
const options = document.getElementById("options");
const add = document.getElementById("add-option");

const rows = () => [...options.querySelectorAll(".option")];

function number() {
  for (const [index, row] of rows().entries()) {
    row.querySelector("[name=option]").setAttribute("aria-label", `Answer ${index + 1}`);
    row.querySelector(".remove").setAttribute("aria-label", `Remove answer ${index + 1}`);
    for (const side of "ab") row.querySelector(`[name=answer_${side}]`).value = index;
  }
  for (const row of rows()) row.querySelector(".remove").hidden = rows().length <= 2;
  add.hidden = rows().length >= Number(options.dataset.max);
}

function addRow() {
  const row = rows()[0].cloneNode(true);
  row.querySelector("[name=option]").value = "";
  for (const radio of row.querySelectorAll("[type=radio]")) radio.checked = false;
  add.before(row);
  number();
  return row.querySelector("[name=option]");
}

add.addEventListener("click", () => addRow().focus());
options.addEventListener("click", (event) => {
  const button = event.target.closest(".remove");
  if (!button) return;
  button.closest(".option").remove();
  number();
  form.dispatchEvent(new Event("input"));
});
options.addEventListener("keydown", (event) => {
  const side = event.altKey && { KeyA: "a", KeyB: "b" }[event.code];
  if (!side || !event.target.matches("[name=option]")) return;
  event.preventDefault();
  event.target.closest(".option").querySelector(`[name=answer_${side}]`).checked = true;
  form.dispatchEvent(new Event("input"));
});
number();

export function read() {
  const answer = (side) => {
    const checked = form.querySelector(`[name=answer_${side}]:checked`);
    return checked ? Number(checked.value) : null;
  };
  return {
    difference: form.elements.difference.value,
    question: form.elements.question.value,
    options: rows().map((row) => row.querySelector("[name=option]").value),
    answer_a: answer("a"),
    answer_b: answer("b"),
    pattern: form.querySelector("[name=pattern]:checked")?.value ?? null,
  };
}

export function fill(content) {
  for (const name of ["difference", "question"]) if (content[name]) form.elements[name].value = content[name];
  if (content.options) {
    while (rows().length > content.options.length) rows().at(-1).remove();
    while (rows().length < content.options.length) addRow();
    number();
    rows().forEach((row, index) => { row.querySelector("[name=option]").value = content.options[index]; });
  }
  for (const side of "ab") {
    const index = content[`answer_${side}`];
    if (index != null) rows()[index].querySelector(`[name=answer_${side}]`).checked = true;
  }
  if (content.pattern) choosePattern(content.pattern);
}

export function choosePattern(nameOrNumber) {
  const radios = [...form.querySelectorAll("[name=pattern]")];
  const radio = typeof nameOrNumber === "number" ? radios[nameOrNumber - 1] : radios.find((one) => one.value === nameOrNumber);
  if (!radio) return;
  radio.checked = true;
  form.dispatchEvent(new Event("input"));
}

// Digits choose patterns wherever no text is being written.
export const PATTERN_KEYS = Object.fromEntries([1, 2, 3, 4, 5, 6, 7, 8, 9].map((number) => [number, () => choosePattern(number)]));

// Say beside each field what must be mended, and lead to the first.
export function showProblems(problems) {
  for (const place of form.querySelectorAll(".field .problem")) place.textContent = problems[place.id.replace("problem-", "")] ?? "";
  for (const field of form.querySelectorAll(".field")) {
    const isWrong = field.querySelector(".problem:not(:empty)") !== null;
    for (const input of field.querySelectorAll("textarea, input:not([type=radio])")) {
      if (isWrong) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    }
  }
  const first = form.querySelector(".field .problem:not(:empty)");
  const wanted = first?.id === "problem-answers" ? "[type=radio]" : "textarea, input";
  first?.closest(".field").querySelector(wanted)?.focus();
}

export { form };
