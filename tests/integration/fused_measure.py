"""Run with TRITON_INTERPRET=1: part fused of benchmarks.gpu on a CPU, so that no lent GPU is the first to run it; prints its figures as JSON."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch

from benchmarks import gpu_fused, gpu_join
from benchmarks.gpu_bench import Bench
from mmvp_ray.search import fused_products, proposers

ON_CPU = "cpu"


class Figures(dict[str, Any]):
    """What a part finds, kept nowhere."""

    def add(self, **figures: Any) -> None:
        """Keep them."""
        self.update(figures)


def main() -> None:
    """Measure a small world; whatever would be made or done on the GPU is on the CPU."""
    proposers.PROPOSERS["fused"] = functools.partial(proposers._fused_proposer, device=ON_CPU)
    proposers.PROPOSERS["cuda"] = functools.partial(proposers._numpy_proposer, way="cuda")
    fused_products.blocks_for = lambda device: fused_products.SMALL
    torch.cuda.synchronize = lambda device=None: None
    plant, grouped = gpu_join.plant, gpu_fused.grouped
    gpu_fused.plant = lambda num, dim, device, **options: plant(num, dim, ON_CPU, **options)
    gpu_fused.grouped = lambda num, group, dim, device: grouped(num, group, dim, ON_CPU)
    gpu_fused.CHECKED, gpu_fused.WORLDS, gpu_fused.ROUNDS = 600, {"smoke": ((700, 2), (700, 7))}, 1
    figures = Figures()
    gpu_fused.measure_fused(Bench(device="cuda", scale="smoke", peaks={"float16": 1e12}), figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
