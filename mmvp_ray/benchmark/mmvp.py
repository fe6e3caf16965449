"""The MMVP layout: `MMVP Images/N.jpg` and a Questions.csv whose Index ties rows 2i-1 and 2i into pair i."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import check_text
from mmvp_ray.benchmark.csv_rows import check_numbers, csv_bytes, read_rows
from mmvp_ray.benchmark.image_copies import ImageMode, copy_images
from mmvp_ray.benchmark.image_files import check_inside, numbered_images
from mmvp_ray.benchmark.items import Question, check_question, pairs_of
from mmvp_ray.benchmark.option_text import RAW_OPTIONS_KEY, join_options, letter, read_answer, split_options
from mmvp_ray.errors import ConfigError, DataError

QUESTIONS_FILE = "Questions.csv"
IMAGES_FOLDER = "MMVP Images"
HEADER = ("Index", "Question", "Options", "Correct Answer")
TYPO = "lndex"
"""First cell of the header in copies of the published file: a lower-case L where the I should be."""

FOLDER_SPELLINGS = ("MMVP Images", "MMVP_Images")
_COLUMNS = {"Index": (TYPO,), "Question": (), "Options": (), "Correct Answer": ()}


def read_mmvp(url: str) -> tuple[list[Question], list[str]]:
    """Read a folder in the MMVP layout.

    Pairs go by the value of Index, not by the row: rows may stand in any order. Index 2i-1 is item "a" and 2i item "b" of pair "i".

    Args:
        url: The folder that holds Questions.csv and "MMVP Images".

    Returns:
        Questions by Index, and notes of one line each. Their provenance holds the index and what further columns say.

    Raises:
        DataError: a row or an image is missing, doubled or broken; file and line are named.
    """
    table = storage.join(url, QUESTIONS_FILE)
    check_inside(url, [table])
    images = numbered_images(image_folder(url, FOLDER_SPELLINGS), root=url)
    found: dict[int, Question] = {}
    places: dict[int, str] = {}
    for row in read_rows(table, _COLUMNS):
        index = row.number("Index")
        if index in found:
            raise DataError(f"expected each Index once, found {index} in {places[index]} and again in {row.where}")
        if index not in images:
            raise DataError(
                f"expected an image {index}.jpg (or .jpeg, .png) in {storage.join(url, IMAGES_FOLDER)}, found none for {row.where}"
            )
        try:
            options = split_options(row.cells["Options"].strip())
            answer = read_answer(row.cells["Correct Answer"], options)
            question = Question(
                pair_id=str((index + 1) // 2),
                item="a" if index % 2 else "b",
                image_uri=images[index],
                text=row.cells["Question"].strip(),
                options=options,
                answer=answer,
                provenance={
                    "index": str(index),
                    **_as_written(row.cells["Options"], options),
                    **{name: cell for name, cell in row.cells.items() if name not in _COLUMNS and name != "index"},
                },
            )
            check_question(question)
        except DataError as error:
            raise DataError(f"{error} in {row.where}") from error
        if not question.text:
            raise DataError(f"expected a question, found none in {row.where}")
        found[index], places[index] = question, row.where
    check_numbers(places, "Index", table)
    questions = [found[index] for index in sorted(found)]
    return questions, [*_same_answers(questions), *unnamed_images(images, found)]


def write_mmvp(
    url: str,
    questions: Sequence[Question],
    *,
    images: ImageMode = "identical",
    header_typo: bool = False,
) -> None:
    """Write a folder in the MMVP layout; pairs are numbered in their order, items of a pair by their names.

    Args:
        url: A folder without a Questions.csv.
        questions: Two for each pair. Patterns and provenance have no place in this layout.
        images: "identical" keeps the bytes of JPEG and PNG files, "reencoded" writes JPEGs without metadata. The released scripts open
            N.jpg only.
        header_typo: Write "lndex" as some published copies have it.

    Raises:
        DataError: a pair that has not two questions, options that the layout cannot keep apart, an image in another format.
        ConfigError: there is a benchmark already.
    """
    refuse_to_overwrite(url, QUESTIONS_FILE)
    rows, uris = [], []
    for number, (pair_id, pair) in enumerate(pairs_of(questions).items(), start=1):
        if len(pair) != 2:
            raise DataError(
                f"expected 2 questions in each pair of the MMVP layout, found {len(pair)} in pair {pair_id!r}"
            )
        for index, question in zip((2 * number - 1, 2 * number), pair, strict=True):
            check_question(question)
            try:
                options = join_options(question.options)
            except DataError as error:
                raise DataError(f"{error} (question {question.key!r})") from error
            check_trimmed(question.text, question.key)
            for option in question.options:
                check_text(option, question.key)
            rows.append((str(index), question.text, options, f"({letter(question.answer)})"))
            uris.append(question.image_uri)
    names = [row[0] for row in rows]
    copy_images(uris, storage.join(url, IMAGES_FOLDER), names, mode=images, jpeg_or_png=True)
    header = (TYPO, *HEADER[1:]) if header_typo else HEADER
    storage.write_bytes(storage.join(url, QUESTIONS_FILE), csv_bytes(header, rows))


def image_folder(url: str, spellings: Sequence[str]) -> str:
    """The one folder of images in `url`, by any of its spellings.

    Raises:
        DataError: none of them is there, or several are.
    """
    found = [name for name in storage.list_folders(url) if name.casefold() in {s.casefold() for s in spellings}]
    if len(found) != 1:
        raise DataError(f"expected one folder of images, {' or '.join(spellings)}, found {found or 'none'} in {url}")
    return storage.join(url, found[0])


def unnamed_images(images: Sequence[int] | dict[int, str], named: Sequence[int] | dict[int, Question]) -> list[str]:
    """A note if there are images that no row names."""
    left = sorted(set(images) - set(named))
    return [f"{len(left)} images that no row names, such as number {left[0]}"] if left else []


def refuse_to_overwrite(url: str, name: str) -> None:
    """Raise ConfigError if `name` is in the folder: what others may have measured on is not replaced."""
    if storage.exists(storage.join(url, name)):
        raise ConfigError(
            f"expected a folder without {name} to write to, found one in {url}; remove it or name another folder"
        )


def check_trimmed(text: str, key: str) -> None:
    """Raise DataError for a text that CSV readers would trim, and that would so come back changed."""
    check_text(text, key)
    if text != text.strip():
        raise DataError(f"expected a text without white space around it, found {text[:80]!r} in {key!r}")


def _as_written(cell: str, options: tuple[str, ...]) -> dict[str, str]:
    return (
        {}
        if cell == " ".join(f"({letter(place)}) {text}" for place, text in enumerate(options))
        else {RAW_OPTIONS_KEY: cell}
    )


def _same_answers(questions: Sequence[Question]) -> list[str]:
    """A note on pairs that a constant answer gets right."""
    same = [
        pair_id
        for pair_id, pair in pairs_of(questions).items()
        if len({(question.text, question.options, question.answer) for question in pair}) == 1
    ]
    count = Counter(same)
    if not count:
        return []
    return [f"{len(count)} pairs ask the same of both images and have the same answer, such as pair {same[0]}"]
