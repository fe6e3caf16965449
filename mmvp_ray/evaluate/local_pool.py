"""PooledResponder: copies of a local model, each held by an actor of Ray; one that dies is replaced and its prompts are asked again."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmvp_ray.cluster import Inline, Session
from mmvp_ray.errors import ConfigError, ResourceError
from mmvp_ray.evaluate.local_models import batches
from mmvp_ray.evaluate.local_responder import LocalResponder
from mmvp_ray.evaluate.responder import Ask, Reply
from mmvp_ray.task_errors import own_error

log = logging.getLogger(__name__)

BATCHES_PER_REPLICA = 2
"""One that is answered and one that waits for its end."""
NUM_DEATHS = 2
"""A batch that so many replicas died over is taken to pieces; a prompt that so many died over has no answer."""
DEATHS_IN_A_ROW = 6
"""So many replicas dead, and as many again for each replica of the pool, without one reply: they will not live."""
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """Copies of a model of this machine or of a cluster."""

    replicas: int | None = None
    """Copies of a model, each an actor of Ray; unless given one for each GPU of a cluster, or of this machine if it has several, else none."""
    gpus_per_replica: float = 1.0
    """GPUs of one copy."""
    cpus_per_replica: float = 1.0
    """CPUs of one copy."""
    address: str | None = None
    """A running Ray cluster for them; RAY_ADDRESS if it is set, else one of this process alone."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        if self.replicas is not None and self.replicas < 1:
            raise ConfigError(f"expected at least 1, found {self.replicas} in --replicas")
        for name in ("gpus_per_replica", "cpus_per_replica"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"expected more than 0, found {getattr(self, name)} in --{name.replace('_', '-')}")


def place(pool: PoolConfig, device: str, session: Session) -> tuple[int, str]:
    """(copies on Ray, their device): 0 copies where this process answers itself.

    Args:
        pool: As asked for.
        device: "auto", "cpu", "cuda" or "cuda:N", as asked for.
        session: Where they would run.

    Raises:
        ConfigError: several copies on one numbered GPU. ResourceError: a GPU is asked for and there is none.
    """
    pool.check()
    if device.startswith("cuda:"):
        if pool.replicas is None:
            return 0, device
        raise ConfigError(
            f"expected --device cuda, cpu or auto with --replicas, found {device!r}; Ray chooses the GPUs"
        )
    if pool.replicas is None and device == "cpu":
        return 0, device
    num_gpus = _num_gpus(session) if device != "cpu" else 0.0
    if device == "cuda" and num_gpus < pool.gpus_per_replica:
        raise ResourceError(
            f"expected {pool.gpus_per_replica:g} GPUs for --device cuda, found {num_gpus:g}; use --device cpu, or a machine with a GPU"
        )
    fitting = int(num_gpus / pool.gpus_per_replica)
    if pool.replicas is not None:
        return pool.replicas, "cuda" if fitting else "cpu"
    return (fitting, "cuda") if fitting > 1 or (fitting and session.joins_cluster) else (0, device)


def _num_gpus(session: Session) -> float:
    if session.joins_cluster or session.is_started:
        return session.resources().num_gpus
    import torch

    return float(torch.cuda.device_count()) if torch.cuda.is_available() else 0.0


@dataclass
class _Batch:
    asks: list[Ask]
    num_deaths: int = 0


@dataclass(eq=False)
class _Replica:
    """The driver's side of one actor."""

    actor: Any
    loading: Any
    out: deque[tuple[Any, _Batch]] = field(default_factory=deque)


class PooledResponder:
    """A local model that several actors hold; its answers and its identity are those of the one model.

    Args:
        responder: The model, not loaded; every actor gets it and loads it.
        session: Where actors run; with `Inline()` this process answers.
        num_replicas: Actors. Those that the cluster has no room for yet join in when it has.
        num_cpus: CPUs of each.
        num_gpus: GPUs of each; 0 for a model on the CPU.
    """

    def __init__(
        self, responder: LocalResponder, session: Session, *, num_replicas: int, num_cpus: float, num_gpus: float
    ) -> None:
        self.responder = responder
        self._session = session
        self._num_replicas = num_replicas
        self._options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus}

    @property
    def name(self) -> str:
        """The model's name."""
        return self.responder.name

    def identity(self) -> dict[str, str]:
        """The model's: which actor answered does not matter."""
        return self.responder.identity()

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        """See `Responder.answer`. Actors start with the first prompt and end with the last.

        Raises:
            MmvpError: the model cannot be loaded, as `LocalResponder.answer` raises it. ResourceError: actors die without answering, or a
                machine's own Ray has no room for one.
        """
        if isinstance(self._session, Inline):
            yield from self.responder.answer(asks)
            return
        self._session.start()
        self._check_room()
        pool = _Pool(self.responder, self._options, self._num_replicas)
        try:
            yield from pool.answer(batches(asks, self.responder.spec.config.batch_size))
        finally:
            pool.close()

    def _check_room(self) -> None:
        have = self._session.resources()
        lacking = have.num_cpus < self._options["num_cpus"] or have.num_gpus < self._options["num_gpus"]
        if lacking and not self._session.joins_cluster:
            raise ResourceError(
                f"expected {self._options['num_cpus']:g} CPUs and {self._options['num_gpus']:g} GPUs for a copy of {self.name}, found "
                f"{have.num_cpus:g} and {have.num_gpus:g}; lower --cpus-per-replica, or leave --replicas out"
            )


