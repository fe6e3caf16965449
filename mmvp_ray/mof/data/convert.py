"""LLaVA's JSON to Parquet, once: parts of so many records, each written whole with its marker, so that a run that broke off goes on behind it."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.data.array_stream import ArrayStream
from mmvp_ray.mof.data.records import REJECTS, ROWS, VERSION, Read, Reject, Template, read_record

READ_BYTES: Final = 4 * 2**20
ROW_GROUP_ROWS: Final = 2048
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What is converted, and to where."""

    source: str | None = None
    """LLaVA JSON: one array of records; a file or any fsspec URL."""
    out: str | None = None
    """Folder of the Parquet files (path or URL)."""
    template: Template = "default"
    """default: conversations (mix665k); plain: image and caption (stage 1), where each record is one image, one question, one caption."""
    num_records_per_part: int = 16_384
    """Records of one Parquet file; what is held in memory, and what is lost when a run breaks off."""
    max_reject_fraction: float = 0.05
    """Fail, when all is read, if a larger share of the records became no row."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        for name in ("source", "out"):
            if not getattr(self, name):
                raise ConfigError(f"expected a path or URL in --{name}, found none; give one")
        if self.template not in ("default", "plain"):
            raise ConfigError(f"expected --template default or plain, found {self.template!r}; choose one")
        if self.num_records_per_part < 1:
            raise ConfigError(
                f"expected --num-records-per-part of at least 1, found {self.num_records_per_part}; 16384 suits most"
            )
        if not 0 <= self.max_reject_fraction <= 1:
            raise ConfigError(
                f"expected --max-reject-fraction from 0 to 1, found {self.max_reject_fraction}; 0.05 is the default"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What came out, as the manifest has it."""

    source: str
    template: Template
    parts: tuple[dict[str, Any], ...]
    counts: dict[str, int]
    """num_records, num_rows, num_text_only_rows, num_images, num_words, num_rejects, num_leading_answers_dropped,
    num_trailing_questions_dropped, and rejects.<reason> of each reason that occurred."""

    @property
    def num_rows(self) -> int:
        """Rows in all parts."""
        return self.counts["num_rows"]

    def lines(self) -> Iterator[str]:
        """For people: rows by kind, what was left out, and why."""
        count = self.counts
        yield (
            f"{self.source}: {count['num_records']:,} records, {count['num_rows']:,} rows ({count['num_text_only_rows']:,} of text alone, "
            f"{count['num_images']:,} images), {count['num_rejects']:,} rejected"
        )
        for name in sorted(name for name in count if name.startswith("rejects.")):
            yield f"  rejected as {name.removeprefix('rejects.')}: {count[name]:,}"
        for name, said in (
            ("num_leading_answers_dropped", "answers before the first question left out"),
            ("num_trailing_questions_dropped", "last questions without an answer left out"),
        ):
            if count[name]:
                yield f"  {said}: {count[name]:,}"


_COUNTS: Final = (
    "num_records",
    "num_rows",
    "num_text_only_rows",
    "num_images",
    "num_words",
    "num_rejects",
    "num_leading_answers_dropped",
    "num_trailing_questions_dropped",
)


def convert(config: ConvertConfig, *, progress: Callable[[int], None] | None = None) -> Converted:
    """Convert one JSON file, or go on with what an earlier call left; done already, it reads the manifest alone.

    The same file and settings give the same rows in the same files. The manifest is written last: a folder without it is no data set.

    Args:
        config: What, and to where.
        progress: Called with the number of records behind us after each part.

    Raises:
        ConfigError: bad settings, no such file, or a folder that holds another data set. DataError: no JSON array, or too many rejects.
    """
    config.check()
    assert config.source is not None
    assert config.out is not None
    source, out = storage.normalise(config.source), storage.normalise(config.out)
    key = _key(source, config)
    found = _own(storage.join(out, MANIFEST), key, out)
    if found is None:
        parts = _finished_parts(out, key)
        for part in _new_parts(source, out, key, config, parts):
            parts.append(part)
            if progress is not None:
                progress(part["first_record"] + part["counts"]["num_records"])
        total: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
        for part in parts:
            total.update(part["counts"])
        found = {"key": key, "version": VERSION, "template": config.template, "parts": parts, "counts": dict(total)}
        found["source"] = source
    converted = Converted(
        source=found["source"], template=found["template"], parts=tuple(found["parts"]), counts=found["counts"]
    )
    num_rejects, num_records = converted.counts["num_rejects"], converted.counts["num_records"]
    if num_rejects > config.max_reject_fraction * num_records:
        raise DataError(
            f"expected at most {config.max_reject_fraction:.1%} of the records of {source} to be rejected, found {num_rejects} of "
            f"{num_records}; see the rejects-*.parquet in {out}, or raise --max-reject-fraction"
        )
    if converted.num_rows == 0:
        raise DataError(f"expected records in {source}, found an empty array; give a file with conversations")
    storage.write_json(storage.join(out, MANIFEST), found)
    return converted


