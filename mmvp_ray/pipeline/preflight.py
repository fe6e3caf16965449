"""Before Ray starts: what there is to do and what it will cost, and every reason to refuse that can be known by then."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.embed import EmbedConfig, Plan
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ConfigError, ResourceError
from mmvp_ray.pipeline import cost
from mmvp_ray.pipeline.cost import Forecast as Forecast
from mmvp_ray.pipeline.unit_costs import GPU_PEAK_FLOP_PER_SECOND, Hardware, calibrated, table_costs

MEMORY_SHARE = 0.8
NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "glusterfs",
        "fuse.glusterfs",
        "fuse.sshfs",
        "fuse.s3fs",
        "fuse.gcsfuse",
        "afs",
    ]
)


def has_gpu_device() -> bool:
    """Whether this machine may have a GPU for torch: False says so without torch's import, which takes seconds, where Linux shows no device."""
    if sys.platform != "linux":
        return True
    return any(next(Path("/dev").glob(name), None) is not None for name in ("nvidia*", "nvhost*", "dxg", "kfd"))


def choose_device(device: str, session: Session, *, wait_seconds: float = 0.0) -> str:
    """The device, "cuda" or "cpu", that --device means here.

    Args:
        device: "cuda", "cpu" or "auto".
        session: The Ray session.
        wait_seconds: How long to wait for a cluster to grow its first GPU, where "cuda" is asked for.

    Raises:
        ResourceError: a GPU is asked for and there is none.
    """
    if device == "cpu":
        return "cpu"
    waits = device == "cuda" and wait_seconds > 0 and session.joins_cluster
    if waits:
        has_gpu = session.wait_for_gpus(wait_seconds)
    elif session.joins_cluster:
        has_gpu = session.resources().num_gpus > 0
    elif not has_gpu_device():
        has_gpu = False
    else:
        import torch

        has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        where = "the cluster" if session.joins_cluster else "this machine"
        if waits:
            raise ResourceError(
                f"expected a GPU for --device cuda, found none in {where} after {wait_seconds:g} s; see `ray status` for why no node "
                f"came, raise --wait-for-gpus, or use --device cpu"
            )
        hint = ", or --wait-for-gpus SECONDS where the cluster grows by itself" if session.joins_cluster else ""
        raise ResourceError(
            f"expected a GPU for --device cuda, found none in {where}; use --device cpu, or a machine with a GPU{hint}"
        )
    return "cuda" if has_gpu else "cpu"


def hardware(device: str, session: Session) -> Hardware:
    """What a run on `device` has here: all of a cluster that it joins, else this machine."""
    if session.joins_cluster:
        have = session.resources()
        cores, gpus, gpu = have.num_cpus or 1.0, have.num_gpus, have.gpu
    else:
        cores, gpus, gpu = float(os.cpu_count() or 1), 0.0, ""
        if device == "cuda":
            import torch

            gpus, gpu = float(max(1, torch.cuda.device_count())), torch.cuda.get_device_name(0)
    if device == "cpu":
        return Hardware(num_cores=cores)
    known = next((name for name in sorted(GPU_PEAK_FLOP_PER_SECOND, key=len, reverse=True) if name in gpu.upper()), gpu)
    return Hardware(num_cores=cores, num_gpus=gpus, gpu=known)


