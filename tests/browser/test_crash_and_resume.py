"""Kill -9 of the server: what was acknowledged is there after a restart, and the page that stayed open goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.app_under_test import App
from tests.browser.conftest import Person, has_keys
from tests.browser.test_annotating_by_keyboard import state
from tests.browser.test_people_together import fill


def test_a_kill_loses_neither_annotation_nor_draft(app: App, enter: Callable[..., Person]):
    ann = enter(app, "annotator")
    page = ann.page
    ann.open("/tasks/annotate")
    fill(page)
    first = page.title()
    page.get_by_role("button", name="Accept").click()
    expect(page).not_to_have_title(first)
    has_keys(page)
    number = int(re.findall(r"\d+", page.title())[0])
    page.get_by_label("What differs").fill("A draft that outlives the server.")
    expect(page.locator("#status")).to_have_text("Draft kept.")

    app.kill()
    ann.watch.expects(0, "ERR_CONNECTION_REFUSED")
    # The page stays, and says what is the matter; nothing that was written goes away.
    page.get_by_label("What differs").fill("A draft that outlives the server, and more.")
    expect(page.locator("#status")).to_have_text("The server does not answer; nothing is lost, try again.")
    # However late the page tries its draft once more: the kept one must be there when it is looked at.
    page.route("**/draft", lambda route: route.abort("connectionrefused"))
    fill(page)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/annotation")):
        ann.press("Control+Enter")
    expect(page.locator("#status")).to_have_class(re.compile("problem"))
    expect(page.get_by_label("One question")).to_have_value("What colour is the door?")

    app.start()
    assert state(app, number - 1) == "annotated"
    assert json.loads(draft(app, number))["difference"] == "A draft that outlives the server."
    # Another window finds the draft.
    other = page.context.new_page()
    other.goto(f"{app.url}/tasks/annotate")
    expect(other.get_by_label("What differs")).to_have_value("A draft that outlives the server.")
    other.close()
    page.unroute("**/draft")
    # The window that stayed open goes on where it was.
    ann.press("Control+Enter")
    expect(page).not_to_have_title(re.compile(f"^Pair {number} "))
    assert state(app, number) == "annotated"


def test_a_kill_between_the_two_images_of_a_verification(app: App, enter: Callable[..., Person]):
    vera = enter(app, "verifier")
    vera.open("/tasks/verify")
    has_keys(vera.page)
    with vera.page.expect_navigation():
        vera.press("1", "Enter")
    expect(vera.page.get_by_text("Image 2 of 2.")).to_be_visible()
    side = vera.page.locator("[name=side]").get_attribute("value")
    app.kill()
    app.start()
    vera.open("/tasks/verify")
    expect(vera.page.get_by_text("Image 2 of 2.")).to_be_visible()
    assert vera.page.locator("[name=side]").get_attribute("value") == side


def draft(app: App, pair_id: int) -> str:
    """As the database has it."""
    found = app.workspace.row("SELECT content FROM drafts WHERE pair_id = ?", pair_id)
    assert found is not None
    return str(found["content"])
