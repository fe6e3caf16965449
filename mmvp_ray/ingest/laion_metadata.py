"""LAION's metadata files: columns of every release under one set of names, read in batches without nulls in disguise.

Names were taken from the releases' own cards and from img2dataset's recipes:

    laion-400m, laion2B-en/-multi (2022)    SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE LANGUAGE NSFW(text) similarity
    laion2B-en-joined, laion-high-resolution    URL TEXT WIDTH HEIGHT similarity LANGUAGE hash pwatermark punsafe
    laion2B-en-aesthetic, laion-art         ... hash punsafe pwatermark aesthetic
    laion-aesthetics v2 (6plus and others)  URL TEXT WIDTH HEIGHT similarity punsafe pwatermark AESTHETIC_SCORE hash
    laion-coco                              URL TEXT top_caption all_captions all_similarities WIDTH HEIGHT similarity hash pwatermark punsafe
    what img2dataset writes                 url caption key width height original_width original_height, and the columns it was told to keep
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError

BATCH_ROWS = 65_536

_NUMBER, _TEXT = pa.float64(), pa.string()


@dataclass(frozen=True, slots=True)
class _Column:
    kind: pa.DataType
    names: tuple[str, ...]


COLUMNS: Mapping[str, _Column] = {
    "url": _Column(_TEXT, ("URL", "url", "image_url")),
    "caption": _Column(_TEXT, ("TEXT", "text", "caption", "top_caption")),
    "laion_id": _Column(_TEXT, ("hash", "SAMPLE_ID", "sample_id", "uid", "id", "key")),
    "laion_width": _Column(_NUMBER, ("original_width", "WIDTH", "width")),
    "laion_height": _Column(_NUMBER, ("original_height", "HEIGHT", "height")),
    "similarity": _Column(_NUMBER, ("similarity", "SIMILARITY")),
    "punsafe": _Column(_NUMBER, ("punsafe", "PUNSAFE", "pnsfw", "NSFW", "nsfw")),
    "nsfw": _Column(_TEXT, ("NSFW", "nsfw")),
    "pwatermark": _Column(_NUMBER, ("pwatermark", "PWATERMARK", "watermark")),
    "aesthetic": _Column(_NUMBER, ("AESTHETIC_SCORE", "aesthetic_score", "aesthetic", "AESTHETIC")),
    "license": _Column(_TEXT, ("LICENSE", "license", "licence")),
    "language": _Column(_TEXT, ("LANGUAGE", "language")),
}
"""Our name -> what releases call it, the preferred name first. NSFW is a number in some and one of UNLIKELY, UNSURE, NSFW in others."""


def plan_schema(columns: Sequence[str]) -> pa.Schema:
    """The schema of filtered rows with these of COLUMNS."""
    return pa.schema([pa.field(name, COLUMNS[name].kind) for name in columns])


def read_schema(uri: str) -> pa.Schema:
    """The schema of a metadata file.

    Raises:
        DataError: it is no Parquet.
    """
    with storage.open_file(uri) as file, _as_parquet(uri):
        return pq.read_schema(file)


def parse_overrides(texts: Sequence[str]) -> dict[str, str]:
    """OURS=THEIRS texts as a mapping.

    Raises:
        ConfigError: no such text, or no such column of ours.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, theirs = text.partition("=")
        if not equals or not theirs or name not in COLUMNS:
            raise ConfigError(
                f"expected NAME=COLUMN with a name among {', '.join(COLUMNS)}, found {text!r} in --column; for example --column caption=top_caption"
            )
        found[name] = theirs
    return found


def map_columns(schema: pa.Schema, overrides: Mapping[str, str], *, where: str) -> dict[str, str]:
    """Our names of the columns that a file has, with its own names of them.

    Raises:
        ConfigError: no URLs, or a column that was named is not there or of the wrong kind.
        DataError: a column that is read stands there twice.
    """
    found: dict[str, str] = {}
    read = {*overrides.values(), *(name for column in COLUMNS.values() for name in column.names)}
    doubled = sorted(name for name in read if schema.names.count(name) > 1)
    if doubled:
        raise DataError(
            f"expected one column of each name, found {', '.join(map(repr, doubled))} more than once in {where}; write the file "
            f"again with other names"
        )
    for name, column in COLUMNS.items():
        theirs = overrides.get(name)
        if theirs is not None and (theirs not in schema.names or not _fits(schema.field(theirs).type, column.kind)):
            kind = "a column of numbers" if column.kind == _NUMBER else "a column of texts or whole numbers"
            raise ConfigError(
                f"expected {kind} named {theirs!r} for --column {name}, found {_listed(schema)} in {where}; mend the name"
            )
        candidates = (theirs,) if theirs is not None else column.names
        for candidate in candidates:
            if candidate in schema.names and _fits(schema.field(candidate).type, column.kind):
                found[name] = candidate
                break
    if "url" not in found:
        raise ConfigError(
            f"expected a column of URLs ({', '.join(COLUMNS['url'].names)}), found {_listed(schema)} in {where}; name it with --column url=NAME"
        )
    return found


def read_metadata(uri: str, names: Mapping[str, str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of a metadata file in order, as tables with `plan_schema(columns)`.

    NaN, empty texts, and widths and heights that are not positive become null: releases use all of these for "not known".

    Args:
        uri: The file; row groups are read one after the other.
        names: Our names to the file's own, from `map_columns`.
        columns: Our names of the columns of the result; those that the file lacks are null.

    Raises:
        DataError: it is no Parquet, or a value does not fit its column.
    """
    schema = plan_schema(columns)
    with storage.open_file(uri) as file, _as_parquet(uri), pq.ParquetFile(file) as parquet:
        # No threads: Arrow's would let go of the file after Python's end.
        wanted = sorted({names[name] for name in columns if name in names})
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=wanted, use_threads=False):
            arrays = [
                _clean(name, batch.column(names[name]))
                if name in names
                else pa.nulls(batch.num_rows, COLUMNS[name].kind)
                for name in columns
            ]
            yield pa.Table.from_arrays(arrays, schema=schema)


def _clean(name: str, column: pa.Array) -> pa.Array:
    values = pc.cast(column, COLUMNS[name].kind, safe=False)
    if COLUMNS[name].kind == _TEXT:
        return pc.if_else(pc.equal(values, ""), None, _utf8(values))
    known = pc.is_finite(values)
    if name in ("laion_width", "laion_height"):
        known = pc.and_(known, pc.greater(values, 0))
    return pc.if_else(known, values, None)


def _utf8(values: pa.Array) -> pa.Array:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raw = values.view(pa.binary()).to_pylist()
        return pa.array([None if text is None else text.decode("utf-8", errors="replace") for text in raw], type=_TEXT)
    return values


def _fits(kind: pa.DataType, wanted: pa.DataType) -> bool:
    # A column that is null throughout has Arrow's type null.
    if pa.types.is_null(kind):
        return True
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    is_number: bool = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if wanted == _TEXT:
        return is_text or bool(pa.types.is_integer(kind))
    return is_number


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)[:600] or "no columns"


@contextlib.contextmanager
def _as_parquet(uri: str) -> Iterator[None]:
    """What Arrow raises of damaged bytes, as a DataError that names the file."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        # Of a damaged footer or page Arrow raises an OSError too, without the number that a file system's has.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = " ".join(str(error).split())[:300]
        raise DataError(
            f"expected a LAION metadata Parquet file, found something else in {uri} ({text}); download it again"
        ) from error
