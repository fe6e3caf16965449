"""A study is made: a benchmark's questions and pictures copied into the workspace, and a link for each participant."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from mmvp_ray.annotate.config import check_url
from mmvp_ray.annotate.importing import NUM_TOGETHER
from mmvp_ray.annotate.links import links_url
from mmvp_ray.annotate.people import MAX_NAME_CHARS, TOKEN_BYTES, digest
from mmvp_ray.annotate.pictures import store_pictures
from mmvp_ray.annotate.rules import clean
from mmvp_ray.annotate.study_order import largest_gap
from mmvp_ray.annotate.workspace import Row, Workspace, create_workspace, open_workspace, record
from mmvp_ray.benchmark.benchmark import AS_FOUND, Benchmark
from mmvp_ray.benchmark.image_files import read_image
from mmvp_ray.benchmark.items import Question
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.reasons import Rejected
from mmvp_ray.report.hostile_text import shown_text

MAX_PARTICIPANTS: Final = 10_000
MAX_TITLE_CHARS, MAX_INTRO_CHARS = 120, 4_000
MAX_ASKED_CHARS, MAX_OFFERED_CHARS = 2_000, 500
"""Of a question and of an option: the page of a question has room for no more."""

_ImageRow = tuple[str, str, int, int, int, int, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyNewConfig:
    """A study with people: a benchmark's questions, each about one image alone, asked of participants who come by a link."""

    workspace: str = ""
    """Folder of the workspace; made if there is none."""
    name: str = ""
    """Name of the study in commands."""
    benchmark: str = ""
    """Folder of the benchmark of questions (path or URL): our export, or MMVP itself."""
    key: str = AS_FOUND
    """Answer key: as-found, original or corrected (the published MMVP alone), or an errata file (.yaml)."""
    participants: int = 4
    """How many links are made; the paper had 4 people."""
    title: str = "What do you see?"
    """What participants read above the study."""
    intro: str = "You will see one picture at a time and answer a question about it. Look at the picture closely; there is no time limit."
    """What participants read before they agree to take part."""
    seed: int = 0
    """Of the orders in which questions, and options if they are shuffled, are shown."""
    min_gap: int = 10
    """Questions of other pairs between two of one pair, at least; fewer where the benchmark is too small for that."""
    shuffle_options: bool = False
    """Show each participant the options in an order of their own; the paper kept the order."""
    url: str | None = None
    """Where participants reach the server; links begin with it. Unless given, where `serve` ran last on this workspace."""

    def check(self) -> None:
        """Raise ConfigError for a value that is missing or out of range."""
        for name in ("workspace", "name", "benchmark"):
            if not getattr(self, name):
                raise ConfigError(f"expected --{name}, found none")
        for name, limit in (("name", MAX_NAME_CHARS), ("title", MAX_TITLE_CHARS)):
            text = getattr(self, name)
            if not text or clean(text) != text or len(text) > limit:
                raise ConfigError(f"expected 1 to {limit} printable characters in --{name}, found {text[:200]!r}")
        if len(self.intro) > MAX_INTRO_CHARS:
            raise ConfigError(f"expected at most {MAX_INTRO_CHARS} characters in --intro, found {len(self.intro)}")
        if self.min_gap < 0:
            raise ConfigError(f"expected 0 or more in --min-gap, found {self.min_gap}")
        if not abs(self.seed) < 2**63:
            raise ConfigError(f"expected a seed of 64 bits in --seed, found {self.seed}")
        _check_num(self.participants)
        check_url(self.url)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyAddConfig:
    """More links to a study that is under way."""

    workspace: str = ""
    """Folder of the workspace."""
    name: str = ""
    """Name of the study."""
    participants: int = 1
    """How many links are made."""
    url: str | None = None
    """Where participants reach the server; links begin with it. Unless given, where `serve` ran last on this workspace."""

    def check(self) -> None:
        """Raise ConfigError for a value that is missing or out of range."""
        for name in ("workspace", "name"):
            if not getattr(self, name):
                raise ConfigError(f"expected --{name}, found none")
        _check_num(self.participants)
        check_url(self.url)


def new_study(config: StudyNewConfig) -> list[str]:
    """Make a study.

    Returns:
        Lines for the operator: what was made, then for each participant a name and a link. The link's secret stands in its fragment, which
        browsers do not send, so that it gets into no log; it is shown this once, and the workspace keeps its SHA-256 alone.

    Raises:
        ConfigError: a value out of range, no such benchmark, one without questions, or a question too long to be shown; the name is taken.
        DataError: the benchmark is broken, or an image of it cannot be shown.
    """
    config.check()
    benchmark = open_benchmark(config.benchmark, key=config.key)
    questions = benchmark.questions
    _check_shown_whole(questions)
    workspace = create_workspace(config.workspace)
    if workspace.row("SELECT 1 FROM studies WHERE name = ?", config.name) is not None:
        raise _name_taken(config.name)
    images = _stored_images(workspace, benchmark)
    url = links_url(workspace, config.url)
    with workspace.transaction() as connection:
        try:
            cursor = connection.execute(
                "INSERT INTO studies (name, title, intro, benchmark, fingerprint, seed, min_gap, shuffles_options, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    config.name,
                    config.title,
                    config.intro,
                    benchmark.name,
                    benchmark.fingerprint,
                    config.seed,
                    config.min_gap,
                    int(config.shuffle_options),
                    time.time(),
                ),
            )
        except sqlite3.IntegrityError as error:
            raise _name_taken(config.name) from error
        study_id = int(cursor.lastrowid or 0)
        connection.executemany(
            "INSERT INTO images (image_id, extension, num_bytes, width_px, height_px, is_unsafe, uri, member) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (image_id) DO UPDATE SET is_unsafe = MAX(is_unsafe, excluded.is_unsafe)",
            images.values(),
        )
        connection.executemany(
            "INSERT INTO study_questions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    study_id,
                    place,
                    question.pair_id,
                    question.item,
                    images[question.image_uri][0],
                    question.text,
                    json.dumps(question.options, ensure_ascii=False),
                    question.answer,
                    json.dumps(question.patterns, ensure_ascii=False),
                )
                for place, question in enumerate(questions)
            ],
        )
        content = {"study": config.name, "benchmark": config.benchmark, "key": benchmark.key}
        record(connection, "study_made", {**content, "fingerprint": benchmark.fingerprint})
        links = _add(connection, study_id, config.name, config.participants, url)
    gap = largest_gap([question.pair_id for question in questions])
    lines = [f"study {config.name}: {len(questions)} questions in {benchmark.num_pairs} pairs of {benchmark.name}"]
    if gap < config.min_gap:
        lines.append(
            f"note: so small a benchmark leaves room for {gap} questions between two of one pair, not {config.min_gap}"
        )
    return [*lines, *_shown(links)]


