"""The annotation app under load: `python -m benchmarks.annotate [--pairs N] [--annotators N] [--seconds S] [--json FILE]`.

A workspace of synthetic pairs of photographs' size (64 different pictures under many names), `jobs/annotate.py serve` in a process of its own,
and people whose browsers are kept connections of this one. Three parts. One annotator: from the moment that an annotation is sent to having the next
page and both its pictures, with the pictures that pages fetch ahead and without. Many annotators and some verifiers at once, who never think
(which no people do: the most that the server takes) and then with 1 to 3 s of thought. Whatever they were told is looked up in the database
afterwards: nothing lost, nothing doubled, every pair's history a legal one. Latencies are those of a client in Python on the same cores,
whose threads wait for each other too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.contest import machine
from benchmarks.ingest import picture
from mmvp_ray.annotate.people import add_user, log_in
from mmvp_ray.annotate.pictures import store_pictures
from mmvp_ray.annotate.web.submission import cookie_name
from mmvp_ray.annotate.workspace import Workspace, create_workspace
from mmvp_ray.benchmark.patterns import PATTERNS

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_PICTURES, SIDE_PX = 64, 554
"""As many pixels as 640 x 480."""
THOUGHT_SECONDS = (1.0, 3.0)
VERIFIERS_PER_ANNOTATOR = 0.2
TAG = re.compile(r"Is the dog of (\S+) facing left or right\?")
START_SECONDS = 60.0
MAX_IDLE_SECONDS = 4.0
DECIDED = {"annotated": "annotated", "rejected": "rejected", "undone": "queued", "verified": "verified", "disputed": "disputed"} | {
    "kept": "verified", "corrected": "annotated", "dropped": "rejected"
}  # fmt: skip
"""Kind of event -> the state that it leads to."""
FROM = {"annotated": ("queued",), "rejected": ("queued",), "undone": ("annotated", "rejected"), "verified": ("annotated",)} | {
    "disputed": ("annotated",), "kept": ("disputed",), "corrected": ("disputed",), "dropped": ("disputed",)
}  # fmt: skip

NEVER = (
    "SELECT 1 FROM verifications WHERE (choice_a IS NOT NULL AND choice_b IS NOT NULL) <> (finished_at IS NOT NULL AND agrees IS NOT NULL)",
    "SELECT 1 WHERE (SELECT COUNT(*) FROM annotations) <> (SELECT COUNT(*) FROM events WHERE kind IN ('annotated', 'corrected'))",
    "SELECT 1 WHERE (SELECT COUNT(choice_a) + COUNT(choice_b) FROM verifications) <> (SELECT COUNT(*) FROM events WHERE kind = 'answered')",
)
"""Queries that give no row unless something is half there."""


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
        # The server closes what was idle for 5 s; browsers notice.
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


def content_of(tag: str) -> dict[str, Any]:
    """An annotation that can be told from all others."""
    question = f"Is the dog of {tag} facing left or right?"
    answers = {"options": ["Left", "Right"], "answer_a": 0, "answer_b": 1}
    return {"difference": "where it looks", "question": question, "pattern": PATTERNS[0], **answers}


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


def find_problems(workspace: Workspace, *, leases_end: bool = False) -> list[str]:
    """Go through the audit trail: each pair's history must be a legal one, by who held it, and lead to what the tables say.

    Args:
        workspace: Where.
        leases_end: Whether somebody may take over what another one held, because leases ran out.
    """
    problems: list[str] = []
    states: dict[int, str] = {row["pair_id"]: "queued" for row in workspace.rows("SELECT pair_id FROM pairs")}
    holders: dict[int, int] = {}
    deciders: dict[int, int] = {}
    for row in workspace.rows("SELECT * FROM events WHERE pair_id IS NOT NULL ORDER BY event_id"):
        pair_id, user_id, kind = row["pair_id"], row["user_id"], row["kind"]
        if kind == "opened":
            if holders.get(pair_id, user_id) != user_id and not leases_end:
                problems.append(f"pair {pair_id} was opened by {user_id} in the hands of {holders[pair_id]}")
            holders[pair_id] = user_id
        elif holders.get(pair_id) != user_id:
            problems.append(f"{user_id} did {kind} with pair {pair_id} in the hands of {holders.get(pair_id)}")
        if kind in FROM:
            if states[pair_id] not in FROM[kind]:
                problems.append(f"pair {pair_id} went from {states[pair_id]} by {kind}")
            if kind == "undone" and deciders[pair_id] != user_id:
                problems.append(f"{user_id} took back what {deciders[pair_id]} decided about pair {pair_id}")
            if kind in ("verified", "disputed") and deciders[pair_id] == user_id:
                problems.append(f"{user_id} verified own work on pair {pair_id}")
            states[pair_id] = DECIDED[kind]
            deciders[pair_id] = user_id
        if kind == "skipped" or kind.startswith("statement_") or (kind in FROM and kind != "undone"):
            holders.pop(pair_id, None)
    now = {row["pair_id"]: row["state"] for row in workspace.rows("SELECT pair_id, state FROM pairs")}
    problems += [
        f"pair {pair_id} is {now[pair_id]}, and its history says {state}"
        for pair_id, state in states.items()
        if now[pair_id] != state
    ]
    leases = {row["pair_id"]: row["user_id"] for row in workspace.rows("SELECT * FROM leases")}
    if leases != holders:
        problems.append(f"leases {sorted(leases.items() ^ holders.items())} are not those of the history")
    live = Counter(
        row["pair_id"] for row in workspace.rows("SELECT pair_id FROM annotations WHERE replaced_at IS NULL")
    )
    wanted = {pair_id for pair_id, state in now.items() if state in ("annotated", "verified", "disputed")}
    problems += [
        f"pair {pair_id} is {now[pair_id]} with {live[pair_id]} annotations"
        for pair_id in now
        if live[pair_id] != (pair_id in wanted)
    ]
    problems += [f"found rows of {sql}" for sql in NEVER if workspace.rows(sql)]
    for pragma, good in (("integrity_check", [("ok",)]), ("foreign_key_check", [])):
        found = [tuple(row) for row in workspace.rows(f"PRAGMA {pragma}")]
        problems += [f"{pragma}: {found}"] if found != good else []
    return problems


@dataclass
class Told:
    """What somebody tried, what the server acknowledged of it, and how it went.

    Attributes:
        tried, done: (kind of event, tag), a tag being unique but for "undone", whose tag is the name. A server that dies leaves things tried.
        draft: (Page.work, tag) of a draft that was acknowledged and that nothing was sent after.
    """

    name: str
    tried: list[tuple[str, str]] = field(default_factory=list)
    done: list[tuple[str, str]] = field(default_factory=list)
    draft: tuple[str, str] | None = None
    next_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def expect(self, answer: Answer, *allowed: int) -> bool:
        """Count an answer; whether it is one of success."""
        self.statuses[answer.status] += 1
        if answer.status not in (200, 303, *allowed):
            self.errors.append(f"{answer.status}: {answer.body[:200]}")
        return answer.status in (200, 303)

    def decide(self, kind: str, tag: str, send: Callable[[], Answer], *allowed: int) -> Answer | None:
        """Try something that must not be lost; the answer if it was acknowledged."""
        self.draft = None
        self.tried.append((kind, tag))
        answer = send()
        if not self.expect(answer, *allowed):
            return None
        self.done.append((kind, tag))
        return answer


Thought = tuple[float, float]
"""Seconds that somebody thinks about each pair or picture, at least and at most."""


def annotate_on(
    browser: Browser, told: Told, rng: random.Random, thought: Thought, goes_on: Callable[[], bool]
) -> None:
    """Work as an annotator: two drafts for each pair, then accept, reject, skip, or take the last one back."""
    page = open_page(browser)
    while page is not None and goes_on():
        browser.fetch(page.ahead)
        work, tag = page.work, f"{told.name}-{len(told.tried)}"
        for _ in range(2):
            time.sleep(rng.uniform(*thought) / 2)
            if told.expect(browser.send(f"{work}/draft", **content_of(tag))):
                told.draft = (work, tag)
        started, act = time.perf_counter(), rng.random()
        if act < 0.05:
            # 409: there is nothing to take back, or somebody verifies it already.
            done = told.decide("undone", told.name, lambda: browser.send("/tasks/annotate/undo"), 409)
            page = open_page(browser, json.loads(done.body)["next"] if done else work)
            continue
        if act < 0.15:
            done = told.decide("skipped", told.name, lambda work=work: browser.send(f"{work}/skip"))
        elif act < 0.3:
            done = told.decide(
                "rejected", tag, lambda work=work, tag=tag: browser.send(f"{work}/rejection", reason="same", note=tag)
            )
        else:
            done = told.decide(
                "annotated", tag, lambda work=work, tag=tag: browser.send(f"{work}/annotation", **content_of(tag))
            )
        page = open_page(browser)
        if done and page is not None:
            told.next_ms.append(1e3 * (time.perf_counter() - started))


def verify_on(browser: Browser, told: Told, rng: random.Random, thought: Thought, goes_on: Callable[[], bool]) -> None:
    """Work as a verifier, who errs now and then and leaves a comment each time."""
    while goes_on():
        answer = browser.get("/tasks/verify")
        forms = answer.found(r'action="([^"]+/verify/\d+)"')
        if not told.expect(answer) or not forms:
            time.sleep(0.2)
            continue
        browser.fetch(answer.found(r'src="/images/(\w+)\.webp"'))
        time.sleep(rng.uniform(*thought))
        side = answer.found(r'name="side" value="(.)"')[0]
        options = answer.found(r"<kbd>\d</kbd> <span>([^<]*)</span>")
        wanted = "Left" if (side == "a") != (rng.random() < 0.05) else "Right"
        fields = {
            "side": side,
            "choice": str(options.index(wanted)),
            "seconds": "2.5",
            "comment": f"{told.name}-{len(told.tried)}",
        }
        told.decide(
            "answered", fields["comment"], lambda forms=forms, fields=fields: browser.submit(forms[0], **fields)
        )


def work_together(
    server: Server, people: list[tuple[str, str]], thought: Thought, seconds: float
) -> tuple[dict[str, Any], list[Told]]:
    """Everybody at once for a while: (name, cookie), verifiers being those whose name says so."""
    everybody = [Told(name) for name, _ in people]
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        told, browser, rng = everybody[number], Browser(server.port, people[number][1]), random.Random(number)
        act = verify_on if told.name.startswith("verifier") else annotate_on
        try:
            act(browser, told, rng, thought, lambda: time.monotonic() < until)
        except Exception as error:
            told.errors.append(f"{told.name}: {type(error).__name__} {error}"[:300])

    started = time.monotonic()
    together([lambda number=number: work(number) for number in range(len(people))])
    passed = time.monotonic() - started
    kinds = Counter(kind for told in everybody for kind, _ in told.done)
    found = {
        "seconds": round(passed, 1),
        "decisions_per_second": round((kinds["annotated"] + kinds["rejected"]) / passed, 2),
        "answers_per_second": round(kinds["answered"] / passed, 2),
        "next_pair": spread([ms for told in everybody for ms in told.next_ms]),
        "statuses": dict(sum((told.statuses for told in everybody), Counter())),
        "errors": [error for told in everybody for error in told.errors],
    }
    return found, everybody


def together(works: list[Callable[[], None]]) -> None:
    """Call each in a thread of its own, and wait."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def spread(times_ms: list[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    ordered = sorted(times_ms)
    if not ordered:
        return {"num": 0}
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"num": len(ordered), "median_ms": round(statistics.median(ordered), 1), "p95_ms": round(p95, 1)}


