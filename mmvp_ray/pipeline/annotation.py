"""A mining run's selection becomes pairs of an annotation workspace: pictures read again from their shards, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mmvp_ray import storage
from mmvp_ray.annotate.config import ImportConfig
from mmvp_ray.annotate.importing import NUM_TOGETHER, FoundPair, LostPair, Picture, import_pairs, is_unsafe
from mmvp_ray.annotate.workspace import create_workspace
from mmvp_ray.errors import DataError
from mmvp_ray.pipeline.places import read_again
from mmvp_ray.pipeline.run import open_run
from mmvp_ray.reading_threads import reading_threads

NUM_READING_THREADS = 8


def import_run(config: ImportConfig, *, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Queue the pairs of a run's selection; called again, it adds what is new. Pairs with a lost image are left out and counted.

    Returns:
        Lines for a terminal.

    Raises:
        ConfigError: no finished run. DataError: no image of it can be read any more.
    """
    run = open_run(config.run)
    rows = run.pairs().to_pylist()[: config.limit]
    if not rows:
        raise DataError(f"expected selected pairs in {run.url}, found none; mine with other thresholds")
    keys = sorted({row[f"image_id_{side}"] for row in rows for side in "ab"})
    places = run.places(keys)
    encoders = run.manifest["encoders"]
    title = config.title or PurePosixPath(run.url).name
    workspace = create_workspace(config.workspace)
    say(f"reading {len(keys):,} images of {len(rows):,} pairs")
    found = import_pairs(
        workspace,
        _read(rows, places),
        source=storage.normalise(run.url),
        title=title,
        near=encoders["near"]["name"],
        far=encoders["far"]["name"],
    )
    if not found.num_new + found.num_known:
        reason, num = found.broken.most_common(1)[0]
        advice = "bring the shards back as they were mined, or mine again" if found.num_lost else "mine other images"
        raise DataError(
            f"expected pairs whose images can be shown in {run.url}, found none of {len(rows):,}, {num:,} of them for this: {reason}; {advice}"
        )
    lines = [f"{found.num_new:,} new pairs from {title}, {found.num_known:,} known already"]
    if found.num_unsafe:
        lines.append(f"{found.num_unsafe:,} of the new ones have an image that is blurred until asked for")
    lines.append(
        f"next: `jobs/annotate.py users add --workspace {config.workspace} --name NAME --role admin`, then `serve`"
    )
    lines += [f"{num:,} pairs left out: {reason}" for reason, num in found.broken.most_common()]
    return lines


def _read(rows: list[dict[str, Any]], places: Mapping[bytes, dict[str, Any]]) -> Iterator[FoundPair | LostPair]:
    """Pairs with their bytes, few at a time."""
    with reading_threads(NUM_READING_THREADS) as pool:
        for first in range(0, len(rows), NUM_TOGETHER):
            together = rows[first : first + NUM_TOGETHER]
            pictures = list(pool.map(_picture, [places[row[f"image_id_{side}"]] for row in together for side in "ab"]))
            for row, a, b in zip(together, pictures[::2], pictures[1::2], strict=True):
                if isinstance(a, LostPair) or isinstance(b, LostPair):
                    yield a if isinstance(a, LostPair) else b  # type: ignore[misc]
                    continue
                yield FoundPair(rank=int(row["rank"]), cos_near=row["cos_near"], cos_far=row["cos_far"], a=a, b=b)


def _picture(place: Mapping[str, Any]) -> Picture | LostPair:
    try:
        data = read_again(place)
    except DataError:
        return LostPair(f"{place['uri']} is gone or changed since it was mined")
    return Picture(
        data=data,
        uri=place["uri"],
        member=place["member"],
        caption=place["caption"],
        label=place["label"],
        url=place["url"],
        license=place["license"],
        is_unsafe=is_unsafe(place["metadata"]),
    )
