"""Workspaces for tests: pairs of tiny pictures put in without the decoding process, people of each role, and short ways through the states."""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from mmvp_ray.annotate import verifying
from mmvp_ray.annotate.annotating import annotate
from mmvp_ray.annotate.people import User, add_user
from mmvp_ray.annotate.rules import Annotation
from mmvp_ray.annotate.workspace import Workspace, create_workspace, open_workspace
from mmvp_ray.benchmark.patterns import PATTERNS
from tests.conftest import jpeg

PEOPLE = {
    "Ann": "annotator",
    "Ben": "annotator",
    "Vera": "verifier",
    "Rey": "reviewer",
    "Ria": "reviewer",
    "Ada": "admin",
}
PHOTOGRAPHER = b"taken by somebody"
"""In each picture's metadata."""


def user(name: str) -> User:
    """One of PEOPLE, as logged in."""
    return User(user_id=1 + list(PEOPLE).index(name), name=name, role=PEOPLE[name], csrf="")


ANN, BEN, VERA, REY, RIA, ADA = map(user, PEOPLE)


@functools.cache
def picture(seed: int) -> bytes:
    """A JPEG with a comment that no copy without metadata has."""
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed, width_px=24, height_px=16))).save(out, "JPEG", quality=90, comment=PHOTOGRAPHER)
    return out.getvalue()


def make_workspace(folder: Path, num_pairs: int = 3) -> Workspace:
    """A workspace with people and pairs 1, 2, ...: pair k has rank k - 1 and pictures 2k and 2k + 1. It forgets in a power cut."""
    shutil.copytree(_template(num_pairs), folder, dirs_exist_ok=True)
    workspace = open_workspace(folder)
    workspace.rows("PRAGMA synchronous = OFF")
    return workspace


@functools.cache
def _template(num_pairs: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mmvp-ray-annotate-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    workspace = create_workspace(folder)
    workspace.rows("PRAGMA synchronous = OFF")
    for name, role in PEOPLE.items():
        add_user(workspace, name, role)
    with workspace.transaction() as connection:
        connection.execute("INSERT INTO batches VALUES (1, 's3://runs/one', 'One', 'near-x', 'far-y', 0)")
        for pair_id in range(1, num_pairs + 1):
            ids = []
            for seed in (2 * pair_id, 2 * pair_id + 1):
                data = picture(seed)
                ids.append(hashlib.sha256(data).hexdigest())
                (workspace.images / f"{ids[-1]}.jpg").write_bytes(data)
                caption = None if seed == 2 else f"caption {seed}"
                connection.execute(
                    "INSERT INTO images VALUES (?, 'jpg', ?, 24, 16, 0, ?, '', ?, NULL, ?, ?)",
                    (ids[-1], len(data), f"s3://data/{seed}.jpg", caption, f"https://example.org/{seed}", "cc-by-4.0"),
                )
            connection.execute(
                "INSERT INTO pairs VALUES (?, 1, ?, ?, ?, 0.97, 0.41, 'queued')", (pair_id, pair_id - 1, *ids)
            )
    workspace.close()
    return folder


def annotation(pair_id: int = 1, **changes: object) -> Annotation:
    """What somebody might write about a pair; the patterns take turns."""
    content: dict[str, object] = {
        "difference": f"SECRET-DIFFERENCE {pair_id}",
        "question": f"Is dog {pair_id} facing left, right or away?",
        "options": ("Left", "Right", "Away"),
        "answer_a": 1,
        "answer_b": 0,
        "pattern": PATTERNS[(pair_id - 1) % len(PATTERNS)],
    }
    return Annotation(**(content | changes))  # type: ignore[arg-type]


def write_annotation(workspace: Workspace, author: User, pair_id: int = 1, **changes: object) -> Annotation:
    """Annotate a pair that is queued."""
    found = annotation(pair_id, **changes)
    annotate(workspace, author, pair_id, found)
    return found


def verify(
    workspace: Workspace,
    verifier: User,
    pair_id: int,
    found: Annotation,
    *,
    answers: tuple[int, int],
    seconds: float = 2.0,
) -> None:
    """Answer both sides by the page alone: `answers` are indices into the annotation's own options for a and b, -1 for "cannot tell"."""
    page = verifying.begin(workspace, verifier, pair_id)
    while page.side is not None:
        own = answers["ab".index(page.side)]
        shown = None if own < 0 else page.options.index(found.options[own])
        page = verifying.answer(workspace, verifier, pair_id, page.side, shown, seconds)


def make_verified(workspace: Workspace, pair_ids: list[int], *, author: User = ANN, verifier: User = VERA) -> None:
    """Take pairs from the queue to where both agree."""
    for pair_id in pair_ids:
        found = write_annotation(workspace, author, pair_id)
        verify(workspace, verifier, pair_id, found, answers=(found.answer_a, found.answer_b))


def make_disputed(workspace: Workspace, pair_id: int = 1, *, author: User = ANN, verifier: User = VERA) -> Annotation:
    """Take a pair from the queue to where the verifier was wrong about b."""
    found = write_annotation(workspace, author, pair_id)
    verify(workspace, verifier, pair_id, found, answers=(found.answer_a, 2))
    return found


def state_of(workspace: Workspace, pair_id: int = 1) -> str:
    """The state of a pair."""
    found = workspace.row("SELECT state FROM pairs WHERE pair_id = ?", pair_id)
    assert found is not None
    return str(found["state"])


def kinds(workspace: Workspace, pair_id: int = 1) -> list[str]:
    """What happened to a pair, without who opened it."""
    found = workspace.rows("SELECT kind FROM events WHERE pair_id = ? ORDER BY event_id", pair_id)
    return [row["kind"] for row in found if row["kind"] != "opened"]


def let_leases_end(workspace: Workspace) -> None:
    """As after a quarter of an hour without a sign of life."""
    with workspace.transaction() as connection:
        connection.execute("UPDATE leases SET expires_at = 0")
