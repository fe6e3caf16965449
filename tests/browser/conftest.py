"""One Chromium for the browser tests; an app for each module; people with a browser context of their own that is watched for complaints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.app_under_test import App, make_app
from tests.browser.http_client import Client, member
from tests.browser.scenes import pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Response

CHROMIUM = Path("/usr/bin/chromium")
NUM_PAIRS = 8
STEP_MS = 60_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them need a server process, most a browser too."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.timeout(600))


@dataclass
class Watch:
    """What a browser complained of. Failures that a test provokes are named with `expects` before."""

    complaints: list[str] = field(default_factory=list)
    allowed: list[tuple[int, str]] = field(default_factory=list)
    bodies: list[tuple[str, str]] = field(default_factory=list)

    def expects(self, status: int, part: str) -> None:
        """A response with this status to an address with this part is no defect; status 0 is a server that is away."""
        self.allowed.append((status, part))

    def on_console(self, message: Any) -> None:
        """Whatever is said; failed requests are seen by themselves."""
        if not message.text.startswith("Failed to load resource"):
            self.complaints.append(f"console {message.type}: {message.text}")

    def on_response(self, response: Response) -> None:
        """Errors of HTTP."""
        if response.status >= 400:
            self._failed(response.status, response.url)

    def on_failed(self, request: Any) -> None:
        """Requests without an answer; those of pages that were left are none."""
        if request.failure != "net::ERR_ABORTED":
            self._failed(0, f"{request.url} {request.failure}")

    def _failed(self, status: int, url: str) -> None:
        if not any(status == allowed and part in url for allowed, part in self.allowed):
            self.complaints.append(f"{status} {url}")


@dataclass
class Person:
    """Somebody with a browser.

    Attributes:
        page: Where they look.
        watch: What the browser complained of.
        app: Whom they talk to.
        name: Who they are.
    """

    page: Page
    watch: Watch
    app: App
    name: str

    def open(self, path: str) -> None:
        """Go to a page of the app."""
        self.page.goto(f"{self.app.url}{path}")

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        for key in keys:
            self.page.keyboard.press(key)


def has_keys(page: Page) -> None:
    """Wait until the page's scripts listen: a test is faster than any hand."""
    from playwright.sync_api import expect

    expect(page.locator("body[data-keys=on]")).to_be_attached()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium; gone before tests elsewhere begin, whose event loops Playwright's would disturb."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if shutil.which(str(CHROMIUM)) is None:
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        sync_api.expect.set_options(timeout=STEP_MS)
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--disable-dev-shm-usage"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """The app with a few pairs."""
    found = make_app(tmp_path_factory.mktemp("app"), [pair(number) for number in range(NUM_PAIRS)])
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def client(app: App) -> Client:
    """An annotator of the module's app who is no browser."""
    return member(app, "annotator")


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Person]]:
    """visit(app, **options of the context) -> a person who is not logged in; at the test's end no browser has complained."""
    people: list[tuple[BrowserContext, Watch]] = []

    def come(app: App, name: str = "", **options: Any) -> Person:
        # A machine of its own for everyone, as behind a proxy: logins are limited for each.
        address = {"X-Forwarded-For": f"10.0.{app.num_users // 250}.{app.num_users % 250 + 1}"}
        context = browser.new_context(
            **({"viewport": {"width": 1280, "height": 800}, "extra_http_headers": address} | options)
        )
        context.set_default_timeout(STEP_MS)
        watch = Watch()
        people.append((context, watch))
        context.on("console", watch.on_console)
        context.on("weberror", lambda error: watch.complaints.append(f"page error: {error.error}"))
        context.on("response", watch.on_response)
        context.on("requestfailed", watch.on_failed)
        return Person(context.new_page(), watch, app, name)

    yield come
    for context, watch in people:
        context.close()
        assert watch.complaints == []


@pytest.fixture
def enter(visit: Callable[..., Person]) -> Callable[..., Person]:
    """enter(app, role, **options) -> a new user who followed their link."""
    from playwright.sync_api import expect

    def come_in(app: App, role: str, name: str | None = None, **options: Any) -> Person:
        link = app.add_user(role, name)
        person = visit(app, name or f"{role.capitalize()} {app.num_users}", **options)
        person.page.goto(link)
        expect(person.page.get_by_role("heading", name="What there is to do")).to_be_visible()
        app.secrets.extend(cookie["value"] for cookie in person.page.context.cookies())
        return person

    return come_in


@pytest.fixture
def annotator(app: App, enter: Callable[..., Person]) -> Person:
    """A new annotator of the module's app."""
    return enter(app, "annotator")
