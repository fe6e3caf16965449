"""Export: a workspace's verified pairs as a benchmark in any form, every pair either in it or counted among those that are not."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mmvp_ray import storage
from mmvp_ray.annotate.balance import Balance, balance
from mmvp_ray.annotate.collecting import Collected, CollectedPair, Kind, collect_pairs
from mmvp_ray.annotate.workspace import open_workspace, record
from mmvp_ray.benchmark.benchmark import Benchmark, collect
from mmvp_ray.benchmark.export import FORMS, IMAGE_MODES, LAST_FILES, export_benchmark, refuse_existing
from mmvp_ray.benchmark.huggingface import export_huggingface
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.errors import ConfigError, DataError

STATEMENT_FORMS: Final = ("table", "huggingface", "mmvp_vlm")
"""Forms that can hold statements; the last holds nothing else."""
OWN_TEXTS_LICENSE: Final = "other"
FORMS_WITHOUT_PROVENANCE: Final = ("mmvp", "mmvp_vlm", "lmms_eval", "vlmevalkit")
PROVENANCE_FILE: Final = "provenance.csv"
FORMS_BY_NAME: Final = ("lmms_eval", "vlmevalkit")
"""A folder may hold several of these, each by its name."""
FORMULA_STARTS: Final = tuple("=+-@")
SURPLUS, USED_UP = "pattern is full", "image is used already"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """A benchmark from what people annotated and verified."""

    workspace: str = ""
    """Folder of the workspace."""
    out: str = ""
    """Folder to write to, here or in a bucket (s3://...), without such a benchmark."""
    form: str = "table"
    """table (ours), mmvp, mmvp_vlm, huggingface, lmms_eval or vlmevalkit."""
    kind: Literal["questions", "statements"] | None = None
    """questions or statements; statements for mmvp_vlm and questions for all others unless given."""
    images: Literal["identical", "reencoded"] = "identical"
    """identical keeps the bytes as imported; reencoded writes pixels alone, without metadata."""
    name: str = "pairs"
    """Name of the benchmark; lmms-eval and VLMEvalKit run it by this."""
    per_pattern: int | None = None
    """Pairs for each of the nine patterns, best ranks first (MMVP-VLM: 15); every pair unless given."""
    uses_per_image: int = 1
    """With --per-pattern: pairs that one image may be in."""
    include_unsafe: bool = False
    """Export pairs with images that the app blurs, too."""
    license: str = OWN_TEXTS_LICENSE
    """License of the texts for the card of huggingface, as the hub spells it, such as cc-by-4.0; images keep their own."""

    @property
    def exported_kind(self) -> Kind:
        """Questions or statements, whichever it will be."""
        return self.kind or ("statements" if self.form == "mmvp_vlm" else "questions")

    def check(self) -> None:
        """Raise ConfigError for a value out of range, or values that do not fit together."""
        if not self.workspace:
            raise ConfigError("expected --workspace FOLDER, found none")
        if not self.out:
            raise ConfigError("expected --out FOLDER to write the benchmark to, found none")
        if self.form not in FORMS:
            raise ConfigError(f"expected a form among {', '.join(FORMS)}, found {self.form!r} in --form")
        if self.images not in IMAGE_MODES:
            raise ConfigError(f"expected images among {', '.join(IMAGE_MODES)}, found {self.images!r} in --images")
        if self.exported_kind not in ("questions", "statements"):
            raise ConfigError(f"expected questions or statements, found {self.kind!r} in --kind")
        if self.exported_kind == "statements" and self.form not in STATEMENT_FORMS:
            raise ConfigError(
                f"expected a form that holds statements ({', '.join(STATEMENT_FORMS)}), found {self.form} in --form; leave --kind out"
            )
        if self.exported_kind == "questions" and self.form == "mmvp_vlm":
            raise ConfigError("expected --kind statements for --form mmvp_vlm, found questions; leave --kind out")
        if not self.name.strip() or not self.name.isprintable():
            raise ConfigError(f"expected a printable name, found {self.name!r} in --name")
        if self.per_pattern is not None and self.per_pattern < 1:
            raise ConfigError(f"expected at least 1, found {self.per_pattern} in --per-pattern")
        if self.uses_per_image < 1:
            raise ConfigError(f"expected at least 1, found {self.uses_per_image} in --uses-per-image")
        if not self.license.strip() or not self.license.isprintable():
            raise ConfigError(f"expected a license as the hub spells it, found {self.license!r} in --license")
        if self.license != OWN_TEXTS_LICENSE and self.form != "huggingface":
            raise ConfigError(
                f"expected --form huggingface beside --license, found {self.form}; no other form has a card"
            )


def export(config: ExportConfig) -> list[str]:
    """Write the benchmark, and note in the audit trail what was exported.

    Returns:
        What the job prints: where, how many pairs of each pattern, what is missing, and which pairs are left out for what reason.

    Raises:
        ConfigError: the configuration, no workspace, or the folder holds a benchmark already. DataError: no pair to export (says why), or
            something that the form cannot hold.
    """
    config.check()
    workspace = open_workspace(config.workspace)
    try:
        collected = collect_pairs(workspace, config.exported_kind, include_unsafe=config.include_unsafe)
        pairs, left_out, balanced = _chosen(config, collected)
        if not pairs:
            raise DataError(
                f"expected a pair of {config.exported_kind} to export, found none in {config.workspace}: {_counts(left_out)}"
            )
        items: list[Any] = [item for pair in pairs for item in pair.items]
        found = collect(items, name=config.name)
        if config.form in FORMS_WITHOUT_PROVENANCE:
            # Before the benchmark: once that is whole, no export comes to this folder again.
            refuse_existing(found, config.out, form=config.form)
            _write_provenance(config, found)
        _write(config, found)
        content = {
            "out": config.out,
            "form": config.form,
            "kind": config.exported_kind,
            "images": config.images,
            "name": config.name,
            "per_pattern": config.per_pattern,
            "fingerprint": found.fingerprint,
            "pairs": [pair.candidate.pair_id for pair in pairs],
            "left_out": left_out,
        }
        with workspace.transaction() as connection:
            record(connection, "exported", content)
    finally:
        workspace.close()
    return _lines(config, pairs, left_out, balanced)


def _chosen(config: ExportConfig, collected: Collected) -> tuple[list[CollectedPair], dict[str, int], Balance | None]:
    if config.per_pattern is None:
        return list(collected.pairs), dict(collected.left_out), None
    by_id = {pair.candidate.pair_id: pair for pair in collected.pairs}
    balanced = balance(
        [pair.candidate for pair in collected.pairs], config.per_pattern, uses_per_image=config.uses_per_image
    )
    passed_over = {SURPLUS: balanced.num_surplus, USED_UP: balanced.num_used_up}
    left_out = dict(collected.left_out) | {reason: num for reason, num in passed_over.items() if num}
    return [by_id[candidate.pair_id] for candidate in balanced.chosen], left_out, balanced


def _write(config: ExportConfig, found: Benchmark) -> None:
    if config.form == "huggingface":
        export_huggingface(storage.normalise(config.out), found, license_id=config.license, images=config.images)
    else:
        export_benchmark(found, config.out, form=config.form, images=config.images)


def _write_provenance(config: ExportConfig, found: Benchmark) -> None:
    """What the form has no room for: a row for each item, in the benchmark's order."""
    items: Sequence[Any] = found.items
    names = sorted({name for item in items for name in item.provenance})
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["pair_id", "item", "text", *names])
    for item in items:
        # A cell that begins like a formula is one to a spreadsheet; texts of strangers are none.
        cells = [item.pair_id, item.item, item.text, *(item.provenance.get(name, "") for name in names)]
        writer.writerow([f"'{cell}" if cell[:1] in FORMULA_STARTS and not _is_number(cell) else cell for cell in cells])
    storage.write_bytes(
        storage.join(storage.normalise(config.out), _provenance_name(config, found)), out.getvalue().encode()
    )


