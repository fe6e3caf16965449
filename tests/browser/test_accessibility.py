"""Every page in light and dark: no violation of WCAG A or AA that axe-core finds; screenshots of the main ones where asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page

from mmvp_ray.annotate.annotating import annotate, reject
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.statements import write
from mmvp_ray.annotate.verifying import answer, begin
from mmvp_ray.annotate.workspace import Workspace
from tests.browser.app_under_test import App, make_app, written
from tests.browser.conftest import Person, has_keys
from tests.browser.scenes import pair

SCREENSHOTS = os.environ.get("MMVP_RAY_SCREENSHOTS")
SIZES = {"large": (1400, 900), "medium": (1000, 800), "phone": (390, 844)}
SHOWN = {
    "home": "/",
    "annotate": "/tasks/annotate",
    "verify": "/tasks/verify",
    "adjudicate": "/tasks/adjudicate",
    "state": "/tasks/state",
    "review": "/tasks/review",
    "overview": "/overview",
}
PATTERNS = ("Color and Appearance", "Quantity and Count", "Positional and Relational Context")


def someone(app: App, role: str, name: str) -> User:
    """A user as the functions below the pages know them."""
    app.add_user(role, name)
    row = app.workspace.row("SELECT user_id, name, role FROM users WHERE name = ?", name)
    assert row is not None
    return User(**dict(row), csrf="")


def verify(workspace: Workspace, who: User, pair_id: int, *, agrees: bool = True) -> None:
    """Answer both images, rightly or not."""
    found = written(pair_id)
    page = begin(workspace, who, pair_id)
    while page.side is not None:
        own = (found.answer_a if page.side == "a" else found.answer_b) if agrees else found.answer_a
        page = answer(
            workspace,
            who,
            pair_id,
            page.side,
            page.options.index(found.options[own]),
            4.2,
            "" if agrees else "The door is hard to see.",
        )


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[App]:
    """Pairs in every state."""
    found = make_app(
        tmp_path_factory.mktemp("app"), [pair(4 * number + 1, is_unsafe=number == 15) for number in range(16)]
    )
    workspace = found.workspace
    ann, vera = someone(found, "annotator", "Ann"), someone(found, "verifier", "Vera")
    for pair_id in range(2, 13):
        annotate(workspace, ann, pair_id, written(pair_id, pattern=PATTERNS[pair_id % 3]))
    for pair_id in (2, 3, 4, 6, 7):
        verify(workspace, vera, pair_id)
    for pair_id in (8, 9, 10):
        verify(workspace, vera, pair_id, agrees=False)
    for pair_id in (3, 4):
        write(workspace, ann, pair_id, "The door is blue.", "The door is red.")
    reject(workspace, ann, 14, "too-different")
    found.start()
    yield found
    found.stop()


def violations(page: Page) -> list[str]:
    """What axe-core finds; its script goes in as the debugger's, past the policy that keeps other scripts out."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate(Axe().axe_script)
    result = page.evaluate(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'], resultTypes: ['violations']})"
    )
    return [f"{page.url}: {one['id']}: {[node['html'][:160] for node in one['nodes']]}" for one in result["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_violates_wcag(app: App, enter: Callable[..., Person], visit: Callable[..., Person], scheme: str):
    pytest.importorskip("axe_playwright_python")
    ada = enter(app, "admin", f"Ada {scheme}", color_scheme=scheme, reduced_motion="reduce")
    page = ada.page
    found = violations(page)
    for path in ("/tasks/annotate", "/tasks/verify", "/tasks/adjudicate", "/tasks/state", "/tasks/review"):
        ada.open(path)
        has_keys(page)
        found += violations(page)
        if path == "/tasks/annotate":
            ada.watch.expects(422, "/annotation")
            ada.press("Control+Enter")
            page.locator("#problem-question:not(:empty)").wait_for()
            found += violations(page)
            ada.press("Escape", "d")
            page.get_by_role("img", name="Map of differences").wait_for()
            found += violations(page)
            ada.press("d", "r")
            found += violations(page)
            ada.press("Escape", "?")
            found += violations(page)
            ada.press("Escape")
    ada.open("/tasks/annotate/16")
    has_keys(page)
    found += violations(page)
    for path in ("/overview", "/events", "/pairs/3"):
        ada.open(path)
        found += violations(page)
    ada.watch.expects(404, "/nothing")
    ada.open("/nothing")
    found += violations(page)
    stranger = visit(app, color_scheme=scheme)
    stranger.open("/login")
    found += violations(stranger.page)
    vera = enter(app, "verifier", color_scheme=scheme)
    with app.workspace.transaction() as connection:
        connection.execute("UPDATE leases SET expires_at = 9e9")
    vera.open("/tasks/verify")
    found += violations(vera.page)
    with app.workspace.transaction() as connection:
        connection.execute("UPDATE leases SET expires_at = 0")
    assert found == []


@pytest.mark.skipif(not SCREENSHOTS, reason="set MMVP_RAY_SCREENSHOTS to a folder")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(app: App, enter: Callable[..., Person], scheme: str):
    folder = Path(str(SCREENSHOTS))
    folder.mkdir(parents=True, exist_ok=True)
    ada = enter(
        app, "admin", "Ada" if scheme == "light" else "Ada Lovelace", color_scheme=scheme, reduced_motion="reduce"
    )
    for name, path in SHOWN.items():
        ada.open(path)
        if name == "annotate":
            has_keys(ada.page)
            ada.page.get_by_label("What differs").fill("The door is blue in one and red in the other.")
            ada.page.get_by_label("One question").fill("What colour is the door?")
            ada.page.get_by_label("Answer 1", exact=True).fill("Blue")
            ada.page.get_by_label("Answer 1", exact=True).press("Alt+a")
        for size, (width, height) in SIZES.items():
            ada.page.set_viewport_size({"width": width, "height": height})
            ada.page.wait_for_load_state("networkidle")
            path = folder / f"{name}_{size}_{scheme}.png"
            ada.page.screenshot(path=path, full_page=size == "phone")
            with Image.open(path) as shown:
                assert shown.width == width and len(shown.convert("RGB").getcolors(1 << 24) or []) > 20
