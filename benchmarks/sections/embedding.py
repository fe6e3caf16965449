"""How store, embed, decode, clip_retrieval and ingest are shown: images in, vectors on the disk."""

from __future__ import annotations

import statistics

from benchmarks.section import Claim, Figures, Section, at, median_of, rounds_of, table

TABLES = {
    "embeddings": "embeddings table",
    "embeddings_markers": "its markers",
    "images": "images table",
    "images_markers": "its markers",
    "rejects": "rejects table (nothing was rejected)",
    "near_pairs": "near pairs above 0.93",
}
WAYS = {
    "write_store": "written by the store: fsync, SHA-256, marker",
    "write_numpy": "`np.save` of the same arrays",
    "write_numpy_sync": "`np.save`, and an fsync of each file",
    "read_store": "read by `read_vectors`, as the engines do",
    "read_numpy": "`np.load` of the same arrays",
    "read_pyarrow": "`pyarrow.parquet.read_table` of the store's files, to numpy",
}


def store_tables(figures: Figures) -> list[str]:
    """Bytes, then rates."""
    sizes, rates = figures["sizes"], figures["rates"]
    raw = sizes["raw"]
    rows = [(said, f"{sizes[name]:,.1f}", f"{sizes[name] / raw:.4f}") for name, said in TABLES.items()]
    lines = table(
        (f"{figures['num_images']:,} vectors of {figures['dim']} numbers", "bytes an image", "of id and fp16 vector"),
        [*rows, ("id and fp16 vector", f"{raw:,.0f}", "1")],
    )
    lines += [
        f"A near pair takes {sizes['bytes_a_pair']:.1f} bytes; this world has {sizes['pairs_an_image']:.2f} for "
        "each image.",
        "",
    ]
    num_rounds = rounds_of(rates["rounds"]["write_store"])
    return lines + table(
        (f"one thread, medians of {num_rounds}", "seconds", "vectors/s", "MB/s"),
        (
            (
                said,
                median_of(rates["rounds"][name], 3),
                f"{rates['vectors_per_second'][name]:,.0f}",
                f"{rates['mb_per_second'][name]:,.0f}",
            )
            for name, said in WAYS.items()
        ),
    )


STORE = Section(
    claims=(
        Claim(
            what="embeddings tables over the raw bytes of ids and fp16 vectors",
            of=lambda figures: figures["sizes"]["embeddings"] / figures["sizes"]["raw"],
            digits=4,
            unit=" times",
        ),
        Claim(
            what="reading vectors from the store over `pyarrow.parquet.read_table`",
            of=at("rates", "ratios", "read_store / read_pyarrow"),
            unit=" times as fast",
        ),
        Claim(
            what="writing vectors to the store over `np.save` with fsync",
            of=at("rates", "ratios", "write_store / write_numpy_sync"),
            unit=" times as fast",
        ),
    ),
    tables=store_tables,
)

PASSES = {
    "noop": ("an encoder that costs nothing", "plain processes that read and decode", "plain_per_second"),
    "encode": ("ViT-B/16, fp32, on the CPU", "a bare loop on preloaded pixels", "bare_per_second"),
}


def embed_tables(figures: Figures) -> list[str]:
    """Both passes beside their loops."""
    return table(
        ("images/s, medians", "beside", "loop", "pipeline", "pipeline / loop"),
        (
            (
                said,
                beside,
                median_of(figures[name][key], 1),
                median_of(figures[name]["pipeline_per_second"], 1),
                median_of(figures[name]["ratios"]),
            )
            for name, (said, beside, key) in PASSES.items()
            if name in figures
        ),
    )


EMBED = Section(
    claims=(
        Claim(
            what="pipeline with an encoder that costs nothing over plain processes that read and decode",
            of=at("noop", "ratio"),
            at_least=0.8,
        ),
        Claim(
            what="pipeline with a ViT-B/16 on the CPU over a bare loop on preloaded pixels",
            of=at("encode", "ratio"),
            at_least=0.9,
        ),
    ),
    tables=embed_tables,
)


def drivers_tables(figures: Figures) -> list[str]:
    """A row for each number of actors and drivers."""
    return table(
        (
            f"actors, {figures['num_pieces']} pieces, medians of {rounds_of(figures['rounds'])}",
            "drivers",
            "pieces/s",
            "ms of a driver's processor, a piece",
            "of the job's own process",
        ),
        (
            (
                f"{case['num_actors']}",
                f"{case['num_drivers']}",
                f"{case['pieces_per_second']:.1f}",
                f"{case['driver_seconds'] * 1e3:.1f}",
                f"{case['job_seconds'] * 1e3:.1f}" if case["num_drivers"] > 1 else "the same",
            )
            for case in figures["cases"]
        ),
    )


def _job_ms(figures: Figures) -> float:
    return next(case["job_seconds"] * 1e3 for case in figures["cases"] if case["num_drivers"] > 1)


DRIVERS = Section(
    claims=(
        Claim(
            what="the job's own processor for an embedded piece, driven by several processes",
            of=_job_ms,
            digits=1,
            unit=" ms",
        ),
    ),
    tables=drivers_tables,
)