def _provenance_name(config: ExportConfig, found: Benchmark) -> str:
    if config.form not in FORMS_BY_NAME:
        return PROVENANCE_FILE
    (last,) = LAST_FILES[config.form](found)
    return f"{last}.{PROVENANCE_FILE}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _lines(
    config: ExportConfig, pairs: Sequence[CollectedPair], left_out: dict[str, int], balanced: Balance | None
) -> list[str]:
    per_pattern = Counter(pair.candidate.pattern for pair in pairs)
    lines = [
        f"  {len(pairs)} pairs, {2 * len(pairs)} {config.exported_kind}, as {config.form} to {config.out}; images {config.images}"
    ]
    for pattern in PATTERNS:
        missing = balanced.shortfalls.get(pattern, 0) if balanced else 0
        short = f"  ({missing} short of {config.per_pattern})" if missing else ""
        lines.append(f"    {pattern:<40} {per_pattern[pattern]:>5}{short}")
    if balanced and balanced.shortfalls:
        short = ", ".join(f"{pattern} {missing}" for pattern, missing in balanced.shortfalls.items())
        lines.append(
            f"  missing for {config.per_pattern} of each pattern: {sum(balanced.shortfalls.values())} pairs ({short})"
        )
    lines.append(f"  left out: {_counts(left_out)}")
    return lines


def _counts(left_out: dict[str, int]) -> str:
    shown = ", ".join(f"{num} {reason}" for reason, num in sorted(left_out.items(), key=lambda one: (-one[1], one[0])))
    return shown or "none"
