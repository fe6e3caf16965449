"""What each benchmark writes by --json, small: the shapes that the page is made from."""

from __future__ import annotations

from typing import Any

MACHINE: dict[str, Any] = {
    "cpu": "Some CPU",
    "cores": 2,
    "instructions": ["avx2"],
    "memory_gib": 23.5,
    "load_at_start": [0.31, 0.5, 1.02],
    "python": "3.11.7",
    "versions": {"numpy": "2.4.6", "faiss-cpu": None},
}


def _contender(seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "rounds": [seconds - 0.1, seconds, seconds + 0.1],
        "stages": {"parts": seconds},
        "facts": {"cells": "5c52"},
        "pairs": "/somewhere/pairs.npy",
        "num_queries": 100_000,
        "num_compared": 4_999_950_000.0,
        "num_pairs": 11_407,
        "recall": 1.0,
        "num_true": 11_407,
        "worker_bytes": 1_000_000_000,
        "tree_bytes": 2_000_000_000,
    } | more


def _run(contenders: dict[str, Any], ratios: dict[str, float]) -> dict[str, Any]:
    return {
        "num_images": 100_000,
        "floor": 0.95,
        "workers": 2,
        "truth": "the exact engine",
        "contenders": contenders,
        "errors": {"ivfpq": "ValueError: no index"},
        "ratios": ratios,
    }


def _round(tokens: float) -> dict[str, float]:
    return {
        "bare_tokens_per_second": 2600.0,
        "tokens_per_second": tokens,
        "wait_share": 0.003,
        "ratio": tokens / 2600,
    }


def _side(seconds: float, peak_gb: float) -> dict[str, float]:
    return {"seconds": seconds, "peak_gb": peak_gb}


def _asked(num_questions: int) -> dict[str, Any]:
    seconds = num_questions / 300
    return {"num_questions": num_questions, "seconds": seconds, "cpu_seconds": 9.1, "peak_bytes": 150 << 20} | {
        "load": 1.6,
        "per_second": 300.0,
    }


def _spread(median_ms: float) -> dict[str, float]:
    return {"num": 200, "median_ms": median_ms, "p95_ms": 2 * median_ms}


def _many(errors: list[str]) -> dict[str, Any]:
    return {
        "seconds": 300.4,
        "decisions_per_second": 33.48,
        "answers_per_second": 16.1,
        "next_pair": _spread(90.3),
        "statuses": {"200": 40_340},
        "errors": errors,
    }


def _stage(name: str, **notes: Any) -> dict[str, Any]:
    sizes = {"peak_bytes": 1 << 30, "scratch_bytes": 2 << 30}
    return {"stage": name, "seconds": 52.1, "cpu_seconds": 50.0} | sizes | notes


def _decoder(name: str, ratio: float) -> dict[str, Any]:
    return {
        "decoder": name,
        "images_per_second": 200.0 * ratio,
        "ratio": ratio,
        "identical_share": 1.0,
        "greatest_difference": 0,
        "least_cosine": 1.0,
    }


_WAYS = ("write_store", "write_numpy", "write_numpy_sync", "read_store", "read_numpy", "read_pyarrow")
_JOB = {"uploaded": 4.5, "driver": 6.5, "planned": 8.1, "read": 20.0, "embedded": 24.8, "done": 40.0}
_MINED = {"planned": 8.1, "read": 20.0, "embedded": 24.8, "done": 40.0}