def one_annotator(server: Server, cookie: str, num_times: int, *, ahead: bool) -> dict[str, float]:
    """Next pair shown: the pictures of the page fetched ahead, as browsers do, or none of them."""
    browser, times_ms = Browser(server.port, cookie), []
    page = open_page(browser)
    for number in range(num_times):
        assert page is not None, "more pairs are needed"
        if ahead:
            browser.fetch(page.ahead)
        started = time.perf_counter()
        answer = browser.send(f"{page.work}/annotation", **content_of(f"alone-{ahead}-{number}"))
        assert answer.status == 200, answer
        page = open_page(browser)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return spread(times_ms)


def lost_or_doubled(workspace: Workspace, everybody: list[Told]) -> list[str]:
    """What the server acknowledged must be an event each, and no event may be more than what was tried."""
    kept: Counter[tuple[str, str]] = Counter()
    names = {told.name for told in everybody}
    for row in workspace.rows(
        "SELECT kind, content, name FROM events JOIN users USING (user_id) WHERE pair_id IS NOT NULL"
    ):
        content, kind = json.loads(row["content"]), row["kind"]
        if row["name"] in names and kind in ("annotated", "rejected", "answered", "undone", "skipped"):
            tag = {"annotated": "question", "rejected": "note", "answered": "comment"}.get(kind)
            kept[kind, row["name"] if tag is None else TAG.sub(r"\1", content[tag])] += 1
    lost = Counter(one for told in everybody for one in told.done) - kept
    more = kept - Counter(one for told in everybody for one in told.tried)
    return [f"lost: {dict(lost)}"] * bool(lost) + [f"doubled, or never asked for: {dict(more)}"] * bool(more)


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24_000, help="enough that they do not run out")
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each of the two parts with many annotators")
    parser.add_argument("--times", type=int, default=200, help="how often the next pair is timed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "pairs": args.pairs, "annotators": args.annotators}
    print(results["machine"], flush=True)
    with served(args.pairs) as (workspace, server):
        names = [f"annotator-{number}" for number in range(args.annotators)]
        names += [f"verifier-{number}" for number in range(round(VERIFIERS_PER_ANNOTATOR * args.annotators))]
        for ahead in (True, False):
            cookie = cookie_of(workspace, f"alone-{ahead}", "annotator")
            found = results["ahead" if ahead else "not_ahead"] = one_annotator(server, cookie, args.times, ahead=ahead)
            print(f"next pair shown, pictures {'' if ahead else 'not '}fetched ahead: {found}", flush=True)
        everybody: list[Told] = []
        for title, thought in (("no_thought", (0.0, 0.0)), ("thought", THOUGHT_SECONDS)):
            here = [(f"{name}-{title}", cookie_of(workspace, f"{name}-{title}", name.split("-")[0])) for name in names]
            results[title], told = work_together(server, here, thought, args.seconds)
            everybody += told
            print(f"{len(names)} people, {title}: {results[title]}, load {os.getloadavg()[0]:.1f}", flush=True)
        results["acknowledged"] = sum(len(told.done) for told in everybody)
        results["problems"] = find_problems(workspace) + lost_or_doubled(workspace, everybody)
        states = workspace.rows("SELECT state, COUNT(*) AS num FROM pairs GROUP BY state")
        results["states"] = {row["state"]: row["num"] for row in states}
        if "queued" not in results["states"]:
            results["problems"].append("the pairs ran out, and people waited: give more --pairs")
        print(
            f"states {results['states']}; acknowledged {results['acknowledged']:,}; problems: {results['problems'][:5] or 'none'}"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
