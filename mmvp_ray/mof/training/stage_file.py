"""stage.json: which training a folder holds, whether it is finished, and the rows that its first start left out; what goes on keeps to them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mmvp_ray import storage
from mmvp_ray.encoders.folders import is_url
from mmvp_ray.encoders.weights import hash_files
from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.data.convert import MANIFEST
from mmvp_ray.mof.data.rows import Rows
from mmvp_ray.mof.training.config import TrainConfig
from mmvp_ray.mof.training.feed import Feed
from mmvp_ray.mof.training.start import starting_point

STAGE_FILE = "stage.json"


def key_of(config: TrainConfig, rows: Rows) -> str:
    """Names a training: another model, data set or setting that changes the result has another.

    Backbones in folders count by their contents, those at URLs and `--start` by size and entity tag, those on the hub by their ids.
    """
    told = dataclasses.asdict(dataclasses.replace(config, out=None))
    # A limit changes no result, and whoever meets it is told to raise it.
    del told["missing"]["max_missing_fraction"]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for column in (rows.num_words_N, rows.num_images_N):
        digest.update(np.ascontiguousarray(column).tobytes())
    manifest = storage.read_json(storage.join(storage.normalise(str(config.rows)), MANIFEST))
    digest.update(json.dumps([part["files"] for part in manifest["parts"]], sort_keys=True).encode())
    adapters, model = starting_point(config.start)
    for uri in filter(None, (adapters, model)):
        digest.update(_listed(uri))
    if model is None:
        for name in (config.model.clip, config.model.ssl, config.model.llm):
            digest.update(_backbone(name or ""))
    return digest.hexdigest()[:16]


def is_finished(out: str) -> bool:
    """Whether the folder says that its training, whichever it is, has come to its end."""
    uri = storage.join(out, STAGE_FILE)
    found = storage.read_json(uri) if storage.exists(uri) else None
    return isinstance(found, dict) and bool(found.get("finished"))


def read_stage(out: str, key: str) -> dict[str, Any] | None:
    """What the file says of the training with this key; None where there is none yet.

    Raises:
        ConfigError: it is that of another training.
    """
    uri = storage.join(out, STAGE_FILE)
    if not storage.exists(uri):
        return None
    found = storage.read_json(uri)
    if not isinstance(found, dict) or found.get("key") != key:
        raise ConfigError(
            f"expected an empty folder or an interrupted training with the same settings, rows and weights in --out, found another training in {out}; "
            "choose another folder, or remove this one"
        )
    return found


def write_stage(out: str, key: str, stage: str, feed: Feed, *, is_finished: bool) -> None:
    """Write the file, at the start and at the end."""
    left_out = np.setdiff1d(np.arange(feed.rows.num_rows), feed.kept_K).tolist()
    told = {"key": key, "stage": stage, "finished": is_finished, "left_out": left_out}
    storage.write_json(storage.join(out, STAGE_FILE), told)


def feed_as_before(feed: Feed, found: dict[str, Any]) -> Feed:
    """The feed with the rows of the first start: images that came or went since would put all rows of an epoch into another order."""
    kept_K = np.setdiff1d(np.arange(feed.rows.num_rows, dtype=np.int64), np.array(found["left_out"], dtype=np.int64))
    return dataclasses.replace(feed, kept_K=kept_K)


def _listed(uri: str) -> bytes:
    return repr([(file.num_bytes, file.etag) for file in storage.find_files(uri)]).encode()


def _backbone(name: str) -> bytes:
    place = name.removeprefix("hf:").removeprefix("timm:")
    if is_url(place):
        return _listed(place)
    folder = Path(place).expanduser()
    files = [path for path in folder.iterdir() if path.is_file()] if place and folder.is_dir() else []
    return hash_files(files).encode() if files else b""
