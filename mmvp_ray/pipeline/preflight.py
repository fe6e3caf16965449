"""Before Ray starts: what there is to do and what it will cost, and every reason to refuse that can be known by then."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.embed import EmbedConfig, Plan
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ConfigError, ResourceError

DECODE_IMAGES_PER_SECOND = 146.0
"""One core, Pillow, ImageNet's native sizes to 224 px (research/ray.md, measured)."""
FLOP_PER_SECOND = {"cuda": 3.0e14, "cpu": 4.0e10}
"""What one GPU, or one core, is taken to reach: assumptions for the estimate alone."""
ROW_BYTES = 400
"""About what one image costs in the images table."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What the run will take, roughly.

    Attributes:
        num_images: Images left to embed.
        num_pieces: Pieces left.
        embed_hours: Decoding or encoding, whichever is slower.
        join_hours: The exact join of all images of the run.
        store_bytes: New bytes in the store.
    """

    num_images: int
    num_pieces: int
    embed_hours: float
    join_hours: float
    store_bytes: int


def choose_device(device: str, session: Session) -> str:
    """The device, "cuda" or "cpu", that --device means here.

    Raises:
        ResourceError: a GPU is asked for and there is none.
    """
    if device == "cpu":
        return "cpu"
    if session.joins_cluster:
        has_gpu = session.resources().num_gpus > 0
        where = "the cluster"
    else:
        import torch

        has_gpu = torch.cuda.is_available()
        where = "this machine"
    if device == "cuda" and not has_gpu:
        raise ResourceError(
            f"expected a GPU for --device cuda, found none in {where}; use --device cpu, or a machine with a GPU"
        )
    return "cuda" if has_gpu else "cpu"


def forecast(
    plan: Plan,
    specs: dict[str, EncoderSpec],
    *,
    device: str,
    num_images_total: int,
    num_workers: float | None = None,
) -> Forecast:
    """Rough hours and bytes of a run; measured nowhere but in the constants above.

    Args:
        plan: What is left to embed.
        specs: The encoders.
        device: "cuda" or "cpu".
        num_images_total: Images that will be joined.
        num_workers: GPUs, or cores; one GPU, or this machine's cores, unless given.
    """
    flop_per_image = sum(2.0 * spec.num_parameters * _num_tokens(spec) for spec in specs.values())
    cores = float(os.cpu_count() or 1)
    num_workers = num_workers or (1.0 if device == "cuda" else cores)
    encode_seconds = plan.num_images_left * flop_per_image / (FLOP_PER_SECOND[device] * num_workers)
    decode_seconds = plan.num_images_left / (DECODE_IMAGES_PER_SECOND * cores)
    near_dim = next(iter(specs.values())).dim
    join_seconds = float(num_images_total) ** 2 * near_dim / (FLOP_PER_SECOND[device] * num_workers)
    row_bytes = ROW_BYTES + sum(2 * spec.dim + 16 for spec in specs.values())
    return Forecast(
        num_images=plan.num_images_left,
        num_pieces=plan.num_pieces_left,
        embed_hours=max(encode_seconds, decode_seconds) / 3600.0,
        join_hours=join_seconds / 3600.0,
        store_bytes=plan.num_images_left * row_bytes,
    )


def _num_tokens(spec: EncoderSpec) -> float:
    height_px, width_px = spec.geometry.shape_px
    return height_px * width_px / 14.0**2


def check_writable(url: str, *, flag: str) -> None:
    """Write and remove a small file below `url`.

    Raises:
        ConfigError: no permission, or a file lies where the folder should. ResourceError: the disk is full.
    """
    if storage.is_local(url) and Path(url).exists() and not Path(url).is_dir():
        raise ConfigError(f"expected a folder, found a file at {url} in {flag}; choose another")
    probe = storage.join(url, f".mmvp-ray-probe-{os.getpid()}")
    try:
        storage.write_bytes(probe, b"ok")
        storage.remove(probe)
    except (NotADirectoryError, FileExistsError) as error:
        raise ConfigError(
            f"expected a folder that can be written, found {error} for {flag} {url}; choose another"
        ) from error


def check_room(
    expected: Forecast,
    specs: dict[str, EncoderSpec],
    config: EmbedConfig,
    *,
    device: str,
    store: str,
) -> None:
    """Compare the forecast with this machine's free disk and memory.

    Raises:
        ResourceError: the store would not fit on its disk, or the encoders not into memory.
    """
    free = storage.free_bytes(store)
    if free is not None and expected.store_bytes > free:
        raise ResourceError(
            f"expected {expected.store_bytes / 1e9:,.1f} GB free for the store at {store}, found {free / 1e9:,.1f} GB; free space or choose another --store"
        )
    if device == "cpu" and expected.num_images:
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
    if not session.joins_cluster or session.resources().num_nodes < 2:
        return
    for flag, url in urls.items():
        if storage.is_local(url) and _file_system_type(url) not in NETWORK_FILE_SYSTEMS:
            raise ConfigError(
                f"expected a place that all {session.resources().num_nodes} nodes see, found {url} on one node's own disk in {flag}; "
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
