"""The server is killed again and again while people work: whatever it acknowledged is in the database, and nothing is half there."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.annotate_people import Thought, Told, annotate_on, content_of, find_problems, lost_or_doubled, verify_on
from benchmarks.annotate_server import Browser, Server, cookie_of, make_workspace, open_page

pytestmark = [pytest.mark.integration, pytest.mark.timeout(500)]
NUM_KILLS = 3
PATIENCE_SECONDS = 60.0
ROLES = {
    "annotator-0": "annotator",
    "annotator-1": "annotator",
    "annotator-2": "reviewer",
    "writer-0": "annotator",
    "verifier-0": "verifier",
    "verifier-1": "verifier",
}
KINDS = {"annotated", "rejected", "answered"}


class Worker(threading.Thread):
    """Somebody who goes on where a server that died left them, as a person does who reloads the page."""

    def __init__(self, port: int, name: str, cookie: str) -> None:
        super().__init__(name=name)
        self.told = Told(name)
        self.num_broken = 0
        self.num_drafts_kept = 0
        self.is_over = False
        self.error: BaseException | None = None
        self._browser = Browser(port, cookie)

    def run(self) -> None:
        rng = random.Random(self.name)
        act = {"verifier": verify_on, "writer": write_on}.get(self.name.split("-")[0], annotate_on)
        try:
            while not self.is_over:
                try:
                    self._find_draft()
                    act(self._browser, self.told, rng, (0.0, 0.01), lambda: not self.is_over)
                except (OSError, http.client.HTTPException):
                    self.num_broken += 1
                    time.sleep(0.05)
        except BaseException as error:
            self.error = error

    def _find_draft(self) -> None:
        """A page that is opened anew has what was written: what was acknowledged last, or what was on its way."""
        if self.told.draft is not None:
            work, tag = self.told.draft
            answer = self._browser.get(work)
            assert answer.status == 200, answer.body
            (found,) = answer.found(r"Is the dog of (\S+) facing")
            assert number_of(found) >= number_of(tag), (found, tag)
            self.num_drafts_kept += 1


def number_of(tag: str) -> tuple[str, int]:
    """Who wrote something, and as which of theirs."""
    name, _, number = tag.rpartition("-")
    return name, int(number)


def write_on(browser: Browser, told: Told, rng: random.Random, thought: Thought, goes_on: Callable[[], bool]) -> None:
    """Work as somebody who words one question all the time."""
    page = open_page(browser)
    assert page is not None
    number = 0 if told.draft is None else 1 + number_of(told.draft[1])[1]
    while goes_on():
        tag = f"{told.name}-{number}"
        if told.expect(browser.send(f"{page.work}/draft", **content_of(tag))):
            told.draft = (page.work, tag)
        number += 1


def wait_until(is_so: Callable[[], bool]) -> None:
    """Until it is so, or so long that it never will be: what is asserted at the end says which."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so() and time.monotonic() < until:
        time.sleep(0.02)


def test_what_was_acknowledged_outlives_kills(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "work", 1500, num_pictures=2)
    cookies = {name: cookie_of(workspace, name, role) for name, role in ROLES.items()}
    server = Server(workspace.folder)
    workers = [Worker(server.port, name, cookie) for name, cookie in cookies.items()]
    writer = next(worker for worker in workers if worker.name == "writer-0")
    rng = random.Random(time.time_ns())
    acknowledged, drafts = [0], [writer.told.draft]

    def num_done() -> int:
        return sum(len(worker.told.done) for worker in workers)

    def kinds() -> set[str]:
        return {kind for worker in workers for kind, _ in worker.told.done}

    def went_on() -> bool:
        """Whether this life of the server acknowledged work, and the writer found the last draft and has a new one."""
        num_kills = len(acknowledged) - 1
        return (
            num_done() > acknowledged[-1]
            and writer.num_drafts_kept >= num_kills
            and writer.told.draft not in (None, drafts[-1])
        )

    def all_felt_the_kills() -> bool:
        return min(worker.num_broken for worker in workers) >= NUM_KILLS

    try:
        for worker in workers:
            worker.start()
        for _ in range(NUM_KILLS):
            wait_until(went_on)
            time.sleep(rng.uniform(0, 0.5))
            server.kill()
            acknowledged.append(num_done())
            drafts.append(writer.told.draft)
            server.start()
        wait_until(lambda: went_on() and kinds() >= KINDS and all_felt_the_kills())
    finally:
        for worker in workers:
            worker.is_over = True
        for worker in workers:
            worker.join()
        server.kill()
    everybody = [worker.told for worker in workers]
    assert [worker.error for worker in workers] == [None] * len(workers)
    assert [error for told in everybody for error in told.errors] == []
    assert find_problems(workspace) == []
    assert lost_or_doubled(workspace, everybody) == []
    acknowledged.append(num_done())
    # Work went on after each kill.
    assert acknowledged == sorted(set(acknowledged))
    assert all_felt_the_kills()
    assert writer.num_drafts_kept >= NUM_KILLS
    assert kinds() >= KINDS
    workspace.close()


def test_what_is_half_there_would_be_found(tmp_path: Path) -> None:
    """The test above can fail."""
    workspace = make_workspace(tmp_path / "work", 3, num_pictures=2)
    with workspace.transaction() as connection:
        connection.execute("UPDATE pairs SET state = 'annotated' WHERE pair_id = 2")
        connection.execute("UPDATE pairs SET state = 'rejected' WHERE pair_id = 3")
    assert len(find_problems(workspace)) == 3
    told = Told("nobody", done=[("rejected", "nobody-1")])
    assert lost_or_doubled(workspace, [told])
    workspace.close()