SIDES = {"ours": "mmvp-ray", "theirs": "clip-retrieval"}


def clip_retrieval_tables(figures: Figures) -> list[str]:
    """Both sides."""
    rounds = figures["rounds"]
    rows = []
    for side, said in SIDES.items():
        steady = [one[f"{side}_per_second"] for one in rounds if one.get(f"{side}_per_second")]
        rows.append(
            (
                said,
                median_of([one[f"{side}_all"]["seconds"] for one in rounds], 1),
                median_of(steady, 1) if steady else "",
                median_of([one[f"{side}_all"]["peak_gb"] for one in rounds]),
            )
        )
    head = (
        f"medians of {rounds_of(rounds)}",
        "whole command, s",
        "images/s without the start",
        "peak memory (PSS), GB",
    )
    return table(head, rows)


def _memory_ratio(figures: Figures) -> float:
    rounds = figures["rounds"]
    return float(statistics.median(one["ours_all"]["peak_gb"] / one["theirs_all"]["peak_gb"] for one in rounds))


CLIP_RETRIEVAL = Section(
    claims=(
        Claim(
            what="embedding as a whole command over clip-retrieval's inference",
            of=at("whole"),
            unit=" times as fast",
            at_least=1.3,
        ),
        Claim(what="the same without the start", of=at("steady"), unit=" times as fast"),
        Claim(what="its peak memory over clip-retrieval's", of=_memory_ratio, at_most=1),
        Claim(
            what="least cosine between both sides' vectors of an image",
            of=lambda figures: min(one["least_cosine"] for one in figures["rounds"]),
            digits=6,
            at_least=0.9999,
        ),
    ),
    tables=clip_retrieval_tables,
)

RATES = {"download": "URLs/s while downloading", "command": "URLs/s, whole command", "peak_mib": "peak memory, MiB"}


def ingest_tables(figures: Figures) -> list[str]:
    """Both downloaders."""
    rounds = figures["rounds"]
    rows = [
        (said, *(median_of([one[key] for one in rounds[name]], 0) for name in ("mmvp-ray", "img2dataset")))
        for key, said in RATES.items()
    ]
    num_rounds = rounds_of(rounds["mmvp-ray"])
    return table((f"{figures['num_urls']:,} URLs, medians of {num_rounds}", "mmvp-ray", "img2dataset"), rows)


def _ingest_ratio(key: str, figures: Figures) -> float:
    return float(figures["medians"]["mmvp-ray"][key] / figures["medians"]["img2dataset"][key])


INGEST = Section(
    claims=(
        Claim(
            what="URLs/s of `jobs/ingest.py laion` over img2dataset's own command, while downloading",
            of=lambda figures: _ingest_ratio("download", figures),
            at_least=0.8,
        ),
        Claim(what="the same, whole command", of=lambda figures: _ingest_ratio("command", figures), at_least=0.8),
    ),
    tables=ingest_tables,
)


COLUMNS: dict[str, tuple[str, str]] = {
    "images_per_second": ("decode, images/s", ",.0f"),
    "ratio": ("over ours", ".2f"),
    "decode_and_resize_per_second": ("decode and resize, images/s", ",.0f"),
    "decode_and_resize_ratio": ("over ours", ".2f"),
    "identical_share": ("pixels equal to ours", ".4%"),
    "greatest_difference": ("greatest difference", ".0f"),
    "least_cosine": ("least cosine of embeddings", ".6f"),
    "import_seconds": ("import, s", ".2f"),
    "import_mb": ("import, MB", ",.0f"),
    "growth_mb": ("growth, MB", ",.0f"),
    "odd_taken": ("odd JPEGs that only it takes", ".0f"),
    "odd_refused": ("that only ours takes", ".0f"),
    "odd_other_pixels": ("with other pixels", ".0f"),
}
"""Of a decoder's row; what no row has is left out."""


def decode_tables(figures: Figures) -> list[str]:
    """A row for each decoder, then those that are not installed."""
    rows = figures["rows"]
    columns = {name: one for name, one in COLUMNS.items() if any(name in row for row in rows)}
    lines = table(
        ("decoder", *(title for title, _ in columns.values())),
        (
            (row["decoder"], *(format(row[name], shown) if name in row else "" for name, (_, shown) in columns.items()))
            for row in rows
        ),
    )
    left_out = [f"* left out: {name}: {reason}" for name, reason in sorted((figures.get("left_out") or {}).items())]
    made = {"made": "made, with the statistics of photographs", "imagenet_sample": "a sample of ImageNet"}
    pictures = made.get(str(figures.get("pictures")), figures.get("pictures"))
    said = f"Pictures: {pictures}; resized by {figures.get('library')}; medians of {figures.get('rounds')} rounds."
    return [*lines, said, "", *left_out, *([""] if left_out else [])]


def _pillow_ratio(figures: Figures) -> float | None:
    found = [row["ratio"] for row in figures["rows"] if row["decoder"] == "Pillow alone"]
    return 1 / found[0] if found else None


DECODE = Section(
    claims=(Claim(what="decoding, ours over Pillow alone, one core", of=_pillow_ratio, unit=" times as fast"),),
    tables=decode_tables,
)
