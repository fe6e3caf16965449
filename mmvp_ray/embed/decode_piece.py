"""A piece's encoded images become ids, pixels for every geometry, and committed images and rejects tables."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.embed.wire import EncodedPiece, PixelPiece
from mmvp_ray.errors import DataError
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.geometry import Geometry, apply_geometry
from mmvp_ray.images.isolated import decode_isolated
from mmvp_ray.images.reasons import TAKEN_DOWN_DETAIL, Rejected, RejectReason
from mmvp_ray.schema import IMAGE_ID_BYTES
from mmvp_ray.sources.piece import Piece, Reject, Sample, image_id
from mmvp_ray.store import Refusals, Store, commit_images, read_table, refusals

# Shapes: N distinct images of a piece, C = 3 channels, H x W pixels.

ATTEMPT = ".attempt"
CHUNK_IMAGES = 16
"""Decoded images held at a time; of the largest that are allowed (268 MB each) that is 4.3 GB."""
_KILLED = (RejectReason.DECODER_CRASHED, RejectReason.DECODER_TIMED_OUT)


def decode_piece(
    store: Store,
    item: EncodedPiece,
    geometries: Sequence[Geometry],
    wanted: Sequence[int],
    *,
    on_chunk: Callable[[], None] = lambda: None,
) -> PixelPiece:
    """Decode a piece once for all encoders and commit its images and rejects tables unless they are there.

    A decoder that kills the process leaves an attempt file behind: whoever takes the piece next decodes it in child processes,
    which cost the run no more than the one image (it becomes a reject). Members that once killed a decoder are not tried again.

    Members that were taken down from the store, by id or by URL, are not decoded: of them the rejects table gets the place, last and sorted.

    Args:
        store: Where the tables go.
        item: The piece as read.
        geometries: All geometries of the run.
        wanted: Indices of those whose pixels some missing encoder needs.
        on_chunk: Called before every CHUNK_IMAGES images that are decoded here: the work goes on. (Child processes have limits of their own.)

    Returns:
        The distinct images with their pixels.

    Raises:
        ConfigError, ResourceError, TransientError: the store could not be written.
    """
    started = time.perf_counter()
    piece = item.piece
    attempt = storage.join(store.images(piece.shard.corpus), piece.name + ATTEMPT)
    killed = _killers(store, piece) if item.images_done else {}
    isolate = storage.exists(attempt)
    if not isolate:
        storage.write_bytes(attempt, b"")
    pixels = {index: np.empty((len(piece.samples), 3, *geometries[index].shape_px), dtype=np.uint8) for index in wanted}
    # Pillow's image is there first; those who want an array have it replaced.
    in_order = sorted(wanted, key=lambda which: geometries[which].library == "torchvision")
    results: dict[bytes, tuple[int, int, int] | Rejected] = {}
    rows: list[dict[str, Any]] = []
    places: list[tuple[str, str]] = []
    rejects, taken_down = list(piece.rejects), []  # type: list[Reject], list[Reject]
    num_bytes = 0
    each = _decode_each(piece.samples, killed, refusals(store), on_chunk, isolate=isolate)
    for sample, data, identity, found in each:
        num_bytes += len(data)
        if isinstance(found, Decoded):
            for which in in_order:
                pixels[which][len(places)] = apply_geometry(found, geometries[which])
            results[identity] = (len(places), found.width_px, found.height_px)
            places.append((sample.uri, sample.member))
        elif isinstance(found, Rejected):
            results[identity] = found
        result = results[identity]
        if isinstance(result, Rejected):
            reject = Reject(uri=sample.uri, member=sample.member, reason=str(result.reason), detail=result.detail)
            (taken_down if result.reason is RejectReason.TAKEN_DOWN else rejects).append(reject)
        else:
            rows.append(_row(identity, sample, num_bytes=len(data), width_px=result[1], height_px=result[2]))
    # The same order as after a takedown of images that were committed (store/takedown_tables.py).
    rejects += sorted(taken_down, key=lambda reject: (reject.uri, reject.member))
    num_written = 0 if item.images_done else commit_images(store, piece, rows, rejects)
    storage.remove(attempt)
    return PixelPiece(
        piece=piece,
        missing=item.missing,
        ids_N16=_id_matrix([identity for identity, result in results.items() if not isinstance(result, Rejected)]),
        places=places,
        pixels={which: array[: len(places)] for which, array in pixels.items()},
        counts={
            "num_read": len(piece.samples) + len(piece.rejects),
            "num_rejected": len(rejects),
            "num_decoded": len(rows),
            "num_bytes": num_bytes,
            "num_written_bytes": num_written,
            "reject_reasons": json.dumps(Counter(str(reject.reason) for reject in rejects)),
            "read_seconds": item.read_seconds,
            "decode_seconds": time.perf_counter() - started,
        },
    )


def _decode_each(
    samples: Sequence[Sample],
    killed: dict[tuple[str, str], Rejected],
    refused: Refusals,
    on_chunk: Callable[[], None],
    *,
    isolate: bool,
) -> Iterator[tuple[Sample, bytes, bytes, Decoded | Rejected | None]]:
    """Yield each sample with its bytes, its id, and what decoding gave; None for a copy of one that came before."""
    seen: set[bytes] = set()
    # In chunks: the images of a whole piece at full size may be larger than memory.
    for first in range(0, len(samples), CHUNK_IMAGES):
        if not isolate:
            on_chunk()
        chunk = [(sample, _load(sample, refused)) for sample in samples[first : first + CHUNK_IMAGES]]
        known = {
            loaded.identity: killed[sample.uri, sample.member]
            for sample, loaded in chunk
            if isinstance(loaded, _Loaded) and (sample.uri, sample.member) in killed
        }
        fresh = {loaded.identity: loaded.data for _, loaded in chunk if isinstance(loaded, _Loaded)}
        fresh = {identity: data for identity, data in fresh.items() if identity not in seen | known.keys()}
        decoded = iter(decode_isolated(list(fresh.values()))) if isolate else map(decode, fresh.values())
        for sample, loaded in chunk:
            if isinstance(loaded, Rejected):
                # It has no bytes to take an id from, or none that may be used; its place stands for it.
                yield sample, b"", f"{sample.uri}\n{sample.member}".encode(), loaded
                continue
            identity = loaded.identity
            found = None if identity in seen else known.get(identity) or next(decoded)
            seen.add(identity)
            yield sample, loaded.data, identity, found


class _Loaded(NamedTuple):
    """Encoded bytes and their id, taken once: a hash over a photo takes a thirtieth of what its pixels take."""

    data: bytes
    identity: bytes


def _load(sample: Sample, refused: Refusals) -> _Loaded | Rejected:
    taken_down = Rejected(reason=RejectReason.TAKEN_DOWN, detail=TAKEN_DOWN_DETAIL)
    if refused and refused.refuses_url(sample.url):
        return taken_down
    try:
        data = sample.load()
    except DataError as error:
        return Rejected(reason=RejectReason.UNREADABLE_MEMBER, detail=str(error))
    loaded = _Loaded(data, image_id(data))
    return taken_down if refused and refused.refuses(loaded.identity) else loaded


def _killers(store: Store, piece: Piece) -> dict[tuple[str, str], Rejected]:
    table = read_table(storage.join(store.rejects(piece.shard.corpus), f"{piece.name}.parquet"))
    return {
        (row["uri"], row["member"]): Rejected(reason=RejectReason(row["reason"]), detail=row["detail"])
        for row in table.to_pylist()
        if row["reason"] in _KILLED
    }


def _row(identity: bytes, sample: Sample, *, num_bytes: int, width_px: int, height_px: int) -> dict[str, Any]:
    return {
        "image_id": identity,
        "uri": sample.uri,
        "member": sample.member,
        "offset": sample.offset,
        "num_bytes": num_bytes,
        "width_px": width_px,
        "height_px": height_px,
        "caption": sample.caption,
        "label": sample.label,
        "url": sample.url,
        "license": sample.license,
        "metadata": sample.metadata,
    }


def _id_matrix(identities: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(identities), dtype=np.uint8).reshape(-1, IMAGE_ID_BYTES)
