"""What strangers wrote reaches pages as text alone, and pages keep their shape: hostile input, narrow screens, dark scheme, unsafe images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.app_under_test import App, make_app
from tests.browser.conftest import Person, has_keys
from tests.browser.scenes import pair

SCRIPT = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
QUOTES = "\"'`--></textarea></title>&lt;b&gt;&amp;{{ 7*7 }}{% raw %}${7*7}"
BIDI = "evil\u202egpj.exe\u2066\u200f"
LONG = "W" * 10_000
HOSTILE = f"{BIDI} {SCRIPT} {QUOTES} "
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[App]:
    hostile = {
        "caption": HOSTILE + LONG,
        "label": HOSTILE,
        "member": HOSTILE + LONG,
        "url": f"javascript:alert(1)//{HOSTILE}{LONG}",
        "license": HOSTILE,
    }
    pairs = [
        pair(0, **hostile),
        pair(1, **(hostile | {"caption": LONG, "member": LONG})),
        pair(2, is_unsafe=True),
        pair(3),
    ]
    found = make_app(tmp_path_factory.mktemp("app"), pairs)
    with found.workspace.transaction() as connection:
        connection.execute("UPDATE batches SET title = ?, near = ?, far = ?", (HOSTILE, HOSTILE, LONG))
    found.start()
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def _nobody_holds_a_pair(app: App) -> None:
    with app.workspace.transaction() as connection:
        connection.execute("UPDATE leases SET expires_at = 0")


def keeps_its_shape(page: Page) -> None:
    """Nothing is wider than the window, nothing was executed, nothing was turned around."""
    expect(page).not_to_have_title(re.compile("pwned"))
    wide = page.evaluate(
        "[document.documentElement.scrollWidth, innerWidth, ...[...document.querySelectorAll('main *')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, .viewport, .picture, .visually-hidden, dialog'))"
        ".map(e => e.outerHTML.slice(0, 80))]"
    )
    assert wide[0] <= wide[1] and len(wide) == 2, wide
    text = page.locator("body").inner_text()
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200f]", text)
    assert "49" not in re.findall(r"\{\{ ?(\d+)", text)


def in_view(page: Page, *names: str) -> None:
    """Each button can be reached: it scrolls into view, is wholly in the window and nothing lies over it."""
    for name in names:
        button = page.get_by_role("button", name=re.compile(name))
        button.scroll_into_view_if_needed()
        button.click(trial=True)
        box = button.bounding_box()
        assert box is not None
        assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"], name
        assert box["height"] >= 24, name


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_hostile_text_on_every_page(app, enter: Callable[..., Person], size):
    ann, vera, rey, ada = (enter(app, role, viewport=size) for role in ("annotator", "verifier", "reviewer", "admin"))
    page = ann.page
    ann.open("/tasks/annotate")
    has_keys(page)
    keeps_its_shape(page)
    expect(page.locator("figcaption script, figcaption img")).to_have_count(0)
    expect(page.locator("figcaption .label").first).to_contain_text("<script>")
    expect(page.locator("figcaption .label").first).to_contain_text("\\u202egpj.exe")
    page.get_by_label("What differs").fill((HOSTILE + LONG)[:600])
    page.get_by_label("One question").fill(HOSTILE + "?")
    for number, side in enumerate("AB", start=1):
        page.get_by_label(f"Answer {number}", exact=True).fill(f"{number} {SCRIPT}"[:120])
        page.locator(".option").nth(number - 1).get_by_role("radio", name=side).check()
    page.get_by_role("radio", name=re.compile("Color and Appearance")).check()
    expect(page.locator("#status")).to_have_text("Draft kept.")
    page.reload()
    has_keys(page)
    expect(page.get_by_label("One question")).to_have_value(HOSTILE + "?")
    keeps_its_shape(page)
    title = page.title()
    page.get_by_role("button", name="Accept").click()
    expect(page).not_to_have_title(title)

    vera.open("/tasks/verify")
    keeps_its_shape(vera.page)
    for _ in range(2):
        has_keys(vera.page)
        vera.page.get_by_role("radio", name="I cannot tell").check()
        vera.page.get_by_label("Is something wrong").fill((HOSTILE + "x" * 500)[:240])
        with vera.page.expect_navigation():
            vera.page.get_by_role("button", name="Next").click()
    rey.open("/tasks/adjudicate")
    has_keys(rey.page)
    keeps_its_shape(rey.page)
    in_view(rey.page, "Keep as written", "Correct", "Drop", "Skip")
    with rey.page.expect_navigation():
        rey.press("k")
    rey.open("/tasks/state")
    has_keys(rey.page)
    keeps_its_shape(rey.page)
    rey.page.locator("#text-a").fill(f"{HOSTILE} a"[:199])
    rey.page.locator("#text-b").fill(f"b {HOSTILE}"[:199])
    with rey.page.expect_navigation():
        rey.press("Control+Enter")
    ada.open("/tasks/review")
    has_keys(ada.page)
    keeps_its_shape(ada.page)
    in_view(ada.page, "Approve", "Give back", "Skip")
    number = re.findall(r"\d+", ada.page.title())[0]
    for path in ("/", "/overview", "/events", f"/pairs/{number}"):
        ada.open(path)
        keeps_its_shape(ada.page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(app, enter: Callable[..., Person], scheme):
    ann = enter(app, "annotator", viewport=PHONE, color_scheme=scheme, has_touch=True)
    page = ann.page
    keeps_its_shape(page)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) == (scheme == "dark")
    page.get_by_role("link", name="Annotate pairs").tap()
    has_keys(page)
    keeps_its_shape(page)
    in_view(
        page, "Zoom", "Flicker", "Difference", "Facts", "Keys", "Accept", "Reject", "Skip", "Undo", "Another answer"
    )
    page.get_by_role("button", name="Flicker").tap()
    expect(page.locator("#side-b")).to_be_hidden()
    page.get_by_role("button", name="Flicker").tap()
    expect(page.locator("#side-b")).to_be_visible()
    page.get_by_role("button", name="Reject").tap()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    box = dialog.bounding_box()
    assert box is not None
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    page.get_by_role("button", name="Back").tap()
    for _ in range(4):
        page.get_by_role("button", name="Another answer").tap()
    expect(page.get_by_role("button", name="Another answer")).to_be_hidden()
    expect(page.get_by_label(re.compile(r"^Answer \d"))).to_have_count(6)
    keeps_its_shape(page)
    page.get_by_role("button", name="Remove answer 6").tap()
    expect(page.get_by_label(re.compile(r"^Answer \d"))).to_have_count(5)
    expect(page.locator("#status")).to_have_text("Draft kept.")


def test_what_may_disturb_is_blurred_until_asked(app, enter: Callable[..., Person]):
    ann = enter(app, "annotator")
    page = ann.page
    number = app.workspace.row("SELECT pair_id FROM pairs JOIN images ON image_id = image_a WHERE is_unsafe")["pair_id"]
    ann.open(f"/tasks/annotate/{number}")
    has_keys(page)

    def blur(part: str) -> str:
        return str(page.locator(part).evaluate("e => getComputedStyle(e).filter"))

    assert "blur" in blur("#side-a img")
    assert "blur" in blur("#side-b img")
    # Nor does the map of differences show what the images do not.
    ann.press("d")
    expect(page.get_by_role("img", name="Map of differences")).to_be_visible()
    assert "blur" in blur("canvas")
    buttons = page.get_by_role("button", name="May disturb: show it")
    buttons.first.focus()
    ann.press("Enter")
    assert blur("#side-a img") == "none"
    assert "blur" in blur("#side-b img")
    assert "blur" in blur("canvas")
    buttons.first.click()
    assert blur("#side-b img") == "none"
    assert blur("canvas") == "none"
    expect(buttons).to_have_count(0)