def _key(source: str, config: ConvertConfig) -> str:
    files = storage.find_files(source)
    if len(files) != 1 or files[0].uri != source:
        raise ConfigError(f"expected one JSON file in --source, found {len(files)} files at {source}; name one file")
    parts = [source, files[0].num_bytes, files[0].etag, config.template, config.num_records_per_part, VERSION]
    return hashlib.sha256("\n".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:16]


def _own(uri: str, key: str, out: str) -> dict[str, Any] | None:
    """The JSON object at `uri` if this conversion wrote it; None if there is none."""
    if not storage.exists(uri):
        return None
    found = storage.read_json(uri)
    if not isinstance(found, dict) or found.get("key") != key:
        raise ConfigError(
            f"expected an empty folder or an unfinished conversion of the same file and settings in --out, found another one in {out}; "
            "choose another folder, or remove this one"
        )
    return found


def _finished_parts(out: str, key: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    while (marker := _own(storage.join(out, f"part-{len(parts):06d}.json"), key, out)) is not None:
        parts.append(marker)
    return parts


def _new_parts(
    source: str, out: str, key: str, config: ConvertConfig, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    last = done[-1] if done else None
    if last is not None and last["is_last"]:
        return
    number = len(done)
    start_byte = 0 if last is None else last["end_byte"]
    first_record = 0 if last is None else last["first_record"] + last["counts"]["num_records"]
    first_row = 0 if last is None else last["first_row"] + last["counts"]["num_rows"]
    stream = ArrayStream(_chunks(source, start_byte), where=source, start_byte=start_byte)
    is_last = False
    while not is_last:
        rows: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
        is_last = True
        for value in stream:
            found = read_record(value, config.template)
            record = first_record + counts["num_records"]
            counts.update(_counted(found))
            if isinstance(found, Read):
                rows.append(_row(first_row + len(rows), record, found))
            else:
                rejects.append({"record": record, "id": found.id, "reason": str(found.reason), "detail": found.detail})
            if counts["num_records"] == config.num_records_per_part:
                is_last = False
                break
        part: dict[str, Any] = {
            "key": key,
            "number": number,
            "first_record": first_record,
            "first_row": first_row,
            "end_byte": stream.position,
            "is_last": is_last,
            "counts": dict(counts),
            "files": {},
        }
        for name, records, schema in (("rows", rows, ROWS), ("rejects", rejects, REJECTS)):
            if records:
                file = f"{name}-{number:06d}.parquet"
                part["files"][name] = {"path": file} | _write(storage.join(out, file), records, schema)
        storage.write_json(storage.join(out, f"part-{number:06d}.json"), part)
        yield part
        number, first_record, first_row = number + 1, first_record + counts["num_records"], first_row + len(rows)


def _chunks(source: str, start_byte: int) -> Iterator[bytes]:
    with storage.open_file(source) as file:
        file.seek(start_byte)
        while chunk := file.read(READ_BYTES):
            yield chunk


def _counted(found: Read | Reject) -> dict[str, int]:
    if isinstance(found, Reject):
        return {"num_records": 1, "num_rejects": 1, f"rejects.{found.reason}": 1}
    return {
        "num_records": 1,
        "num_rows": 1,
        "num_text_only_rows": int(not found.images),
        "num_images": len(found.images),
        "num_words": found.num_words,
        "num_leading_answers_dropped": int(found.leading_answer_dropped),
        "num_trailing_questions_dropped": int(found.trailing_question_dropped),
    }


def _row(row: int, record: int, found: Read) -> dict[str, Any]:
    return {
        "row": row,
        "record": record,
        "id": found.id,
        "images": list(found.images),
        "num_words": found.num_words,
        "conversations": [{"from": speaker, "value": text} for speaker, text in found.turns],
    }


def _write(uri: str, records: list[dict[str, Any]], schema: pa.Schema) -> dict[str, Any]:
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(records, schema=schema), sink, compression="zstd", row_group_size=ROW_GROUP_ROWS
    )
    data = sink.getvalue()
    storage.write_bytes(uri, data)
    return {"num_rows": len(records), "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
