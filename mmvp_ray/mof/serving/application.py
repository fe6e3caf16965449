"""The Ray Serve application: how many copies of ChatReplica with which resources; for jobs/serve_mof.py and for Serve's config files."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve

from mmvp_ray import config as configs
from mmvp_ray import errors
from mmvp_ray.cluster import Session
from mmvp_ray.encoders.folders import is_url
from mmvp_ray.encoders.hf_files import read_config
from mmvp_ray.encoders.locations import looks_like_path
from mmvp_ray.errors import ConfigError, MmvpError, ResourceError
from mmvp_ray.evaluate.local_spec import about_models
from mmvp_ray.mof.answering import MODEL_TYPE
from mmvp_ray.mof.serving.api_keys import read_keys
from mmvp_ray.mof.serving.config import ServeConfig
from mmvp_ray.mof.serving.replica import ChatReplica

log = logging.getLogger(__name__)

NAME = "mof"
NUM_START_ATTEMPTS = 2
"""A copy that does not start so often ends the start of the server."""
SPARE_REQUESTS = 64
"""Requests beside the held ones that a copy looks at: health, and those that it refuses with a reason."""
QUEUED_REQUESTS = 512
"""Requests that wait for any copy to look at them; Serve itself refuses further ones (503, a text)."""
HEALTH_SECONDS = 10.0
LOOK_SECONDS = 1.0
DRAIN_SPARE_SECONDS = 5.0
"""Beside the time for answers, for the word to and from the copies."""
CLOSING_SECONDS = 10.0
"""What the end of the server takes beside the time for answers."""


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file, whose `args` are fields of ServeConfig.

    Raises:
        ConfigError: a field is unknown or out of range.
    """
    return application(configs.from_mapping(ServeConfig, args, where="args"))


def application(config: ServeConfig) -> serve.Application:
    """The application of a config, in a process that is connected to Ray.

    Raises:
        ConfigError: a field cannot be used. ResourceError: GPUs are asked for and there are none.
    """
    config.check()
    num_gpus = _gpus(config)
    keys = read_keys(config.api_key_file) if config.api_key_file else frozenset[bytes]()
    scale: dict[str, Any] = {"num_replicas": config.replicas}
    if config.max_replicas is not None:
        scale = {
            "autoscaling_config": {
                "min_replicas": config.replicas,
                "max_replicas": config.max_replicas,
                "target_ongoing_requests": config.max_batch_size,
            }
        }
    deployment: Any = serve.deployment(
        name="model",
        max_ongoing_requests=config.max_waiting + SPARE_REQUESTS,
        max_queued_requests=QUEUED_REQUESTS,
        ray_actor_options={"num_cpus": config.cpus_per_replica, "num_gpus": num_gpus},
        graceful_shutdown_timeout_s=config.stop_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_SECONDS,
        max_constructor_retry_count=NUM_START_ATTEMPTS,
        **scale,
    )(ChatReplica)
    found: serve.Application = deployment.bind(config, "cuda" if num_gpus else "cpu", keys)
    return found


def run_server(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve until interrupted; requests that are being answered are answered before this returns.

    Args:
        config: What is served.
        say: Told, once, when requests are taken.

    Raises:
        ConfigError: a field cannot be used, or Serve runs on the cluster already. MmvpError: the model does not load.
    """
    config.check()
    config = dataclasses.replace(config, model=_checked(config.model), name=config.served_name)
    with Session(config.address) as session:
        session.start()
        if serve.status().proxies:
            raise ConfigError(
                "expected no Ray Serve on the cluster, found one that runs; end it with `serve shutdown`, or give another --address"
            )
        app = application(config)
        try:
            serve.start(http_options={"host": config.host, "port": config.port})
            # A copy takes requests before the others and the line are there.
            try:
                _started(app)
                say(f"serving {config.served_name} at http://{config.host}:{config.port}/v1")
                while True:
                    time.sleep(LOOK_SECONDS)
            finally:
                _drain(config.stop_seconds)
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _drain(seconds: float) -> None:
    """Let the copies answer what they hold: the end of Serve ends its proxies at once, whose connections answers go through."""
    try:
        if not _has_copies():
            return
        copies = serve.get_app_handle(NAME).broadcast("drain", seconds)
        # A copy that died takes nothing from the others, which have all their time.
        said = copies.results(timeout_s=seconds + DRAIN_SPARE_SECONDS, return_exceptions=True)
    # Without its copies the server stops all the same.
    except Exception as error:
        said = [error]
    for found in said:
        if isinstance(found, Exception):
            log.warning("a copy did not say that it answered what it held: %s", _first_line(found))
    num_left = sum(found for found in said if isinstance(found, int))
    if num_left:
        log.warning("%d requests had no answer after %g s (--stop-seconds)", num_left, seconds)


def _has_copies() -> bool:
    """Whether any copy runs; none does before the first one has loaded the model, nor where it does not load."""
    app = serve.status().applications.get(NAME)
    return app is not None and any("RUNNING" in found.replica_states for found in app.deployments.values())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300] or type(error).__name__


def _checked(model: str) -> str:
    """The absolute path of a local folder, which has to hold a model of ours; a URL or hub id is for the copies to open."""
    path = Path(model).expanduser()
    if is_url(model) or (not looks_like_path(model) and not path.is_dir()):
        return model
    with about_models():
        found = read_config(path, name=model).get("model_type")
    if found != MODEL_TYPE:
        raise ConfigError(
            f"expected a Mixture-of-Features model ({MODEL_TYPE}) in {model}, found a {found}; give a folder that jobs/train_mof.py exported"
        )
    return str(path.resolve())


def _started(app: serve.Application) -> None:
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise _own_error(str(error)) from error


def _own_error(text: str) -> MmvpError:
    """What a copy raised, out of the traceback that Serve makes a text of."""
    said = re.findall(r"mmvp_ray\.errors\.(\w+): (.+)", text)
    if said and isinstance(kind := getattr(errors, said[-1][0], None), type) and issubclass(kind, MmvpError):
        return kind(said[-1][1])
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return ResourceError(f"the server did not start ({''.join(last)[:300]}); Ray's logs of Serve say why")


def _gpus(config: ServeConfig) -> float:
    have = float(ray.cluster_resources().get("GPU", 0.0))  # type: ignore[no-untyped-call]
    if config.gpus_per_replica is None:
        return 1.0 if have else 0.0
    if config.gpus_per_replica > have:
        raise ResourceError(
            f"expected {config.gpus_per_replica:g} GPUs for a copy of the model, found {have:g} in the cluster; lower --gpus-per-replica"
        )
    return config.gpus_per_replica
