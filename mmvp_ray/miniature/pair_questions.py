"""A benchmark of pairs out of what mining found in a miniature world: one two-option question about something in which both scenes differ."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.items import Question
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.benchmark.table import write_table
from mmvp_ray.errors import DataError
from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE
from mmvp_ray.miniature.questions import PairQuestion, questions_for_pair
from mmvp_ray.miniature.world import Scene, scene_from_record

SOURCE: Final = "blind pair of the miniature encoders"
"""What these pairs are called; they say nothing of CLIP (docs/miniature.md)."""
ALIKE, OTHER_NOUN = "scenes alike", "different nouns"
"""Why a pair is left out: it differs in nothing but nuisance, or "the object" of its questions would be two things."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MinedPair:
    """A pair of the miner's selection.

    Attributes:
        rank: Its place in the selection, from 1.
        image_a, image_b: Encoded bytes, as the shards hold them.
        a, b: What they show.
        cos_near, cos_far: The miner's cosines.
    """

    rank: int
    image_a: bytes
    image_b: bytes
    a: Scene
    b: Scene
    cos_near: float
    cos_far: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedPair:
    """A pair and what it is asked."""

    pair: MinedPair
    question: PairQuestion

    @property
    def pair_id(self) -> str:
        """Names the pair in the benchmark."""
        return f"{self.pair.rank:04d}"


def mined_pairs(rows: Iterable[Mapping[str, Any]]) -> list[MinedPair]:
    """Pairs from rows of a run's selection (schema.PAIRS), bytes and scenes read from the miniature shards.

    Raises:
        DataError: a shard without the record of a picture.
    """
    rows = list(rows)
    shards = {uri: _members(uri) for uri in sorted({row[f"uri_{side}"] for row in rows for side in "ab"})}
    found = []
    for row in rows:
        sides = {}
        for side in "ab":
            uri, member = row[f"uri_{side}"], row[f"member_{side}"]
            record = f"{member.rsplit('.', 1)[0]}.json"
            if member not in shards[uri] or record not in shards[uri]:
                raise DataError(
                    f"expected {member} and {record} in {uri}, found no such members; mine a miniature: corpus"
                )
            sides[side] = (shards[uri][member], scene_from_record(json.loads(shards[uri][record])))
        found.append(
            MinedPair(
                rank=int(row["rank"]),
                image_a=sides["a"][0],
                image_b=sides["b"][0],
                a=sides["a"][1],
                b=sides["b"][1],
                cos_near=float(row["cos_near"]),
                cos_far=float(row["cos_far"]),
            )
        )
    return found


def ask_pairs(pairs: Sequence[MinedPair]) -> tuple[list[AskedPair], Counter[str]]:
    """One question for each pair, about the differing attribute that was asked about least so far (ties in the paper's order of patterns).

    Returns:
        The pairs that can be asked about, in their order, and how many were left out for `ALIKE` or `OTHER_NOUN`.
    """
    asked: list[AskedPair] = []
    left_out: Counter[str] = Counter()
    counts = dict.fromkeys(PATTERN_BY_ATTRIBUTE, 0)
    for pair in pairs:
        questions = questions_for_pair(pair.a, pair.b)
        if pair.a.noun != pair.b.noun or not questions:
            left_out[ALIKE if pair.a.noun == pair.b.noun else OTHER_NOUN] += 1
            continue
        chosen = min(questions, key=lambda question: counts[question.attribute])
        counts[chosen.attribute] += 1
        asked.append(AskedPair(pair=pair, question=chosen))
    return asked, left_out


def write_pair_benchmark(url: str, asked: Sequence[AskedPair], *, name: str) -> Benchmark:
    """Write the pairs as a benchmark in our own layout (benchmark.table), which every evaluation here reads.

    Args:
        url: Folder without a benchmark.
        asked: At least one.
        name: The benchmark's.

    Raises:
        DataError: no pairs. ConfigError: there is a benchmark already.
    """
    return write_pairs(url, asked, _questions, name=name)


def write_pairs(
    url: str, asked: Sequence[AskedPair], items_of: Callable[[AskedPair, Path], list[Any]], *, name: str
) -> Benchmark:
    """Write whatever `items_of` makes of each pair; it puts the pictures into the folder that it is given (`picture_files`).

    Raises:
        DataError: no pairs. ConfigError: there is a benchmark already.
    """
    if not asked:
        raise DataError(f"expected pairs to ask about, found none for {url}; mine more images")
    with tempfile.TemporaryDirectory() as pictures:
        write_table(url, [item for one in asked for item in items_of(one, Path(pictures))], name=name)
    return open_benchmark(url)


def picture_files(one: AskedPair, folder: Path) -> list[tuple[str, str, Scene]]:
    """Put both pictures of a pair into a folder: (item, path, what it shows) of each."""
    found = []
    for item, data, scene in (("a", one.pair.image_a, one.pair.a), ("b", one.pair.image_b, one.pair.b)):
        path = folder / f"{one.pair_id}{item}.jpg"
        path.write_bytes(data)
        found.append((item, str(path), scene))
    return found


def _questions(one: AskedPair, folder: Path) -> list[Question]:
    pair, question = one.pair, one.question
    found = []
    for item, path, scene in picture_files(one, folder):
        found.append(
            Question(
                pair_id=one.pair_id,
                item=item,
                image_uri=path,
                text=question.question,
                options=question.options,
                answer=question.answer_a if item == "a" else question.answer_b,
                patterns=(question.pattern,),
                provenance={
                    "source": SOURCE,
                    "attribute": question.attribute,
                    "value": str(getattr(scene.attributes, question.attribute)),
                    "cos_near": f"{pair.cos_near:.6f}",
                    "cos_far": f"{pair.cos_far:.6f}",
                },
            )
        )
    return found


def _members(uri: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as tar:
        found = {}
        for member in tar:
            stream = tar.extractfile(member)
            if stream is not None:
                found[member.name] = stream.read()
    return found