RAW: dict[str, dict[str, Any]] = {
    "start_up": {
        "machine": MACHINE,
        "images": 4096,
        "rounds": [{"bare": 0.01, "import": 0.02, "help": 2.5}, {"bare": 0.01, "import": 0.02, "help": 2.7}],
        "medians": {"bare": 0.01, "import": 0.02, "help": 2.6},
        "ratios": {"bare": 1.0, "import": 2.0, "help": 260.0},
        "runs": [{"load": 0.5, "first": _MINED, "again": 20.0}],
        "steps": _MINED | {"again": 20.0},
    },
    "memory": {
        "machine": MACHINE,
        "images": 4096,
        "peak_bytes": 3 << 30,
        "samples": 100,
        "seconds": 44.0,
        "kinds": {
            "driver": {
                "num_processes": 1,
                "largest_bytes": 1 << 30,
                "together_bytes": 1 << 30,
                "at_peak_bytes": 1 << 29,
            }
        },
        "rounds": [3 << 30, 2 << 30, 4 << 30],
    },
    "store": {
        "machine": MACHINE,
        "num_images": 40_960,
        "dim": 768,
        "sizes": {
            "embeddings": 1557.5,
            "embeddings_markers": 0.2,
            "images": 51.0,
            "images_markers": 0.6,
            "rejects": 1.0,
            "near_pairs": 7.5,
            "pairs_an_image": 0.17,
            "bytes_a_pair": 45.2,
            "raw": 1552.0,
        },
        "rates": {
            "rounds": {name: [0.1, 0.2, 0.3] for name in _WAYS},
            "vectors_per_second": dict.fromkeys(_WAYS, 1e6),
            "mb_per_second": dict.fromkeys(_WAYS, 1552.0),
            "ratios": {"read_store / read_pyarrow": 2.25, "write_store / write_numpy_sync": 0.155},
        },
    },
    "embed": {
        "machine": MACHINE,
        "rounds": 2,
        "noop": {
            "plain_per_second": [430.0, 410.0],
            "pipeline_per_second": [400.0, 390.0],
            "ratios": [0.93, 0.95],
            "ratio": 0.94,
        },
    },
    "decode": {
        "machine": MACHINE,
        "pictures": "made",
        "library": "pil",
        "rounds": 5,
        "rows": [_decoder("mmvp_ray", 1.0), _decoder("Pillow alone", 1.25)],
        "left_out": {"imagecodecs": "ModuleNotFoundError: No module named 'imagecodecs'"},
    },
    "clip_retrieval": {
        "machine": MACHINE,
        "rounds": [
            {
                "theirs_all": _side(68.07, 3.265),
                "ours_all": _side(69.86, 3.741),
                "theirs_few": _side(56.1, 3.2),
                "ours_few": _side(55.0, 3.6),
                "theirs_per_second": 21.4,
                "ours_per_second": 17.3,
                "least_cosine": 0.99999999,
            }
        ],
        "whole": 0.974,
        "steady": 0.806,
    },
    "search": {
        "machine": MACHINE,
        "arguments": {"json": "/somewhere/exact.json"},
        "runs": [
            _run(
                {"exact": _contender(3.9), "bare-bf16": _contender(3.1, num_queries=50_000, recall=None)},
                {"exact / bare-bf16": 0.78},
            )
        ],
        "growth": {},
    },
    "search_growth": {
        "machine": MACHINE,
        "runs": [
            _run(
                {
                    "routed": _contender(10.7, num_compared=65e6),
                    "ivfpq": _contender(25.5, recall=0.98),
                    "bare-fp32": _contender(367.5, recall=None),
                },
                {},
            )
        ],
        "growth": {"routed": {"comparisons": 0.6, "seconds": 1.04, "worker_memory_factor": 1.16}},
    },
    "passes": {
        "machine": MACHINE,
        "num_pieces": 3000,
        "latency_seconds": 0.03,
        "table_bytes": {"embeddings": 3_189_713, "images": 119_108},
        "workers": 2,
        "rounds": [
            {
                side: {
                    kind: {"pieces_per_second": rate, "driver_cpu_seconds": 0.009, "requests": 3.0, "bytes": 98_000.0}
                    for kind, rate in (("embeddings", 90.0 * times), ("images", 240.0 * times))
                }
                for side, times in (("alone", 1.0), ("tasks", 1.5))
            }
        ],
        "ratios": {"embeddings": 1.5, "images": 1.5},
    },
    "drivers": {
        "machine": MACHINE,
        "num_pieces": 500,
        "pieces_per_second": 6.0,
        "rounds": [[]],
        "cases": [
            {
                "num_actors": actors,
                "num_drivers": drivers,
                "actors_seen": actors,
                "pieces_per_second": 5.5,
                "job_seconds": 0.0011 if drivers > 1 else seconds,
                "driver_seconds": seconds,
            }
            for actors, drivers, seconds in ((2, 1, 0.016), (48, 1, 0.028), (48, 2, 0.025))
        ],
    },
    "copies": {
        "machine": MACHINE,
        "rows": [
            {
                "num_images": 100_000,
                "copies": 0.3,
                "engine": "routed",
                "collapse": 24.7,
                "join": 8.3,
                "in_groups": 46_308,
                "groups": 14_531,
                "largest_group": 5000,
                "pairs": 5799,
                "recall": 0.9995,
                "worker_bytes": 1_083_000_000,
                "all_bytes": 2_330_000_000,
            }
        ],
    },
    "hygiene": {
        "machine": MACHINE,
        "num_pairs": 100_000_000,
        "num_pieces": 500_000,
        "pairs": {"stages": [_stage("hygiene", left=18_293_363)], "peak_bytes": 5 << 30},
    },
    "mof": {"machine": MACHINE, "rounds": [_round(2700.0), _round(2800.0), _round(2500.0)], "ratio": 1.04},
    "ingest": {
        "machine": MACHINE,
        "num_urls": 16_000,
        "rounds": {
            name: [{"download": 900.0, "command": 500.0, "peak_mib": 800.0}] for name in ("mmvp-ray", "img2dataset")
        },
        "medians": {
            "mmvp-ray": {"download": 900.0, "command": 350.0, "peak_mib": 800.0},
            "img2dataset": {"download": 1000.0, "command": 500.0, "peak_mib": 700.0},
        },
    },
    "asking": {
        "machine": MACHINE,
        "questions": 10_000,
        "concurrency": 32,
        "possible_per_second": 320.0,
        "rounds": [_asked(10_000), _asked(10_000)],
        "twice": _asked(20_000),
        "best_share": 0.94,
    },
    "annotate": {
        "machine": MACHINE,
        "pairs": 24_000,
        "annotators": 20,
        "ahead": _spread(11.3),
        "not_ahead": _spread(13.8),
        "no_thought": _many(["500: no"] * 5),
        "thought": _many([]),
        "acknowledged": 20_217,
        "problems": [],
        "states": {"queued": 11_799},
    },
    "job_start": {"machine": MACHINE, "goal": 60.0, "rounds": [_JOB, _JOB | {"embedded": 20.2}]},
    "chaos": {
        "machine": MACHINE,
        "rounds": 2,
        "survived": 1,
        "kills": 3,
        "undisturbed_seconds": 42.6,
        "mean_seconds": 60.0,
        "mean_ratio": 1.41,
        "max_ratio": 1.5,
        "each": [
            {"number": 0, "kills": ["driver at 9 s"], "seconds": 38.3, "num_drivers": 2, "error": None},
            {
                "number": 1,
                "kills": ["node at 27 s", "MapBatches(read_shard) at 38 s", "(the driver ended with 1: lost)"],
                "seconds": 62.6,
                "num_drivers": 1,
                "error": "3 files differ",
            },
        ],
    },
    "gpu": {
        "machine": MACHINE | {"gpu": "NVIDIA H100", "gpu_gib": 79.1, "cuda": "13.0", "transformers": "5.17.0"},
        "arguments": {"device": "cuda", "scale": "full", "json": "/somewhere/gpu.json"},
        "failed": {},
        "unfinished": {"blockwise": {"num_joined": 3, "join_seconds": 60.0}},
        "seconds": {"peak": 16.0, "blockwise": 70.0},
        "peak": {"float16": {"best": 7.1e14, "by_size": {"8192": 7.1e14}}},
        "embed": {
            "dtype": "float16",
            "least_cosine": {"clip": 0.99999, "dinov2": 0.99999},
            "encoders": {
                "clip": {
                    "flop_per_image": 1.6e11,
                    "images_per_second": {
                        "64": {"pageable": 2000.0, "pinned": 2500.0},
                        "128": {"pageable": 2100.0, "pinned": 2600.0},
                    },
                }
            },
            "both": {
                "batch": 64,
                "images_per_second": 1200.0,
                "share_of_peak": 0.55,
            },
        },
        "compile": {"backend": "inductor", "batch": 64, "images_per_second": 1250.0, "share_of_peak": 0.58},
        "pipeline": {
            "images_per_second": 1350.0,
            "share_of_embed": 0.95,
            "decoders": 15,
            "cores_decoding": 13.2,
            "decode_images_per_core_second": 102.0,
            "device_busy_share": 0.9,
        },
        "join": {
            "dim": 768,
            "sizes": [
                {
                    "num_vectors": 1_000_000,
                    "seconds": 2.0,
                    "all_seconds": [2.1, 2.0, 2.0],
                    "num_pairs": 5000,
                    "flop_per_second": 3.8e14,
                    "share_of_peak": 0.54,
                }
            ],
            "fit": {"a": 0.01, "b": 4e-7, "c": 2e-12, "error_at_largest": -0.3},
            "foretold": {"num_vectors": 10_000_000, "seconds": 200.0},
        },
        "fused": {
            "is_measured": True,
            "blocks": [128, 256, 64, 8, 3],
            "sizes": [
                {
                    "num_vectors": 1_000_000,
                    "group": 2,
                    "share_again": 0.016,
                    "plain_seconds": 2.0,
                    "fused_seconds": 1.6,
                    "all_seconds": {"plain": [2.1, 2.0, 2.0], "fused": [1.7, 1.6, 1.6]},
                    "ratio": 1.25,
                    "num_pairs": 5000,
                    "flop_per_second": 4.8e14,
                    "share_of_peak": 0.68,
                }
            ],
            "least_ratio": 1.25,
        },
        "mof": {
            "num_parameters": 1_900_000_000,
            "tokens_per_second": 30_000.0,
            "step_seconds": 0.55,
            "share_of_measured_peak": 0.41,
            "share_of_published_peak": 0.3,
            "largest_difference": 0.004,
        },
    },
}
