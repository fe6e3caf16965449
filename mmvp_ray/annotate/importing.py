"""Pairs come into a workspace: a mining run's selection with its pictures, each pair once, however often it is imported."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from mmvp_ray.annotate.pictures import store_pictures
from mmvp_ray.annotate.rules import QUEUED
from mmvp_ray.annotate.workspace import Workspace, record
from mmvp_ray.images.reasons import Rejected

NUM_TOGETHER: Final = 32
"""Pairs whose bytes are in memory at once."""
UNSAFE_ABOVE: Final = 0.5
"""punsafe of LAION's metadata from which an image is blurred until asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image of a pair: its bytes and what is known of it."""

    data: bytes
    uri: str
    member: str
    caption: str | None = None
    label: str | None = None
    url: str | None = None
    license: str | None = None
    is_unsafe: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPair:
    """A pair to be looked at."""

    rank: int
    cos_near: float
    cos_far: float
    a: Picture
    b: Picture


@dataclass(frozen=True, slots=True)
class LostPair:
    """A pair that is left out because an image of it cannot be read any more.

    Attributes:
        reason: For people; lost pairs are counted by it.
    """

    reason: str


@dataclass(slots=True)
class Imported:
    """What an import did.

    Attributes:
        num_new: Pairs that were not there.
        num_known: Pairs that an earlier import, of this run or another, brought already.
        broken: Why pairs were left out -> how many.
        num_lost: Those of them whose images could not be had; of the others they cannot be shown.
        num_unsafe: New pairs with an image that is blurred until asked for.
    """

    num_new: int = 0
    num_known: int = 0
    num_unsafe: int = 0
    num_lost: int = 0
    broken: Counter[str] = field(default_factory=Counter)


def import_pairs(
    workspace: Workspace, pairs: Iterable[FoundPair | LostPair], *, source: str, title: str, near: str, far: str
) -> Imported:
    """Queue pairs. Killed and called again, it goes on; pairs that are there stay as they are, whatever became of them.

    Args:
        workspace: Where to.
        pairs: Best first; drawn from lazily. Lost ones are counted.
        source: What names the batch for good, such as the run's URL.
        title: For people.
        near: Name of the encoder that does not see the difference, for people and provenance.
        far: Name of the one that does.
    """
    found = Imported()
    with workspace.transaction() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO batches (source, title, near, far, imported_at) VALUES (?, ?, ?, ?, ?)",
            (source, title, near, far, time.time()),
        )
        batch_id = int(connection.execute("SELECT batch_id FROM batches WHERE source = ?", (source,)).fetchone()[0])
    for group in _groups(pairs):
        together = [pair for pair in group if isinstance(pair, FoundPair)]
        lost = [pair.reason for pair in group if isinstance(pair, LostPair)]
        found.broken.update(lost)
        found.num_lost += len(lost)
        pictures = [picture for pair in together for picture in (pair.a, pair.b)]
        stored = iter(store_pictures(workspace, [picture.data for picture in pictures]))
        with workspace.transaction() as connection:
            for pair in together:
                sides = [next(stored), next(stored)]
                reasons = [side.reason for side in sides if isinstance(side, Rejected)]
                if reasons:
                    found.broken[str(reasons[0])] += 1
                    continue
                ids = []
                for side, picture in zip(sides, (pair.a, pair.b), strict=True):
                    assert not isinstance(side, Rejected)
                    image_id, extension, width_px, height_px = side
                    ids.append(image_id)
                    connection.execute(
                        "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (image_id) DO UPDATE SET "
                        # What one source calls unsafe stays so; what it does not know another may.
                        "is_unsafe = MAX(is_unsafe, excluded.is_unsafe), caption = COALESCE(caption, excluded.caption), "
                        "label = COALESCE(label, excluded.label), url = COALESCE(url, excluded.url), "
                        "license = COALESCE(license, excluded.license)",
                        (
                            image_id,
                            extension,
                            len(picture.data),
                            width_px,
                            height_px,
                            int(picture.is_unsafe),
                            picture.uri,
                            picture.member,
                            picture.caption,
                            picture.label,
                            picture.url,
                            picture.license,
                        ),
                    )
                known = connection.execute(
                    "SELECT 1 FROM pairs WHERE (image_a = ?1 AND image_b = ?2) OR (image_a = ?2 AND image_b = ?1)", ids
                ).fetchone()
                if known is not None:
                    found.num_known += 1
                    continue
                connection.execute(
                    "INSERT INTO pairs (batch_id, rank, image_a, image_b, cos_near, cos_far, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (batch_id, pair.rank, *ids, pair.cos_near, pair.cos_far, QUEUED),
                )
                found.num_new += 1
                found.num_unsafe += int(pair.a.is_unsafe or pair.b.is_unsafe)
    with workspace.transaction() as connection:
        counts = {"new": found.num_new, "known": found.num_known, "broken": dict(found.broken)}
        record(connection, "imported", {"source": source, **counts})
    return found


def is_unsafe(metadata: str | None) -> bool:
    """Whether a record's metadata (JSON text; LAION's spellings) calls its image unsafe: punsafe, or an NSFW tag other than UNLIKELY."""
    try:
        fields = json.loads(metadata or "{}")
    except ValueError:
        return False
    if not isinstance(fields, Mapping):
        return False
    said: dict[str, Any] = {str(name).casefold(): value for name, value in fields.items()}
    punsafe, tag = said.get("punsafe"), str(said.get("nsfw") or "UNLIKELY").strip().upper()
    if isinstance(punsafe, (int, float)) and not isinstance(punsafe, bool) and punsafe > UNSAFE_ABOVE:
        return True
    return tag in {"NSFW", "UNSURE", "LIKELY", "TRUE", "YES", "1"}


def _groups(pairs: Iterable[FoundPair | LostPair]) -> Iterator[list[FoundPair | LostPair]]:
    rest = iter(pairs)
    while together := list(islice(rest, NUM_TOGETHER)):
        yield together