class _Pool:
    """Actors while one iterator of batches is answered."""

    def __init__(self, responder: LocalResponder, options: dict[str, Any], num_replicas: int) -> None:
        self._responder = responder
        self._options = options
        self._replicas = [self._started() for _ in range(num_replicas)]
        self._again: deque[_Batch] = deque()
        self._deaths_in_a_row = 0

    def answer(self, source: Iterator[list[Ask]]) -> Iterator[Reply]:
        """Replies to all batches as they come."""
        import ray

        exhausted = False
        while True:
            for replica in self._replicas:
                while replica.loading is None and len(replica.out) < BATCHES_PER_REPLICA:
                    if self._again:
                        batch = self._again.popleft()
                    elif not exhausted and (drawn := next(source, None)) is not None:
                        batch = _Batch(drawn)
                    else:
                        exhausted = True
                        break
                    replica.out.append((replica.actor.answer.remote(batch.asks), batch))
            waiting = {ref: replica for replica in self._replicas for ref, _ in replica.out}
            if not waiting and not self._again and exhausted:
                return
            waiting |= {replica.loading: replica for replica in self._replicas if replica.loading is not None}
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=PATIENCE_SECONDS)
            if not done and all(replica.loading is not None for replica in self._replicas):
                log.warning("no copy of %s could be started yet: the cluster has no room", self._responder.name)
            for ref in done:
                yield from self._ended(waiting[ref], ref)

    def close(self) -> None:
        """End all actors."""
        import ray

        # A generator that nobody reads to its end may be closed after the session is: a call would then start Ray anew.
        if ray.is_initialized():
            for replica in self._replicas:
                ray.kill(replica.actor)

    def _started(self) -> _Replica:
        import ray

        actor: Any = ray.remote(max_restarts=0, **self._options)(_Answering).remote(self._responder)
        return _Replica(actor, actor.is_there.remote())

    def _ended(self, replica: _Replica, ref: Any) -> Iterator[Reply]:
        import ray

        try:
            found = ray.get(ref)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            yield from self._replaced(replica, error)
            return
        except ray.exceptions.RayError as error:
            raise own_error(error) from error
        if ref == replica.loading:
            replica.loading = None
            return
        at = next(at for at, (one, _) in enumerate(replica.out) if one == ref)
        del replica.out[at]
        self._deaths_in_a_row = 0
        yield from found

    def _replaced(self, replica: _Replica, error: Exception) -> Iterator[Reply]:
        """Another actor in the place of one that died; its prompts wait for their turn, but for one that has cost too many actors."""
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= DEATHS_IN_A_ROW + len(self._replicas):
            raise ResourceError(
                f"expected copies of {self._responder.name} that live, found {self._deaths_in_a_row} that died one after the other without an "
                f"answer ({' '.join(str(error).split())[:200]}); they may need more memory: take fewer, or a smaller --batch-size"
            ) from error
        log.warning("a copy of %s died; starting another", self._responder.name)
        out = [batch for _, batch in replica.out]
        self._replicas[self._replicas.index(replica)] = self._started()
        # Actors take batches in order: the first is the one that was being answered.
        for batch in out[:1]:
            batch.num_deaths += 1
            if batch.num_deaths < NUM_DEATHS:
                self._again.append(batch)
            elif len(batch.asks) > 1:
                self._again.extend(_Batch([ask]) for ask in batch.asks)
            else:
                why = f"{NUM_DEATHS} copies of {self._responder.name} died over this prompt"
                yield Reply(key=batch.asks[0].key, error=why, num_attempts=NUM_DEATHS)
        self._again.extend(out[1:])


class _Answering:
    """The actor."""

    def __init__(self, responder: LocalResponder) -> None:
        self._responder = responder

    def is_there(self) -> bool:
        """True, once the actor has a place."""
        return True

    def answer(self, asks: list[Ask]) -> list[Reply]:
        """Replies to one batch."""
        return list(self._responder.answer(asks))
