"""What a unit of work costs: a table of rates with their sources, and the rates that an earlier run measured, which go before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.pipeline.results import MANIFEST

DECODE_IMAGES_PER_SECOND = 146.0
"""One core, Pillow, photographs of ImageNet's native sizes to 224 px; 158 to 218 in the pipeline (docs/performance_notes.md, measured)."""
CPU_ENCODE_FLOP_PER_SECOND = 9.0e10
"""One core, fp32, CLIP ViT-L/14: 180 GFLOP/s on two (measured on an AMD EPYC). Models of width 128 reach a third."""
CPU_JOIN_FLOP_PER_SECOND = 1.0e11
"""One core, fp32, the exact engine without AMX: 7.7e12 operations for 100,000 vectors of 768 numbers (docs/performance_notes.md, measured)."""
ENCODE_SHARE, JOIN_SHARE = 0.30, 0.40
"""Of a GPU's dense 16-bit peak: assumptions, not measured here."""
GPU_PEAK_FLOP_PER_SECOND = {
    "T4": 65e12,
    "V100": 125e12,
    "A10G": 70e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
"""Dense 16-bit tensor operations a second (NVIDIA's data sheets; SXM where there are several forms)."""
UNKNOWN_GPU = "H100"
CORES_PER_GPU = 14
"""Of a stated cluster that names none: a worker of k8s/base."""
MIN_MEASURED_SECONDS = 1.0
"""A stage that took less says more about its start than about its rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """What a run works on.

    Attributes:
        num_cores: CPU cores that decode, and do everything else where there is no GPU.
        num_gpus: GPUs.
        gpu: Their name; empty without.
    """

    num_cores: float
    num_gpus: float = 0.0
    gpu: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """A stated cluster: NUMxGPU, NUMxCPU or both with a comma, such as 8xH100, 64xCPU or 8xL40S,128xCPU.

        Raises:
            ConfigError: another form, or a GPU that the table does not know.
        """
        cores = gpus = 0.0
        name = ""
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*x\s*(\w+)\s*", part, re.IGNORECASE)
            kind = match[2].upper() if match else ""
            if match is None or int(match[1]) < 1 or kind not in (*GPU_PEAK_FLOP_PER_SECOND, "CPU"):
                raise ConfigError(
                    f"expected NUMxKIND such as 8xH100, 64xCPU or 8xL40S,128xCPU, found {text!r} in --plan-cluster; kinds are "
                    f"CPU, {', '.join(GPU_PEAK_FLOP_PER_SECOND)}"
                )
            if kind == "CPU":
                cores += int(match[1])
            elif name and name != kind:
                raise ConfigError(
                    f"expected one kind of GPU, found {text!r} in --plan-cluster; plan each kind by itself"
                )
            else:
                gpus, name = gpus + int(match[1]), kind
        return cls(num_cores=cores or CORES_PER_GPU * gpus, num_gpus=gpus, gpu=name)

    @property
    def num_devices(self) -> float:
        """GPUs, or cores where there are none: what encodes and joins."""
        return self.num_gpus or self.num_cores

    def text(self) -> str:
        """For people."""
        cores = f"{self.num_cores:g} core" + ("" if self.num_cores == 1 else "s")
        if not self.num_gpus:
            return cores
        return f"{self.num_gpus:g} {self.gpu or 'GPU'}{'' if self.num_gpus == 1 or self.gpu else 's'} and {cores}"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitCosts:
    """Rates of one kind of device.

    Attributes:
        decode_images_per_second: Of one core.
        encode_flop_per_second: Of one GPU, or one core.
        join_flop_per_second: Likewise.
        encode_images_per_second: Measured, by encoder's slug, of one GPU or core; goes before the rate in operations.
        sources: Where each rate comes from.
    """

    decode_images_per_second: float
    encode_flop_per_second: float
    join_flop_per_second: float
    encode_images_per_second: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


def table_costs(hardware: Hardware) -> UnitCosts:
    """The rates of the table."""
    decode = "table: measured on one core, photographs to 224 px"
    if not hardware.num_gpus:
        return UnitCosts(
            decode_images_per_second=DECODE_IMAGES_PER_SECOND,
            encode_flop_per_second=CPU_ENCODE_FLOP_PER_SECOND,
            join_flop_per_second=CPU_JOIN_FLOP_PER_SECOND,
            sources={
                "decode": decode,
                "encode": "table: measured on one core, fp32, ViT-L/14",
                "join": "table: measured on one core, fp32",
            },
        )
    known = hardware.gpu in GPU_PEAK_FLOP_PER_SECOND
    peak = GPU_PEAK_FLOP_PER_SECOND[hardware.gpu if known else UNKNOWN_GPU]
    taken = "" if known else f" of an {UNKNOWN_GPU}, for {hardware.gpu or 'a GPU'} is not in the table"
    return UnitCosts(
        decode_images_per_second=DECODE_IMAGES_PER_SECOND,
        encode_flop_per_second=ENCODE_SHARE * peak,
        join_flop_per_second=JOIN_SHARE * peak,
        sources={
            "decode": decode,
            "encode": f"assumed: {ENCODE_SHARE:.0%} of the data sheet's 16-bit peak{taken}",
            "join": f"assumed: {JOIN_SHARE:.0%} of the data sheet's 16-bit peak{taken}",
        },
    )


def calibrated(costs: UnitCosts, measured: Mapping[str, Any] | None, hardware: Hardware) -> UnitCosts:
    """The rates with those that an earlier run measured in their place.

    Args:
        costs: From the table.
        measured: `unit_costs` of that run's manifest; None for no such run.
        hardware: What the rates are wanted for: rates of GPUs count only for the same GPU, those of cores for cores.
    """
    if measured is None:
        return costs
    sources = dict(costs.sources)
    run = f"measured by {measured.get('run', 'an earlier run')}"
    if rate := measured.get("decode_images_per_second"):
        costs = replace(costs, decode_images_per_second=float(rate))
        sources["decode"] = run
    if measured.get("gpu", "") == (hardware.gpu if hardware.num_gpus else ""):
        if encoders := measured.get("encode_images_per_second"):
            costs = replace(costs, encode_images_per_second={slug: float(rate) for slug, rate in encoders.items()})
            sources["encode"] = run
        if rate := measured.get("join_flop_per_second"):
            costs = replace(costs, join_flop_per_second=float(rate))
            sources["join"] = run
    return replace(costs, sources=sources)


def measured_costs(*folders: str | None) -> dict[str, Any] | None:
    """The unit costs in the manifest of the first of some runs' folders that has any."""
    for folder in folders:
        if folder is None:
            continue
        uri = storage.join(folder, MANIFEST)
        try:
            manifest = storage.read_json(uri) if storage.exists(uri) else {}
        except DataError:
            continue
        found = manifest.get("unit_costs") if isinstance(manifest, dict) else None
        if isinstance(found, dict):
            return {**found, "run": folder}
    return None
