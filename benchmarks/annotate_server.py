"""The annotation app as a process, and browsers that talk to it: what the benchmark and the tests of load and crashes share."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.ingest import picture
from mmvp_ray.annotate.people import add_user, log_in
from mmvp_ray.annotate.pictures import store_pictures
from mmvp_ray.annotate.web.submission import cookie_name
from mmvp_ray.annotate.workspace import Workspace, create_workspace

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_PICTURES, SIDE_PX = 64, 554
"""As many pixels as 640 x 480."""
START_SECONDS = 60.0
MAX_IDLE_SECONDS = 60.0


class Server:
    """jobs/annotate.py serve as a user starts it, on a free port that it keeps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self.log = folder.with_name(f"{folder.name}.log")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            sys.executable,
            "jobs/annotate.py",
            "serve",
            "--workspace",
            str(self._folder),
            "--port",
            str(self.port),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if Browser(self.port).get("/healthz").status == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"expected a server on port {self.port}, found {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, as a service manager would."""
        self._process.terminate()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; `body` is bytes for pictures, text otherwise."""

    status: int
    body: Any
    headers: http.client.HTTPMessage

    def found(self, pattern: str) -> list[str]:
        """Every match of a pattern in a page."""
        return re.findall(pattern, self.body)


class Browser:
    """One person's: a kept connection, a cookie, the form token of the last page, and pictures that were fetched."""

    def __init__(self, port: int, cookie: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._origin = f"http://127.0.0.1:{port}"
        self.cookie = cookie
        self.csrf = ""
        self.cached: set[str] = set()
        self._used_at = 0.0

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        """One request; a connection that broke is made anew by the next one."""
        # The server closes what was idle for longer; browsers notice.
        if time.monotonic() - self._used_at > MAX_IDLE_SECONDS:
            self._connection.close()
        self._used_at = time.monotonic()
        try:
            self._connection.request(method, path, body, {"Cookie": self.cookie, "Origin": self._origin} | headers)
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        is_text = not response.headers.get("Content-Type", "").startswith("image/")
        answer = Answer(response.status, data.decode() if is_text else data, response.headers)
        if is_text and (token := answer.found(r'data-csrf="([^"]+)"')):
            self.csrf = token[0]
        return answer

    def get(self, path: str) -> Answer:
        """A page or a picture."""
        return self.ask("GET", path)

    def send(self, path: str, **fields: Any) -> Answer:
        """As the pages' scripts send: JSON."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "X-CSRF-Token": self.csrf}
        return self.ask("POST", path, json.dumps(fields), **headers)

    def submit(self, path: str, **fields: str) -> Answer:
        """As the pages' forms send; the redirect to the next page is not followed."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.ask("POST", path, urlencode({"csrf": self.csrf} | fields), **kind)

    def fetch(self, image_ids: list[str]) -> None:
        """Get pictures that are not there yet."""
        for image_id in image_ids:
            if image_id not in self.cached:
                answer = self.get(f"/images/{image_id}.webp")
                assert answer.status == 200, answer
                self.cached.add(image_id)


@dataclass(frozen=True, slots=True)
class Page:
    """What a page for annotating says: where to send, its pictures, and those of the pairs that would come next."""

    work: str
    images: list[str]
    ahead: list[str]


def open_page(browser: Browser, path: str = "/tasks/annotate") -> Page | None:
    """The next pair with its pictures; None if none is left."""
    answer = browser.get(path)
    assert answer.status == 200, answer.body[:500]
    work = answer.found(r'data-work="([^"]+)"')
    if not work:
        return None
    page = Page(work[0], answer.found(r'src="/images/(\w+)\.webp"'), answer.found(r'data-ahead="([^"]*)"')[0].split())
    browser.fetch(page.images)
    return page


def make_workspace(folder: Path, num_pairs: int, num_pictures: int = NUM_PICTURES) -> Workspace:
    """A workspace of so many queued pairs, each picture of it with a name of its own."""
    workspace = create_workspace(folder)
    kinds = [
        found[0]
        for found in store_pictures(workspace, [picture(seed, SIDE_PX) for seed in range(num_pictures)])
        if isinstance(found, tuple)
    ]
    with workspace.transaction() as connection:
        connection.execute("INSERT INTO batches VALUES (1, 'synthetic', 'Synthetic', 'near', 'far', 0)")
        for number in range(2 * num_pairs):
            image_id = hashlib.sha256(str(number).encode()).hexdigest()
            os.link(workspace.views / f"{kinds[number % len(kinds)]}.webp", workspace.views / f"{image_id}.webp")
            values = (
                image_id,
                SIDE_PX,
                SIDE_PX,
                f"{number}.jpg",
                f"A caption of some length that says what image {number} shows.",
            )
            connection.execute(
                "INSERT INTO images VALUES (?, 'jpg', 1, ?, ?, 0, 's3://x', ?, ?, NULL, NULL, NULL)", values
            )
            if number % 2:
                before = hashlib.sha256(str(number - 1).encode()).hexdigest()
                values = (number // 2 + 1, number // 2, before, image_id)
                connection.execute("INSERT INTO pairs VALUES (?, 1, ?, ?, ?, 0.97, 0.41, 'queued')", values)
    return workspace


def cookie_of(workspace: Workspace, name: str, role: str) -> str:
    """Add somebody who is logged in; the page for that lets ten a minute in."""
    return f"{cookie_name(workspace)}={log_in(workspace, add_user(workspace, name, role))}"


@contextlib.contextmanager
def served(num_pairs: int) -> Iterator[tuple[Workspace, Server]]:
    """A workspace and its server, while it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder, "work"), num_pairs)
        server = Server(workspace.folder)
        try:
            yield workspace, server
        finally:
            server.stop()
            workspace.close()