def add_participants(workspace: Workspace, study: str, num: int, url: str | None = None) -> list[str]:
    """More links to a study.

    Args:
        workspace: Where the study is.
        study: Its name.
        num: How many.
        url: Where participants reach the server; where it ran last unless given.

    Returns:
        Lines for the operator, as `new_study`.

    Raises:
        ConfigError: no such study, or a value out of range.
    """
    _check_num(num)
    check_url(url)
    found = find_study(workspace, study)
    url = links_url(workspace, url)
    with workspace.transaction() as connection:
        links = _add(connection, int(found["study_id"]), str(found["name"]), num, url)
    return _shown(links)


def add_to_study(config: StudyAddConfig) -> list[str]:
    """As `add_participants`, for a command."""
    config.check()
    return add_participants(open_workspace(config.workspace), config.name, config.participants, config.url)


def find_study(workspace: Workspace, name: str) -> Row:
    """A study's row.

    Raises:
        ConfigError: there is none of that name.
    """
    found = workspace.row("SELECT * FROM studies WHERE name = ?", name)
    if found is None:
        known = ", ".join(row["name"] for row in workspace.rows("SELECT name FROM studies ORDER BY study_id")) or "none"
        raise ConfigError(f"expected a study among {known}, found {name!r}; `study new` makes one")
    return found


def _check_shown_whole(questions: Sequence[Question]) -> None:
    for question in questions:
        texts = [("question", question.text, MAX_ASKED_CHARS)]
        texts += [
            (f"option {number}", text, MAX_OFFERED_CHARS) for number, text in enumerate(question.options, start=1)
        ]
        for what, text, limit in texts:
            # No character is shown as more than ten.
            whole = shown_text(text, 10 * len(text))
            if shown_text(text, limit) != whole:
                raise ConfigError(
                    f"expected at most {limit:,} characters, which participants can be shown, found {len(whole):,} (invisible ones are shown "
                    f"by their numbers) in the {what} of pair {question.pair_id}, item {question.item}; shorten it"
                )


def _stored_images(workspace: Workspace, benchmark: Benchmark) -> dict[str, _ImageRow]:
    """Keep the pictures; rows of the images table by their URI in the benchmark."""
    found: dict[str, _ImageRow] = {}
    unsafe = {one.image_uri for one in benchmark.questions if one.provenance.get("unsafe") == "yes"}
    uris = list(benchmark.image_sha256)
    for start in range(0, len(uris), NUM_TOGETHER):
        together = uris[start : start + NUM_TOGETHER]
        encoded = [read_image(uri) for uri in together]
        for uri, data, stored in zip(together, encoded, store_pictures(workspace, encoded), strict=True):
            if isinstance(stored, Rejected):
                raise DataError(
                    f"expected an image that can be shown at {uri}, found {stored.reason}: {stored.detail}; mend the benchmark"
                )
            image_id, extension, width_px, height_px = stored
            name = PurePosixPath(uri).name
            found[uri] = (image_id, extension, len(data), width_px, height_px, int(uri in unsafe), uri, name)
    return found


def _add(connection: sqlite3.Connection, study_id: int, study: str, num: int, url: str) -> list[tuple[str, str]]:
    """Add participants in a transaction; (name, link) of each."""
    (num_before,) = connection.execute("SELECT COUNT(*) FROM participants WHERE study_id = ?", (study_id,)).fetchone()
    links = []
    for number in range(num_before + 1, num_before + num + 1):
        name, token = f"P{number:03d}", secrets.token_urlsafe(TOKEN_BYTES)
        connection.execute(
            "INSERT INTO participants (study_id, name, token_sha256, seed) VALUES (?, ?, ?, ?)",
            (study_id, name, digest(token), number),
        )
        links.append((name, f"{url}/study#{token}"))
    record(connection, "participants_added", {"study": study, "names": [name for name, _ in links]})
    return links


def _shown(links: list[tuple[str, str]]) -> list[str]:
    return ["One link for each participant, shown this once:", *(f"{name}  {link}" for name, link in links)]


def _check_num(num: int) -> None:
    if not 1 <= num <= MAX_PARTICIPANTS:
        raise ConfigError(f"expected 1 to {MAX_PARTICIPANTS} participants, found {num} in --participants")


def _name_taken(name: str) -> ConfigError:
    return ConfigError(f"expected a new name in --name, found that there is a study {name!r} already")
