"""How the embedding pass runs: batch size, threads and actors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmvp_ray.errors import ConfigError

DEFAULT_BATCH_SIZE = {"cuda": 256, "cpu": 32}


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """Options of the embedding pass. Batch size and threads are fixed by it, so that tables are bit-equal on the same hardware."""

    batch_size: int | None = None
    """Images in a batch; 256 on a GPU, 32 on a CPU unless given."""
    num_threads: int = 2
    """CPU threads of an encoder actor; matters where the encoder runs on a CPU."""
    cpu_products: Literal["auto", "float32"] = "auto"
    """How float32 encoders multiply on a CPU: auto takes the hardware's bfloat16 products with float32 sums (AMX) for encoders whose vectors stay (a cosine of 0.99995 on probe images); float32 never does."""
    num_actors: int | None = None
    """Encoder actors; as many as the GPUs (or the CPU threads) allow unless given."""
    num_drivers: int | None = None
    """Processes that drive Ray Data, each with its part of the shards and the actors; one for every 64 actors unless given, fewer on nodes of few CPUs: each has an equal part of every node, in whole CPUs."""
    gpus_per_actor: float = 1.0
    """GPUs of an encoder actor; a fraction lets several share one."""

    stuck_seconds: float = 900.0
    """Longest time for one batch of an encoder, or for decoding 16 images: a worker that takes longer is taken to hang, ended and replaced, and the image that it hangs on is rejected."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("batch_size", "num_threads", "num_actors", "num_drivers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"expected at least 1, found {value} in --{name.replace('_', '-')}; give a positive number"
                )
        if not self.stuck_seconds >= 1:
            raise ConfigError(
                f"expected at least 1, found {self.stuck_seconds} in --stuck-seconds; a batch may take minutes on a busy CPU, the default is 900"
            )
        if not 0 < self.gpus_per_actor <= 64 or (
            self.gpus_per_actor > 1 and self.gpus_per_actor != int(self.gpus_per_actor)
        ):
            raise ConfigError(
                f"expected a fraction up to 1 or a whole number, found {self.gpus_per_actor} in --gpus-per-actor; Ray shares one GPU or gives several"
            )
