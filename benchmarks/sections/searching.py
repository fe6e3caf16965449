"""How search, search_growth, copies and hygiene are shown: the join by engines and peers, and what follows it."""

from __future__ import annotations

from typing import Any

from benchmarks.section import Claim, Figures, Section, at, everything, median_of, pick, rounds_of, table

KEPT = ("seconds", "rounds", "num_queries", "num_compared", "num_pairs", "recall", "num_true", "worker_bytes")
"""Of a contender."""
ROUTED_SIZE = 100_000
"""Images at which the share of comparisons has its goal."""


def keep_search(figures: Figures) -> Figures:
    """Without paths, stages and facts."""
    runs = [
        {name: run[name] for name in ("num_images", "floor", "workers", "truth", "errors", "ratios")}
        | {
            "contenders": {
                name: {key: one[key] for key in KEPT if key in one} for name, one in run["contenders"].items()
            }
        }
        for run in figures["runs"]
    ]
    return everything(figures) | {"runs": runs}


def search_tables(figures: Figures) -> list[str]:
    """A table for each size, then growth."""
    lines: list[str] = []
    for run in figures["runs"]:
        num_images, contenders = run["num_images"], run["contenders"]
        rounds = max(contenders.values(), key=lambda one: len(one["rounds"]))["rounds"] if contenders else []
        lines += table(
            (
                f"N = {num_images:,}, cosine above {run['floor']:g}, {run['workers']} workers, medians of "
                f"{rounds_of(rounds)}",
                "seconds",
                "recall",
                "share of brute force",
                "largest worker, MB",
            ),
            (_contender(name, contenders[name], num_images) for name in sorted(contenders, key=_place)),
        )
        lines += [f"Truth: {run['truth']}.", ""]
        lines += [f"* failed, {name}: {error}" for name, error in sorted(run["errors"].items())]
        if run["ratios"]:
            ratios = ((f"speed of {name}", f"{ratio:.2f}") for name, ratio in sorted(run["ratios"].items()))
            lines += table((f"N = {num_images:,}", "ratio, median over rounds"), ratios)
    if figures.get("growth"):
        lines += table(
            ("from the smallest N to the largest", "seconds", "comparisons", "a worker's memory"),
            (
                (
                    name,
                    f"N^{one['seconds']:.2f}",
                    f"N^{one['comparisons']:.2f}",
                    f"{one['worker_memory_factor']:.2f} times",
                )
                for name, one in sorted(figures["growth"].items(), key=lambda item: _place(item[0]))
            ),
        )
    return lines


def _place(name: str) -> tuple[bool, bool, str]:
    """Engines, then bare products, then other peers."""
    return name.startswith(("faiss", "one-cell")), name.startswith("bare"), name


def _contender(name: str, one: dict[str, Any], num_images: int) -> tuple[str, ...]:
    share, brute = one["num_queries"] / num_images, num_images * (num_images - 1) / 2
    what = "tiles" if name.startswith("bare") else "queries"
    recall = "" if one.get("recall") is None else f"{one['recall']:.5f} of {one['num_true']:,}"
    return (
        name + (f" (extrapolated from {share:.1%} of the {what})" if share < 1 else ""),
        median_of(one["rounds"], 1 if one["seconds"] >= 10 else 2),
        recall,
        f"{one['num_compared'] / brute:.4f}",
        f"{one['worker_bytes'] / 1e6:,.0f}",
    )


def _at_size(figures: Figures, num_images: int, *path: str) -> Any:
    for run in figures["runs"]:
        if run["num_images"] == num_images:
            return pick(run, *path)
    return None


def _ratio(num_images: int, peer: str, goal: float, said: str, *, amx: bool) -> Claim:
    def of(figures: Figures) -> Any:
        ratios = _at_size(figures, num_images, "ratios") or {}
        has_amx = any("bare-bf16" in name or "exact-fp32" in name for name in ratios)
        if amx and not has_amx:
            return None
        # Where the CPU has no AMX, the engine is the one without.
        return ratios.get(f"{'exact' if amx or not has_amx else 'exact-fp32'} / {peer}")

    kind = "with AMX" if amx else "without AMX"
    return Claim(what=f"speed of the exact engine {kind} over {said}, N = {num_images:,}", of=of, at_least=goal)


SEARCH = Section(
    claims=(
        *(
            _ratio(size, f"bare-{'bf16' if amx else 'fp32'}", 0.75, "bare products of all numbers", amx=amx)
            for amx in (True, False)
            for size in (50_000, 100_000)
        ),
        *(_ratio(50_000, "faiss-flat-range", 2, "FAISS' flat range search", amx=amx) for amx in (True, False)),
    ),
    tables=search_tables,
    keep=keep_search,
)


def _largest(figures: Figures) -> dict[str, Any]:
    return max(figures["runs"], key=lambda run: run["num_images"])


def _recall(name: str, goal: float) -> Claim:
    return Claim(
        what=f"recall of {name} at the largest N",
        of=lambda figures: pick(_largest(figures), "contenders", name, "recall"),
        digits=5,
        at_least=goal,
    )


def _compared_share(figures: Figures) -> float | None:
    compared = _at_size(figures, ROUTED_SIZE, "contenders", "routed", "num_compared")
    return None if compared is None else 100 * compared / (ROUTED_SIZE * (ROUTED_SIZE - 1) / 2)


