"""The MMVP-VLM layout: `MLLM_VLM Images/<Type>/N.jpg` and a Questions.csv of one statement for each image."""

from __future__ import annotations

from collections.abc import Sequence

from mmvp_ray import storage
from mmvp_ray.benchmark.csv_rows import check_numbers, csv_bytes, read_rows
from mmvp_ray.benchmark.image_copies import ImageMode, copy_images
from mmvp_ray.benchmark.image_files import check_inside, numbered_images
from mmvp_ray.benchmark.items import Statement, pairs_of
from mmvp_ray.benchmark.mmvp import QUESTIONS_FILE, check_trimmed, image_folder, refuse_to_overwrite
from mmvp_ray.benchmark.patterns import MMVP_VLM_TYPES, PATTERNS, find_pattern
from mmvp_ray.errors import DataError

IMAGES_FOLDER = "MLLM_VLM Images"
HEADER = ("Question ID", "Type", "Statement")
PUBLISHED_PAIRS_PER_PATTERN = 15
"""The released script takes a pair's pattern from its row: 15 pairs for each of the nine, in the paper's order."""

FOLDER_SPELLINGS = ("MLLM_VLM Images", "MLLM_VLM_Images", "MMVP_VLM_Images", "MMVP_VLM Images")
"""The published folder and the released script; DIVA and others; the README; and the mixture of the two."""

_COLUMNS = {"Question ID": ("Question_ID", "QuestionID"), "Type": (), "Statement": ()}


def read_mmvp_vlm(url: str) -> tuple[list[Statement], list[str]]:
    """Read a folder in the MMVP-VLM layout.

    The pattern is what the Type column says, and pairs go by Question ID, (1, 2), (3, 4), ...; the order of the rows means nothing. The odd
    one is item "a", the even one "b". A type's folder is found by any spelling of its pattern; the cell itself is never used as a path.

    Args:
        url: The folder that holds Questions.csv and the folder of images.

    Returns:
        Statements by Question ID, and notes of one line each. Their provenance holds the Question ID and what further columns say.

    Raises:
        DataError: a row or an image is missing, doubled or broken, an unknown type, or a pair of two types; file and line are named.
    """
    table = storage.join(url, QUESTIONS_FILE)
    check_inside(url, [table])
    root = image_folder(url, FOLDER_SPELLINGS)
    folders = _pattern_folders(root)
    images: dict[str, dict[int, str]] = {}
    found: dict[int, Statement] = {}
    places: dict[int, str] = {}
    for row in read_rows(table, _COLUMNS):
        number = row.number("Question ID")
        if number in found:
            raise DataError(
                f"expected each Question ID once, found {number} in {places[number]} and again in {row.where}"
            )
        pattern = find_pattern(row.cells["Type"])
        if pattern is None:
            raise DataError(
                f"expected a Type among {', '.join(MMVP_VLM_TYPES.values())}, found {row.cells['Type'][:60]!r} in {row.where}"
            )
        if pattern.name not in folders:
            raise DataError(
                f"expected a folder {pattern.mmvp_vlm_type!r} in {root}, found {sorted(folders)} for {row.where}"
            )
        folder = storage.join(root, folders[pattern.name])
        if pattern.name not in images:
            images[pattern.name] = numbered_images(folder, root=url)
        if number not in images[pattern.name]:
            raise DataError(f"expected an image {number}.jpg (or .jpeg, .png) in {folder}, found none for {row.where}")
        statement = row.cells["Statement"].strip()
        if not statement:
            raise DataError(f"expected a statement, found none in {row.where}")
        found[number] = Statement(
            pair_id=str((number + 1) // 2),
            item="a" if number % 2 else "b",
            image_uri=images[pattern.name][number],
            text=statement,
            patterns=(pattern.name,),
            provenance={
                "question_id": str(number),
                **{name: cell for name, cell in row.cells.items() if name not in _COLUMNS and name != "question_id"},
            },
        )
        places[number] = row.where
    check_numbers(places, "Question ID", table)
    for number in range(1, len(found), 2):
        if found[number].patterns != found[number + 1].patterns:
            raise DataError(
                f"expected one Type for both halves of a pair, found {found[number].patterns[0]!r} in {places[number]} and "
                f"{found[number + 1].patterns[0]!r} in {places[number + 1]}"
            )
    return [found[number] for number in sorted(found)], _notes(found, images)


def write_mmvp_vlm(url: str, statements: Sequence[Statement], *, images: ImageMode = "identical") -> None:
    """Write a folder in the MMVP-VLM layout: patterns in the paper's order, pairs of a pattern in theirs.

    Args:
        url: A folder without a Questions.csv.
        statements: Two for each pair, with one primary pattern among the nine for both.
        images: "identical" keeps the bytes of JPEG and PNG files, "reencoded" writes JPEGs without metadata. The released script opens
            N.jpg only.

    Raises:
        DataError: a pair that has not two statements of one of the nine patterns; an image in another format. ConfigError: there is a
            benchmark already.
    """
    refuse_to_overwrite(url, QUESTIONS_FILE)
    by_pattern: dict[str, list[tuple[Statement, ...]]] = {name: [] for name in PATTERNS}
    for pair_id, pair in pairs_of(statements).items():
        if len(pair) != 2:
            raise DataError(
                f"expected 2 statements in each pair of the MMVP-VLM layout, found {len(pair)} in pair {pair_id!r}"
            )
        primary = {statement.patterns[0] if statement.patterns else None for statement in pair}
        pattern = primary.pop() if len(primary) == 1 else None
        if pattern not in by_pattern:
            raise DataError(
                f"expected one of the nine patterns as the primary one of both statements, found "
                f"{[statement.patterns for statement in pair]} in pair {pair_id!r}"
            )
        by_pattern[pattern].append(pair)
    rows: list[tuple[str, str, str]] = []
    for pattern, pairs in by_pattern.items():
        first = len(rows)
        for statement in (statement for pair in pairs for statement in pair):
            check_trimmed(statement.text, statement.key)
            rows.append((str(len(rows) + 1), MMVP_VLM_TYPES[pattern], statement.text))
        if pairs:
            copy_images(
                [statement.image_uri for pair in pairs for statement in pair],
                storage.join(url, IMAGES_FOLDER, MMVP_VLM_TYPES[pattern]),
                [row[0] for row in rows[first:]],
                mode=images,
                jpeg_or_png=True,
            )
    storage.write_bytes(storage.join(url, QUESTIONS_FILE), csv_bytes(HEADER, rows))


def _pattern_folders(root: str) -> dict[str, str]:
    """Name of the folder of each pattern that has one."""
    folders: dict[str, str] = {}
    for name in storage.list_folders(root):
        pattern = find_pattern(name)
        if pattern is None:
            continue
        if pattern.name in folders:
            raise DataError(
                f"expected one folder for {pattern.name!r}, found {folders[pattern.name]!r} and {name!r} in {root}"
            )
        folders[pattern.name] = name
    return folders


def _notes(found: dict[int, Statement], images: dict[str, dict[int, str]]) -> list[str]:
    notes = []
    left = [number for numbers in images.values() for number in numbers if number not in found]
    if left:
        notes.append(f"{len(left)} images that no row names, such as number {min(left)}")
    order = [PATTERNS.index(found[number].patterns[0]) for number in sorted(found)[::2]]
    if order != [k for k in range(len(PATTERNS)) for _ in range(PUBLISHED_PAIRS_PER_PATTERN)]:
        notes.append(
            "not 15 pairs for each of the nine patterns in the paper's order: the released evaluate_vlm.py, which goes by rows, would "
            "name patterns wrongly"
        )
    return notes
