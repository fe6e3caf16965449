"""Every form that a benchmark can be written in, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.huggingface import CARD, export_huggingface
from mmvp_ray.benchmark.image_copies import ImageMode
from mmvp_ray.benchmark.lmms_eval import export_lmms_eval
from mmvp_ray.benchmark.mmvp import QUESTIONS_FILE, refuse_to_overwrite, write_mmvp
from mmvp_ray.benchmark.mmvp_vlm import write_mmvp_vlm
from mmvp_ray.benchmark.table import QUESTIONS_TABLE, STATEMENTS_TABLE, write_table
from mmvp_ray.benchmark.vlmevalkit import export_vlmevalkit
from mmvp_ray.errors import ConfigError

Writer = Callable[[str, Benchmark, ImageMode], None]

IMAGE_MODES: Final[tuple[ImageMode, ...]] = ("identical", "reencoded")

FORMS: Final[dict[str, Writer]] = {
    "table": lambda url, found, images: write_table(url, found.items, name=found.name, key=found.key, images=images),
    "mmvp": lambda url, found, images: write_mmvp(url, found.questions, images=images),
    "mmvp_vlm": lambda url, found, images: write_mmvp_vlm(url, found.statements, images=images),
    "huggingface": lambda url, found, images: export_huggingface(url, found, images=images),
    "lmms_eval": lambda url, found, images: export_lmms_eval(url, found, task=plain_name(found.name), images=images),
    "vlmevalkit": lambda url, found, images: export_vlmevalkit(url, found, name=plain_name(found.name), images=images),
}
"""Name of each form -> what writes it: our table, the two official layouts, and what others run or load."""

LAST_FILES: Final[dict[str, Callable[[Benchmark], tuple[str, ...]]]] = {
    "table": lambda found: (QUESTIONS_TABLE, STATEMENTS_TABLE),
    "mmvp": lambda found: (QUESTIONS_FILE,),
    "mmvp_vlm": lambda found: (QUESTIONS_FILE,),
    "huggingface": lambda found: (CARD,),
    "lmms_eval": lambda found: (f"{plain_name(found.name)}.yaml",),
    "vlmevalkit": lambda found: (f"{plain_name(found.name)}.tsv",),
}
"""Name of each form -> the files by which a folder holds such a benchmark; the one that there is, is written last."""


def export_benchmark(benchmark: Benchmark, url: str, *, form: str, images: ImageMode = "identical") -> None:
    """Write a benchmark to a folder in one of FORMS; tasks and datasets are called by the benchmark's name.

    Args:
        benchmark: What to write.
        url: A folder, here or in a bucket, without such a benchmark.
        form: A key of FORMS.
        images: "identical" keeps the bytes, "reencoded" writes images without metadata.

    Raises:
        ConfigError: an unknown form or image mode, one that does not fit the kind (questions or statements), or the folder holds one already.
        DataError: something that this form cannot hold; says what.
    """
    if form not in FORMS:
        raise ConfigError(f"expected a form among {', '.join(FORMS)}, found {form!r}")
    if images not in IMAGE_MODES:
        raise ConfigError(f"expected images among {', '.join(IMAGE_MODES)}, found {images!r}")
    FORMS[form](storage.normalise(url), benchmark, images)


def refuse_existing(benchmark: Benchmark, url: str, *, form: str) -> None:
    """Raise ConfigError where `export_benchmark` would, because the folder holds one: for what is written beside it, and before it."""
    for name in LAST_FILES[form](benchmark):
        refuse_to_overwrite(storage.normalise(url), name)


def plain_name(name: str) -> str:
    """A name that other harnesses take, such as "my_pairs" for "My pairs!"."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")[:64] or "pairs"
