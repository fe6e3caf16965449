"""Rows of a Questions.csv with the line on which each begins, so that every complaint can name file and line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmvp_ray import storage
from mmvp_ray.errors import DataError

LFS_POINTER = b"version https://git-lfs"
LFS_ADVICE = "it is a Git LFS pointer, not the file: run `git lfs pull` or download it again"
MAX_NUMBER_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        where: File and line, for messages.
        cells: Text by the column's canonical name.
    """

    where: str
    cells: Mapping[str, str]

    def number(self, column: str) -> int:
        """The number in a column: digits alone, at least 1.

        Raises:
            DataError: it is none.
        """
        text = self.cells[column].strip()
        if not re.fullmatch(rf"[0-9]{{1,{MAX_NUMBER_DIGITS}}}", text) or int(text) < 1:
            raise DataError(f"expected a number from 1 in column {column}, found {text[:40]!r} in {self.where}")
        return int(text)


def read_rows(uri: str, columns: Mapping[str, Collection[str]]) -> list[Row]:
    """Read a CSV file: UTF-8 with or without BOM, any line ends, quoted fields that may hold commas and line ends.

    Args:
        uri: The file.
        columns: Canonical names of the columns that must be there -> spellings that are accepted; case and white space at the ends do
            not matter. Further columns are kept under their own names. Empty lines are passed over.

    Returns:
        Rows in the order of the file.

    Raises:
        DataError: no such file, not UTF-8, a column missing or twice, a row with too many or too few fields, an open quote.
    """
    data = storage.read_bytes(uri)
    if data.startswith(LFS_POINTER):
        raise DataError(f"expected a CSV table at {uri}, but {LFS_ADVICE}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 text in {uri}, found byte {data[error.start]:#04x} at {error.start}; save it as UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    rows = []
    line = 1
    try:
        for fields in reader:
            where, line = f"{uri}, line {line}", reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = _canonical_header(fields, columns, uri)
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"expected {len(header)} fields ({', '.join(header)}), found {len(fields)} in {where}; quote fields that hold commas"
                )
            rows.append(Row(where, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise DataError(f"expected CSV fields, found broken ones ({error}) in {uri}, line {line}") from error
    if header is None:
        raise DataError(f"expected the columns {', '.join(columns)}, found an empty file at {uri}")
    return rows


def _canonical_header(fields: Sequence[str], columns: Mapping[str, Collection[str]], uri: str) -> list[str]:
    known = {
        spelling.strip().casefold(): name for name, spellings in columns.items() for spelling in (name, *spellings)
    }
    header = [known.get(field.strip().casefold(), field.strip()) for field in fields]
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(
            f"expected the columns {', '.join(columns)}, found {', '.join(fields)[:200]!r} in {uri}, line 1"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"expected each column once, found {twice} more than once in {uri}, line 1")
    return header


def check_numbers(numbers: Mapping[int, str], column: str, uri: str) -> None:
    """Raise DataError unless the numbers are 1, 2, ..., an even count of them: what the official layouts pair their rows by.

    Args:
        numbers: Number -> where its row is.
        column: Name of the column.
        uri: The file.
    """
    if not numbers:
        raise DataError(f"expected rows of questions, found none in {uri}")
    gap = next((number for number in range(1, len(numbers) + 1) if number not in numbers), None)
    if gap is not None:
        after = min(number for number in numbers if number > gap)
        raise DataError(
            f"expected {column} 1 to {len(numbers)} without a gap, found no {gap} but {after} in {numbers[after]}; "
            f"pairs are {column} (1, 2), (3, 4), ...: add the lost row, or number the rows anew by pairs"
        )
    if len(numbers) % 2:
        last = max(numbers)
        raise DataError(
            f"expected an even number of rows, two for each pair, found {len(numbers)}, {column} {last} alone in {numbers[last]}"
        )


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A CSV file as UTF-8 without BOM, lines ending in a line feed, fields quoted where they must be."""
    return "".join(csv_line(fields, ",") for fields in (header, *rows)).encode()


def csv_line(fields: Sequence[str], delimiter: str) -> str:
    """One line. Not csv.writer: until Python 3.13 it leaves a lone carriage return unquoted, which no reader takes."""
    special = {delimiter, '"', "\r", "\n"}
    quoted = [
        '"' + field.replace('"', '""') + '"' if special & set(field) or (not field and len(fields) == 1) else field
        for field in fields
    ]
    return delimiter.join(quoted) + "\n"
