"""Export as a Hugging Face dataset folder: data/test-*.parquet with the images inside, and a card that says whose they are."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.embedded import write_embedded
from mmvp_ray.benchmark.image_copies import ImageMode
from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.benchmark.mmvp import refuse_to_overwrite
from mmvp_ray.benchmark.patterns import PATTERNS

CARD = "README.md"
DATA_FILE = "data/test-00000-of-00001.parquet"
MAX_LICENSES_SHOWN = 50
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def export_huggingface(
    url: str, benchmark: Benchmark, *, license_id: str = "other", images: ImageMode = "identical"
) -> None:
    """Write a folder that `datasets.load_dataset(DIR)` reads and that can be uploaded as it is.

    Args:
        url: A folder without a README.md.
        benchmark: Questions or statements.
        license_id: License of the benchmark's own texts for the card, as the hub spells it ("cc-by-4.0"). The images keep theirs, which
            stand in the column license, row by row.
        images: "identical" or "reencoded".

    Raises:
        ConfigError: there is a card already. DataError: a missing or broken image.
    """
    refuse_to_overwrite(url, CARD)
    items: Sequence[Any] = benchmark.items
    write_embedded(storage.join(url, DATA_FILE), benchmark, list(pairs_of(items).values()), images)
    storage.write_bytes(storage.join(url, CARD), card(benchmark, license_id=license_id).encode())


def card(benchmark: Benchmark, *, license_id: str = "other") -> str:
    """The dataset card: YAML metadata, then what the rows are, patterns, licenses and how to score. Nothing in it is trusted as Markdown."""
    asks = benchmark.kind == "questions"
    num_items = len(benchmark.items)
    metadata = {
        "pretty_name": _line(benchmark.name),
        "license": _line(license_id),
        "task_categories": ["visual-question-answering" if asks else "zero-shot-image-classification"],
        "language": ["en"],
        "size_categories": [next((name for limit, name in _SIZES if num_items < limit), "n>1M")],
        "tags": ["mmvp", "visual-patterns", "image-pairs"],
        "configs": [{"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*.parquet"}]}],
    }
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    what = (
        "questions with options; a pair counts only when every question of it is answered rightly"
        if asks
        else "statements, each true of one image of its pair alone"
    )
    text_columns = (
        "| question, options | what is asked, and the options in their order, without letters |\n"
        "| answer | capital letter of the right option |\n"
        if asks
        else "| statement | one sentence that is true of this image and of no other of its pair |\n"
    )
    return (
        f"---\n{front}---\n\n# {_cell(benchmark.name)}\n\n"
        f"{num_items} {what}. {benchmark.num_pairs} pairs of images"
        f"{f', answer key: {_cell(benchmark.key)}' if asks else ''}. Fingerprint: `{benchmark.fingerprint}`.\n\n"
        "## Columns\n\n| column | what |\n|---|---|\n"
        "| index | from 1; the halves of a pair side by side |\n"
        "| pair_id, item, num_items | the pair, which of its images, and how many it has: join by these, not by rows |\n"
        f"| image | the image |\n{text_columns}"
        "| patterns | visual patterns, the primary one first; empty while unknown |\n"
        "| license, source, provenance | of the image; provenance is JSON text |\n\n"
        f"## Patterns\n\n{_table('pattern', _pattern_counts(benchmark.items))}\n"
        f"## Licenses of the images\n\n{_table('license', _license_counts(benchmark.items))}\n"
        "The license in the card's head is that of the texts. Each image keeps its owner's terms.\n"
    )


def _pattern_counts(items: Sequence[Any]) -> list[tuple[str, int]]:
    counts = Counter(item.patterns[0] if item.patterns else "not labelled" for item in items)
    return sorted(counts.items(), key=lambda entry: (PATTERNS.index(entry[0]) if entry[0] in PATTERNS else 9, entry[0]))


def _license_counts(items: Sequence[Any]) -> list[tuple[str, int]]:
    return Counter(item.provenance.get("license") or "unknown" for item in items).most_common()


def _table(name: str, counts: Sequence[tuple[str, int]]) -> str:
    rows = [f"| {_cell(value)} | {count} |" for value, count in counts[:MAX_LICENSES_SHOWN]]
    left = counts[MAX_LICENSES_SHOWN:]
    if left:
        rows.append(f"| {len(left)} others | {sum(count for _, count in left)} |")
    return "\n".join([f"| {name} | rows |", "|---|---|", *rows, ""])


def _line(text: str) -> str:
    """One bounded line without control, reordering or unassigned characters."""
    shown = "".join(char for char in " ".join(text.split()) if not unicodedata.category(char).startswith("C"))
    return shown[:200]


def _cell(text: str) -> str:
    """Text for a Markdown table cell or heading: no markup of it takes effect."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:@])", r"\\\1", html.escape(_line(text), quote=False))
