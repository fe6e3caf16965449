"""Behind reverse proxies that serve the app below a path, whether they strip it or not."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import expect

from mmvp_ray.annotate.web.app import ROUTERS
from mmvp_ray.annotate.web.settings import OWN_PATHS, WebSettings
from mmvp_ray.errors import ConfigError
from tests.browser.app_under_test import make_app
from tests.browser.conftest import Person, has_keys
from tests.browser.scenes import pair
from tests.browser.test_people_together import fill
from tests.conftest import free_port

PREFIX = "/annotate"
_OWN_HEADERS = {"connection", "transfer-encoding", "keep-alive"}


@contextmanager
def proxy(port: int, app_port: int, *, strips: bool) -> Iterator[None]:
    """A reverse proxy that knows PREFIX alone."""

    class Passing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not (self.path + "/").startswith(PREFIX + "/"):
                self.send_error(404)
                return
            path = (self.path[len(PREFIX) :] or "/") if strips else self.path
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", app_port, timeout=30)
            connection.request(self.command, path, body=body, headers=dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OWN_HEADERS | {"date", "server"}:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Passing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "passed on"])
def test_log_in_annotate_and_log_out(tmp_path, enter: Callable[..., Person], strips):
    port = free_port()
    app = make_app(tmp_path, [pair(1), pair(2)], public_url=f"http://127.0.0.1:{port}{PREFIX}")
    app.start()
    try:
        with proxy(port, app.port, strips=strips):
            ann = enter(app, "annotator")
            page = ann.page
            assert page.url == f"{app.url}/"
            assert {cookie["path"] for cookie in page.context.cookies()} == {PREFIX}
            page.get_by_role("link", name="Annotate pairs").click()
            fill(page)
            first = page.title()
            page.get_by_label("What differs").press("Control+Enter")
            expect(page).not_to_have_title(first)
            has_keys(page)
            second = page.title()
            ann.press("u")
            expect(page).to_have_title(first)
            expect(page.get_by_label("One question")).to_have_value("What colour is the door?")
            has_keys(page)
            ann.press("Control+Enter")
            expect(page).to_have_title(second)
            expect(page.locator("#side-a img")).to_have_js_property("naturalWidth", 640)
            page.get_by_role("link", name="mmvp-ray").click()
            expect(page.get_by_role("listitem").filter(has_text="annotated")).to_have_count(2)
            # The path without its last slash, as people type it.
            page.goto(app.url)
            expect(page.get_by_role("heading", name="What there is to do")).to_be_visible()
            page.get_by_role("button", name="Log out").click()
            expect(page.get_by_role("heading", name="Log in")).to_be_visible()
            assert page.url == f"{app.url}/login"
            page.goto(f"{app.url}/tasks/annotate")
            assert page.url == f"{app.url}/login"
    finally:
        app.stop()


@pytest.mark.parametrize("path", sorted(OWN_PATHS))
def test_a_prefix_that_is_a_page_of_the_app_is_refused(path):
    with pytest.raises(ConfigError, match=f"another path than /{path}"):
        WebSettings(public_url=f"https://lab.example/{path}")
    assert WebSettings(public_url=f"https://lab.example/x/{path}").prefix == f"/x/{path}"


def test_every_page_stands_below_a_known_path():
    paths = {route.path.split("/")[1] for router in ROUTERS for route in router.routes}
    assert paths - {""} <= OWN_PATHS
