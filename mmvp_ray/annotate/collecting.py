"""From a workspace to a benchmark's items: verified pairs become questions, approved statements become statements."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mmvp_ray.annotate.balance import Candidate
from mmvp_ray.annotate.pictures import image_uri
from mmvp_ray.annotate.rules import ANNOTATED, DISPUTED, QUEUED, REJECTED, VERIFIED
from mmvp_ray.annotate.workspace import Row, Workspace
from mmvp_ray.benchmark.items import Question, Statement

Kind = Literal["questions", "statements"]

NOT_VERIFIED: Final[Mapping[str, str]] = {
    QUEUED: "not annotated yet",
    ANNOTATED: "not verified yet",
    DISPUTED: "disputed",
    REJECTED: "rejected",
}
"""State of a pair that is in no benchmark -> why."""
UNSAFE, NO_STATEMENT = "unsafe", "no approved statement"

_IMAGE_COLUMNS: Final = (
    "extension",
    "width_px",
    "height_px",
    "is_unsafe",
    "uri",
    "member",
    "caption",
    "url",
    "license",
)
_SIDES = ", ".join(f"image_{side}.{name} AS {name}_{side}" for side in "ab" for name in _IMAGE_COLUMNS)
# One row for each pair as of one moment. An annotation has one finished verification and one approved statement at most; "kept" says
# that a third person decided.
_PAIRS = (
    f"SELECT pairs.*, batches.source, batches.near, batches.far, {_SIDES}, annotations.annotation_id AS annotation_id, annotations.author, "
    "question, options, answer_a, answer_b, pattern, verifier, statement_id, statements.author AS statement_author, reviewer, text_a, "
    "text_b, (SELECT user_id FROM events WHERE events.pair_id = pairs.pair_id AND kind = 'kept' "
    "AND json_extract(content, '$.annotation_id') = annotations.annotation_id) AS adjudicator "
    "FROM pairs JOIN batches USING (batch_id) "
    "JOIN images AS image_a ON image_a.image_id = pairs.image_a JOIN images AS image_b ON image_b.image_id = pairs.image_b "
    "LEFT JOIN annotations ON annotations.pair_id = pairs.pair_id AND replaced_at IS NULL "
    "LEFT JOIN verifications ON verifications.annotation_id = annotations.annotation_id AND finished_at IS NOT NULL "
    "LEFT JOIN statements ON statements.annotation_id = annotations.annotation_id AND statements.state = 'approved' "
    "ORDER BY pairs.pair_id"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectedPair:
    """A pair that can be part of a benchmark.

    Attributes:
        candidate: What balancing looks at.
        items: Its two questions, or its two statements, image a first.
    """

    candidate: Candidate
    items: tuple[Question, Question] | tuple[Statement, Statement]


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Every pair of a workspace: as items, or why not.

    Attributes:
        pairs: By pair_id.
        left_out: Reason -> pairs; with those of `pairs` they are all that the workspace has.
    """

    pairs: tuple[CollectedPair, ...]
    left_out: Mapping[str, int]


def collect_pairs(workspace: Workspace, kind: Kind, *, include_unsafe: bool = False) -> Collected:
    """Items of every verified pair, with all that is known of where they come from.

    Provenance holds the images' origin as it was imported (image_sha256 is that of the bytes then), what mining measured, and people as
    "annotator-<number>": names stay in the workspace.

    Args:
        workspace: Where.
        kind: "questions", or "statements" for pairs whose statements are approved.
        include_unsafe: Take pairs with an image that is blurred in the app; they are left out, and counted, otherwise.
    """
    left_out: Counter[str] = Counter()
    found = []
    for row in workspace.rows(_PAIRS):
        reason = _why_not(row, kind, include_unsafe)
        if reason is not None:
            left_out[reason] += 1
            continue
        make: Callable[[Workspace, Row, str], Any] = _question if kind == "questions" else _statement
        candidate = Candidate(
            pair_id=row["pair_id"],
            pattern=row["pattern"],
            rank=row["rank"],
            image_a=row["image_a"],
            image_b=row["image_b"],
        )
        found.append(CollectedPair(candidate=candidate, items=(make(workspace, row, "a"), make(workspace, row, "b"))))
    return Collected(pairs=tuple(found), left_out=dict(left_out))


def _why_not(row: Row, kind: Kind, include_unsafe: bool) -> str | None:
    if row["state"] != VERIFIED:
        return NOT_VERIFIED[row["state"]]
    if not include_unsafe and (row["is_unsafe_a"] or row["is_unsafe_b"]):
        return UNSAFE
    return NO_STATEMENT if kind == "statements" and row["statement_id"] is None else None


def _question(workspace: Workspace, row: Row, side: str) -> Question:
    return Question(
        text=row["question"],
        options=tuple(json.loads(row["options"])),
        answer=row[f"answer_{side}"],
        provenance=_provenance(row, side),
        **_place(workspace, row, side),
    )


def _statement(workspace: Workspace, row: Row, side: str) -> Statement:
    people = {
        "statement_id": str(row["statement_id"]),
        "statement_author": _pseudonym(row["statement_author"]),
        "statement_reviewer": _pseudonym(row["reviewer"]),
    }
    return Statement(
        text=row[f"text_{side}"], provenance=_provenance(row, side) | people, **_place(workspace, row, side)
    )


def _place(workspace: Workspace, row: Row, side: str) -> dict[str, Any]:
    return {
        "pair_id": f"{row['pair_id']:05d}",
        "item": side,
        "image_uri": image_uri(workspace, row[f"image_{side}"], row[f"extension_{side}"]),
        "patterns": (row["pattern"],),
    }


def _provenance(row: Row, side: str) -> dict[str, str]:
    """What is known, as texts; what is not known has no entry."""
    known = {
        "source": row["source"],
        "image_sha256": row[f"image_{side}"],
        "width_px": row[f"width_px_{side}"],
        "height_px": row[f"height_px_{side}"],
        **{name: row[f"{name}_{side}"] for name in ("uri", "member", "url", "license", "caption")},
        "unsafe": "yes" if row[f"is_unsafe_{side}"] else None,
        "near": row["near"],
        "far": row["far"],
        "cos_near": row["cos_near"],
        "cos_far": row["cos_far"],
        "rank": row["rank"],
        "annotation_id": row["annotation_id"],
        "author": _pseudonym(row["author"]),
        "verifier": _pseudonym(row["verifier"]),
        "adjudicator": None if row["adjudicator"] is None else _pseudonym(row["adjudicator"]),
    }
    return {name: str(value) for name, value in known.items() if value is not None and value != ""}


def _pseudonym(user_id: int) -> str:
    return f"annotator-{user_id}"
