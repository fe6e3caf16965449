"""Parts of a log of answers: files of JSON lines that say themselves whether they are whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.responder import Ask, Reply
from mmvp_ray.reading_threads import reading_threads

MANIFEST = "manifest.json"
NUM_READING_THREADS = 16

_PART = re.compile(r"part-(\d{6})\.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of a log: what was asked, of which images (SHA-256 of their bytes, in order), and what came back."""

    ask: Ask
    image_ids: tuple[str, ...]
    reply: Reply

    @property
    def digest(self) -> str:
        """Names the content of the prompt."""
        return content_digest(self.ask, self.image_ids)


def content_digest(ask: Ask, image_ids: Sequence[str]) -> str:
    """64 hex digits of SHA-256 over what a model is shown: prompt, images' bytes (not where they lie), system text, limit of the answer."""
    content = {
        "prompt": ask.prompt,
        "images": list(image_ids),
        "system": ask.system,
        "max_tokens": ask.max_tokens,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_log(folder: str) -> Iterator[Record]:
    """All records of a log, failures too, in the order in which they were written.

    Raises:
        DataError: a part is torn, or a file is no part.
    """
    for _, records in read_parts(storage.normalise(folder)):
        yield from records


def read_parts(folder: str) -> Iterator[tuple[int, list[Record]]]:
    """The parts of a log with their numbers, in order.

    Raises:
        DataError: a part is torn, or a file is no part.
    """
    numbers: list[int] = []
    for name in storage.list_names(folder):
        match = _PART.fullmatch(name)
        if match:
            numbers.append(int(match.group(1)))
        elif name != MANIFEST:
            raise DataError(f"expected only {MANIFEST} and part-NNNNNN.jsonl in {folder}, found {name!r}; move it away")
    with reading_threads(NUM_READING_THREADS) as pool:
        for start in range(0, len(numbers), NUM_READING_THREADS):
            window = numbers[start : start + NUM_READING_THREADS]
            yield from zip(window, pool.map(lambda number: read_part(folder, number), window), strict=True)


def part_uri(folder: str, number: int) -> str:
    """Where a part lies."""
    return storage.join(folder, f"part-{number:06d}.jsonl")


def encoded(records: Sequence[Record], *, writer: str) -> bytes:
    """The bytes of a part; `writer` differs between runs, so that no two write the same one."""
    lines = b"".join(json.dumps(_to_json(record), sort_keys=True).encode() + b"\n" for record in records)
    end = {"end": {"num_records": len(records), "sha256": hashlib.sha256(lines).hexdigest(), "writer": writer}}
    return lines + json.dumps(end).encode() + b"\n"


def read_part(folder: str, number: int) -> list[Record]:
    """The records of a part.

    Raises:
        DataError: it is torn.
    """
    uri = part_uri(folder, number)
    data = storage.read_bytes(uri)
    cut = data.rstrip(b"\n").rfind(b"\n") + 1
    lines, last = data[:cut], data[cut:]
    torn = f"expected a whole part of a log of answers at {uri}, found"
    advice = "remove it, and its prompts are asked again"
    try:
        end = json.loads(last)["end"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{torn} one without its last line; {advice}") from error
    found = {"num_records": lines.count(b"\n"), "sha256": hashlib.sha256(lines).hexdigest()}
    if not isinstance(end, dict) or any(end.get(name) != value for name, value in found.items()):
        raise DataError(f"{torn} one whose lines are not those that its last line counts; {advice}")
    try:
        return [_from_json(json.loads(line)) for line in lines.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{torn} a record that cannot be read ({error}); {advice}") from error


def _to_json(record: Record) -> dict[str, Any]:
    return {
        "ask": {name: getattr(record.ask, name) for name in Ask.__slots__},
        "image_ids": list(record.image_ids),
        "digest": record.digest,
        "reply": {name: getattr(record.reply, name) for name in Reply.__slots__},
    }


def _from_json(value: dict[str, Any]) -> Record:
    ask = Ask(**{**value["ask"], "image_uris": tuple(value["ask"]["image_uris"])})
    return Record(ask=ask, image_ids=tuple(value["image_ids"]), reply=Reply(**value["reply"]))
