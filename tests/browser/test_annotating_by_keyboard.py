"""A whole annotation without a mouse: every key does what the page says."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Page, expect

from tests.browser.app_under_test import App
from tests.browser.conftest import Person, has_keys

QUESTION = "What colour is the door?"


def open_next(person: Person) -> int:
    """Go to the next pair by the keyboard, and say which it is."""
    link = person.page.get_by_role("link", name="Annotate pairs")
    for _ in range(30):
        if link.evaluate("link => link === document.activeElement"):
            break
        person.press("Tab")
    person.press("Enter")
    return shown_pair(person.page)


def shown_pair(page: Page) -> int:
    """The pair that the page is about."""
    expect(page).to_have_title(re.compile(r"^Pair \d+ - annotate"))
    has_keys(page)
    return int(re.findall(r"\d+", page.title())[0])


def write(person: Person, *, question: str = QUESTION) -> None:
    """Fill the form from the keyboard."""
    person.press("a")
    person.page.keyboard.type("The door is blue in one and red in the other.")
    person.press("Tab")
    person.page.keyboard.type(question)
    person.press("Tab")
    person.page.keyboard.type("Blue")
    person.press("Alt+a")
    # Past the answer's two radio buttons to the next answer.
    while not person.page.evaluate("document.activeElement.matches('.option:nth-of-type(2) [name=option]')"):
        person.press("Tab")
    person.page.keyboard.type("Red")
    person.press("Alt+b", "Escape", "6")


def test_a_pair_from_login_to_the_next(app: App, annotator: Person):
    page = annotator.page
    first = open_next(annotator)
    write(annotator)
    expect(page.locator("[name=pattern]").nth(5)).to_be_checked()
    expect(page.locator("[name=answer_a]").nth(0)).to_be_checked()
    expect(page.locator("[name=answer_b]").nth(1)).to_be_checked()
    annotator.press("Control+Enter")
    expect(page).not_to_have_title(f"Pair {first} - annotate")
    second = shown_pair(page)
    assert second != first
    found = app.workspace.row("SELECT * FROM annotations WHERE pair_id = ? AND replaced_at IS NULL", first)
    assert found is not None
    assert (found["question"], json.loads(found["options"])) == (QUESTION, ["Blue", "Red"])
    assert (found["answer_a"], found["answer_b"]) == (0, 1)

    # R and a digit reject; U takes that back, and another U the annotation, whose words are there again.
    annotator.press("r", "2")
    expect(page).not_to_have_title(f"Pair {second} - annotate")
    shown_pair(page)
    assert state(app, second) == "rejected"
    annotator.press("u")
    expect(page).to_have_title(f"Pair {second} - annotate")
    has_keys(page)
    annotator.press("u")
    expect(page).to_have_title(f"Pair {first} - annotate")
    has_keys(page)
    expect(page.get_by_label("One question")).to_have_value(QUESTION)
    expect(page.locator("[name=answer_b]").nth(1)).to_be_checked()
    annotator.press("Control+Enter")
    expect(page).not_to_have_title(f"Pair {first} - annotate")
    assert state(app, first) == "annotated"

    # S leaves a pair to others.
    third = shown_pair(page)
    annotator.press("s")
    expect(page).not_to_have_title(f"Pair {third} - annotate")
    assert state(app, third) == "queued"


def test_another_reason_needs_a_note(app: App, annotator: Person):
    page = annotator.page
    number = open_next(annotator)
    annotator.press("r", "0")
    expect(page.get_by_role("alert").filter(has_text="Say which reason.")).to_be_visible()
    annotator.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    annotator.press("r", "0")
    page.keyboard.type("an advertisement")
    annotator.press("Enter")
    expect(page).not_to_have_title(f"Pair {number} - annotate")
    event = app.workspace.row(
        "SELECT content FROM events WHERE kind = 'rejected' AND pair_id = ? ORDER BY event_id DESC", number
    )
    assert event is not None
    assert json.loads(event["content"]) == {"reason": "other", "note": "an advertisement"}


def test_warnings_hold_back_once_and_problems_stand_beside_their_fields(app: App, annotator: Person):
    page = annotator.page
    number = open_next(annotator)
    annotator.watch.expects(422, "/annotation")
    annotator.press("a")
    page.keyboard.type("The door.")
    annotator.press("Control+Enter")
    expect(page.locator("#problem-question")).to_have_text("Ask one question.")
    expect(page.locator("#problem-options")).to_have_text("Fill every option, or remove it.")
    expect(page.locator("#problem-answers")).to_have_text("Choose the right option for each image.")
    expect(page.locator("#problem-pattern")).to_have_text("Choose one of the nine patterns.")
    expect(page.locator("#problem-difference")).to_be_empty()
    expect(page.get_by_label("One question")).to_be_focused()
    expect(page.get_by_label("One question")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("What differs").fill("")
    annotator.press("Escape")
    write(annotator, question="What colour is the door in the left image")
    annotator.press("Control+Enter")
    expect(page.locator("#warnings")).to_contain_text("no question mark")
    expect(page.locator("#warnings")).to_contain_text("another one")
    expect(page.locator("#warnings")).to_be_in_viewport(ratio=1)
    expect(page.locator("#status")).to_be_in_viewport(ratio=1)
    expect(page.locator("#problem-question")).to_be_empty()
    # What is changed after a warning is looked at anew.
    annotator.press("a", "End")
    page.keyboard.type(" So it is.")
    annotator.press("Control+Enter")
    expect(page.locator("#warnings")).to_contain_text("no question mark")
    expect(page.locator("#status")).to_have_text("Please look again.")
    assert state(app, number) == "queued"
    annotator.press("Control+Enter")
    expect(page).not_to_have_title(f"Pair {number} - annotate")
    assert state(app, number) == "annotated"


def test_every_viewing_key(annotator: Person):
    page = annotator.page
    open_next(annotator)
    images = page.locator(".viewport > img")
    stage = page.locator(".stage")

    def shows(transform: str) -> None:
        for one in images.all():
            expect(one).to_have_attribute("style", re.compile(re.escape(transform)))

    for scale in (2, 4, 1):
        annotator.press("z")
        shows(f"scale({scale})")
    annotator.press("f")
    expect(page.locator("#side-a")).to_be_visible()
    expect(page.locator("#side-b")).to_be_hidden()
    expect(stage).to_have_class(re.compile("single"))
    annotator.press("f")
    expect(page.locator("#side-a")).to_be_hidden()
    expect(page.locator("#side-b")).to_be_visible()
    annotator.press("Escape")
    expect(page.locator("#side-a")).to_be_visible()
    expect(page.locator("#side-b")).to_be_visible()
    expect(stage).not_to_have_class(re.compile("single"))

    annotator.press("d")
    expect(page.get_by_role("img", name="Map of differences")).to_be_visible()
    # The door is all that differs, or the sun, or a tree: a part of the map is bright and the rest is dark.
    share = page.locator("canvas").evaluate(
        "c => { const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 0; i < p.length; i += 4) n += p[i] > 60; return 4 * n / p.length; }"
    )
    assert 0.001 < share < 0.3
    annotator.press("d")
    expect(page.locator("#difference")).to_be_hidden()

    expect(page.locator(".cosines")).to_be_visible()
    annotator.press("m")
    expect(page.locator(".cosines")).to_be_hidden()
    expect(page.locator("figcaption .facts").first).to_be_hidden()
    page.reload()
    has_keys(page)
    expect(page.locator("#side-a")).to_be_visible()
    expect(page.locator(".cosines")).to_be_hidden()
    annotator.press("m")
    expect(page.locator(".cosines")).to_be_visible()

    annotator.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    # The page behind a dialog is out of reach.
    annotator.press("z", "s", "Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    expect(images.first).not_to_have_attribute("style", re.compile("scale"))

    while not page.evaluate("document.activeElement.matches('#side-a .viewport')"):
        annotator.press("Tab")
    annotator.press("+")
    shows("scale(1.5)")
    annotator.press("ArrowLeft")
    shows("translate(10%, 0%) scale(1.5)")
    annotator.press("ArrowUp")
    shows("translate(10%, 10%) scale(1.5)")
    annotator.press("ArrowRight", "ArrowDown")
    shows("translate(0%, 0%) scale(1.5)")
    annotator.press("-")
    shows("scale(1)")
    annotator.press("+", "0")
    shows("scale(1)")


def state(app: App, pair_id: int) -> str:
    """Of a pair, as the database has it."""
    found = app.workspace.row("SELECT state FROM pairs WHERE pair_id = ?", pair_id)
    assert found is not None
    return str(found["state"])
