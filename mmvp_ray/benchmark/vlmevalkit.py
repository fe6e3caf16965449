"""Export for VLMEvalKit: NAME.tsv, which it runs as a custom multiple-choice dataset, and a script for the pair accuracy it lacks."""

from __future__ import annotations

import base64
import io
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.csv_rows import csv_line
from mmvp_ray.benchmark.image_copies import ImageMode, copy_of
from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.benchmark.lmms_eval import check_name
from mmvp_ray.benchmark.mmvp import refuse_to_overwrite
from mmvp_ray.errors import ConfigError, DataError

SCRIPT_FILE: Final = "score_pairs.py"
SCRIPT_SOURCE: Final = Path(__file__).with_name("exported") / SCRIPT_FILE
UNLABELLED: Final = "unlabelled"
MIN_BASE64_CHARS: Final = 65
"""VLMEvalKit takes shorter image cells for the index of another row."""

SPECIAL_NAMES: Final = ("mmbench", "ccbench", "circular", "mmcr", "mmt", "mmsci", "mmmu", "lego", "blink", "wemath")
"""VLMEvalKit evaluates datasets whose names hold one of these by rules of their own (image_mcq.py, multiple_choice.py)."""


def export_vlmevalkit(url: str, benchmark: Benchmark, *, name: str, images: ImageMode = "identical") -> None:
    """Write NAME.tsv (index, image as base64, question, A, B, ..., answer, category, pair_id, item, num_items) and score_pairs.py.

    The halves of a pair stand in consecutive rows, as VLMEvalKit's own report on MMVP demands. NAME.tsv goes to $LMUData; then
    `python run.py --data NAME --model ...` and `python score_pairs.py <result file>`.

    Args:
        url: A folder without such a file.
        benchmark: Of questions.
        name: The dataset's: letters, digits, _ and -; a new one for each version, since VLMEvalKit keeps unpacked images by name.
        images: "identical" or "reencoded".

    Raises:
        ConfigError: statements, a name that VLMEvalKit treats specially, or the file is there. DataError: a missing or broken image, or a
            text that pandas, with which VLMEvalKit reads the file, would change or take for an empty cell (such as "None" or "NA").
    """
    check_name(name, "dataset")
    special = next((word for word in SPECIAL_NAMES if word in name.casefold()), None)
    if special or name == "MMVP":
        raise ConfigError(
            f"expected a dataset name that VLMEvalKit does not treat specially, found {name!r} (it holds {special or 'its own MMVP'}); "
            f"for instance {f'pairs_{name[:20]}' if not special else 'my_pairs'!r}"
        )
    refuse_to_overwrite(url, f"{name}.tsv")
    pairs = list(pairs_of(benchmark.questions).values())
    num_options = max(len(question.options) for question in benchmark.questions)
    if num_options > len(string.ascii_uppercase):
        raise DataError(f"expected at most 26 options, found {num_options}")
    letters = string.ascii_uppercase[:num_options]
    header = ["index", "question", *letters, "answer", "category", "pair_id", "item", "num_items", "image"]
    texts = [
        _cells(index, len(pair), question, letters)
        for index, (pair, question) in enumerate(((p, q) for p in pairs for q in p), start=1)
    ]
    _check_pandas_reads(header[:-1], texts)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "table.tsv"
        with local.open("w", encoding="utf-8", newline="") as file:
            file.write(csv_line(header, "\t"))
            for cells, question in zip(texts, (q for pair in pairs for q in pair), strict=True):
                data = base64.b64encode(copy_of(question.image_uri, mode=images)[0]).decode()
                assert len(data) >= MIN_BASE64_CHARS
                file.write(csv_line([*cells, data], "\t"))
        # The table last: with it the folder counts as a whole benchmark.
        storage.write_bytes(storage.join(url, SCRIPT_FILE), SCRIPT_SOURCE.read_bytes())
        storage.write_file(storage.join(url, f"{name}.tsv"), local)


def _cells(index: int, num_items: int, question: Question, letters: str) -> list[str]:
    options = [*question.options, *[""] * (len(letters) - len(question.options))]
    category = question.patterns[0] if question.patterns else UNLABELLED
    return [
        str(index),
        question.text,
        *options,
        string.ascii_uppercase[question.answer],
        category,
        f"pair {question.pair_id}",
        question.item,
        str(num_items),
    ]


def _check_pandas_reads(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Raise DataError where pandas.read_csv, which VLMEvalKit uses, would give another text."""
    import pandas as pd  # type: ignore[import-untyped]

    text = "".join(csv_line(fields, "\t") for fields in (header, *rows))
    table: Any = pd.read_csv(io.BytesIO(text.encode()), sep="\t")
    for column, name in enumerate(header):
        for row, found in zip(rows, table[name].tolist(), strict=True):
            text = "" if pd.isna(found) else str(found)
            if text != row[column]:
                raise DataError(
                    f"expected texts that pandas keeps, but VLMEvalKit would read {row[column][:60]!r} as {'an empty cell' if pd.isna(found) else repr(text)} "
                    f"(column {name}, pair {row[-3]!r}); reword it"
                )