def _index_ratio(figures: Figures) -> float | None:
    contenders = _largest(figures)["contenders"]
    if not {"ivfpq", "bare-fp32"} <= set(contenders):
        return None
    return float(contenders["ivfpq"]["seconds"] / contenders["bare-fp32"]["seconds"])


SEARCH_GROWTH = Section(
    claims=(
        Claim(what="exponent of routed's seconds in N", of=at("growth", "routed", "seconds"), at_most=1.6),
        Claim(what="exponent of routed's comparisons in N", of=at("growth", "routed", "comparisons"), at_most=1.3),
        Claim(what=f"routed's comparisons of all pairs, N = {ROUTED_SIZE:,}", of=_compared_share, unit=" %", at_most=5),
        _recall("routed", 0.999),
        _recall("ivfpq", 0.99),
        Claim(
            what="growth of routed's largest worker, its own memory",
            of=at("growth", "routed", "worker_memory_factor"),
            unit=" times",
        ),
        Claim(
            what="seconds of ivfpq over bare fp32 products of all tiles, at the largest N",
            of=_index_ratio,
            digits=3,
            at_most=0.1,
        ),
    ),
    tables=search_tables,
    keep=keep_search,
)


def copies_tables(figures: Figures) -> list[str]:
    """A row for each world and engine."""
    return table(
        (
            "images",
            "copies",
            "engine",
            "collapse, s",
            "join, s",
            "images in groups, largest",
            "pairs of representatives",
            "recall",
            "largest worker, MB",
        ),
        (
            (
                f"{one['num_images']:,}",
                f"{one['copies']:.0%}",
                one["engine"],
                f"{one['collapse']:.1f}",
                f"{one['join']:.1f}",
                f"{one['in_groups']:,}, {one['largest_group']:,}",
                f"{one['pairs']:,}",
                "" if one["recall"] is None else f"{one['recall']:.5f}",
                f"{one['worker_bytes'] / 1e6:,.0f}",
            )
            for one in figures["rows"]
        ),
    )


def _routed_recall(figures: Figures) -> float | None:
    found = [one["recall"] for one in figures["rows"] if one["engine"] == "routed" and one["recall"] is not None]
    return min(found) if found else None


COPIES = Section(
    claims=(
        Claim(
            what="recall of routed against exact after collapsing copies, the least of all worlds",
            of=_routed_recall,
            digits=5,
            at_least=0.999,
        ),
    ),
    tables=copies_tables,
)


def passes_tables(figures: Figures) -> list[str]:
    """Both kinds of tables, one process beside tasks."""
    rounds, workers = figures["rounds"], figures["workers"]
    kinds = {
        "embeddings": "ids of vectors, of which nothing else is read",
        "images": "ids of images tables, read whole",
    }
    head = (
        f"{figures['num_pieces']:,} pieces, answers after {figures['latency_seconds'] * 1e3:.0f} ms, medians of {rounds_of(rounds)}",
        "table, kB",
        "read of it, kB",
        "requests",
        "one process, pieces/s",
        f"tasks on {workers} cores, pieces/s",
        "tasks / one process",
    )
    rows = []
    for kind, said in kinds.items():
        alone, tasks = ([one[side][kind] for one in rounds] for side in ("alone", "tasks"))
        rows.append(
            (
                said,
                f"{figures['table_bytes'][kind] / 1e3:,.0f}",
                f"{alone[0]['bytes'] / 1e3:,.0f}",
                f"{alone[0]['requests']:.0f}",
                median_of([one["pieces_per_second"] for one in alone], 0),
                median_of([one["pieces_per_second"] for one in tasks], 0),
                f"{figures['ratios'][kind]:.2f}",
            )
        )
    return table(head, rows)


PASSES = Section(
    claims=(
        Claim(
            what="a pass over the ids of vectors in an object store, tasks on two cores over one process",
            of=at("ratios", "embeddings"),
            unit=" times as fast",
        ),
    ),
    tables=passes_tables,
)


def hygiene_tables(figures: Figures) -> list[str]:
    """A row for each stage."""
    head = f"{figures['num_pairs']:,} pairs, {figures['num_pieces']:,} pieces"
    rows = []
    for part in ("pairs", "pieces"):
        for one in (figures.get(part) or {}).get("stages", []):
            counts = ", ".join(f"{name} {value:,}" for name, value in one.items() if isinstance(value, int))
            counts = ", ".join(said for said in counts.split(", ") if "_bytes" not in said) if counts else ""
            rows.append(
                (
                    one["stage"],
                    f"{one['seconds']:,.1f}",
                    f"{one['peak_bytes'] / 2**30:.2f}",
                    f"{one['scratch_bytes'] / 2**30:.1f}",
                    counts,
                )
            )
    return table((head, "seconds", "peak memory, GiB", "temporary files, GiB", "what"), rows)


HYGIENE = Section(
    claims=tuple(
        Claim(what=f"memory of {said}", of=at(part, "peak_bytes", scale=2**-30), unit=" GiB", at_most=4)
        for part, said in (
            ("pairs", "counts, blind pairs and hygiene of 1e8 near pairs, one process"),
            ("pieces", "plan, counts and census of 1e9 images in 500,000 pieces, one process"),
        )
    ),
    tables=hygiene_tables,
)