def forecast(
    plan: Plan,
    specs: Mapping[str, EncoderSpec],
    *,
    device: str,
    num_images_total: int,
    nears: Sequence[str] | None = None,
    on: Hardware | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Forecast:
    """What a run will take.

    Args:
        plan: What is left to embed.
        specs: The encoders by slug.
        device: "cuda" or "cpu".
        num_images_total: Images that will be joined.
        nears: Slugs of the near encoders; the first spec's unless given.
        on: What does it; one GPU, or this machine's cores, unless given.
        measured: The unit costs in an earlier run's manifest; they go before the table's.
    """
    on = on or Hardware(num_cores=float(os.cpu_count() or 1), num_gpus=1.0 if device == "cuda" else 0.0)
    return cost.forecast(
        plan,
        specs,
        nears=list(specs)[:1] if nears is None else nears,
        num_images_total=num_images_total,
        hardware=on,
        costs=calibrated(table_costs(on), measured, on),
    )


def check_writable(url: str, *, flag: str) -> None:
    """Write and remove a small file below `url`; folders that were not there are not there afterwards either.

    Raises:
        ConfigError: no permission, or a file lies where the folder should. ResourceError: the disk is full.
    """
    if storage.is_local(url) and Path(url).exists() and not Path(url).is_dir():
        raise ConfigError(f"expected a folder, found a file at {url} in {flag}; choose another")
    new = [folder for folder in (Path(url), *Path(url).parents) if not folder.exists()] if storage.is_local(url) else []
    probe = storage.join(url, f".mmvp-ray-probe-{os.getpid()}")
    try:
        storage.write_bytes(probe, b"ok")
        storage.remove(probe)
    except (NotADirectoryError, FileExistsError) as error:
        raise ConfigError(
            f"expected a folder that can be written, found {error} for {flag} {url}; choose another"
        ) from error
    # --plan leaves no trace: a dated run's folder would count as a run that was begun. Whoever wrote to one meanwhile keeps it.
    with contextlib.suppress(OSError):
        for folder in new:
            folder.rmdir()


def check_room(
    expected: Forecast,
    specs: dict[str, EncoderSpec],
    config: EmbedConfig,
    *,
    device: str,
    store: str,
    joins_cluster: bool = False,
) -> None:
    """Compare the forecast with this machine's free disk and memory.

    Args:
        expected: What the run needs.
        specs: The encoders by slug.
        config: How many actors hold them.
        device: "cuda" or "cpu".
        store: Where the store lies.
        joins_cluster: The encoders are held by other machines, whose memory is Ray's to give.

    Raises:
        ResourceError: the store would not fit on its disk, or the encoders not into memory.
    """
    free = storage.free_bytes(store)
    if free is not None and expected.store_bytes > free:
        raise ResourceError(
            f"expected {expected.store_bytes / 1e9:,.1f} GB free for the store at {store}, found {free / 1e9:,.1f} GB; free space or choose another --store"
        )
    if device == "cpu" and expected.num_images and not joins_cluster:
        actors = config.num_actors or max(1, (os.cpu_count() or 1) // config.num_threads)
        needed = actors * sum(spec.num_parameters * (2 if spec.dtype == "bfloat16" else 4) for spec in specs.values())
        free = int(psutil.virtual_memory().available * MEMORY_SHARE)
        if needed > free:
            raise ResourceError(
                f"expected {needed / 1e9:,.1f} GB of memory for {actors} copies of the encoders, found {free / 1e9:,.1f} GB free; lower --num-actors"
            )


def check_shared(session: Session, urls: dict[str, str]) -> None:
    """Refuse a folder on one node's own disk when the cluster has several nodes.

    Args:
        session: A session that joins a cluster; others have one node.
        urls: Flag to URL.

    Raises:
        ConfigError: such a folder.
    """
    if not session.joins_cluster:
        return
    have = session.resources()
    # A head that takes no tasks is one of several nodes, even while the others have yet to come.
    if have.num_nodes < 2 and have.num_cpus > 0:
        return
    nodes = f"{have.num_nodes} nodes" if have.num_nodes > 1 else "nodes, the head without CPUs and its workers,"
    for flag, url in urls.items():
        if storage.is_local(url) and _file_system_type(url) not in NETWORK_FILE_SYSTEMS:
            raise ConfigError(
                f"expected a place that all {nodes} see, found {url} on one node's own disk in {flag}; "
                f"use s3://, gs:// or a network file system"
            )


def _file_system_type(path: str) -> str:
    mounts = sorted(
        psutil.disk_partitions(all=True),
        key=lambda mount: len(mount.mountpoint),
        reverse=True,
    )
    for mount in mounts:
        if path == mount.mountpoint or path.startswith(mount.mountpoint.rstrip("/") + "/"):
            return str(mount.fstype)
    return ""
