"""A model, or a judge, that says what a test wants, and a benchmark of doors to ask it about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mmvp_ray.benchmark.benchmark import Benchmark, collect
from mmvp_ray.benchmark.items import Question
from mmvp_ray.evaluate.responder import Ask, Reply
from tests.conftest import jpeg


class Scripted:
    """Gives each prompt what `say` makes of it: a text, or None for a refusal."""

    def __init__(self, name: str, say: Callable[[Ask], str | None], *, retry_helps: bool = False) -> None:
        self.name = name
        self.say = say
        self.retry_helps = retry_helps
        self.asked: list[Ask] = []

    def identity(self) -> dict[str, str]:
        return {"model": self.name}

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            self.asked.append(ask)
            text = self.say(ask)
            error = "status 403: flagged" if text is None else None
            yield Reply(key=ask.key, text=text, error=error, retry_helps=text is None and self.retry_helps)


def doors(folder: Path, *, num_pairs: int, answers: tuple[int, int]) -> Benchmark:
    """Pairs of questions "Is door 3 b open?" about one picture; `answers` are those to a and to b: 0 for Open, 1 for Closed."""
    picture = folder / "x.jpg"
    picture.write_bytes(jpeg(1))
    return collect(
        [
            Question(
                pair_id=f"{pair:02}",
                item=item,
                image_uri=str(picture),
                text=f"Is door {pair} {item} open?",
                options=("Open", "Closed"),
                answer=answer,
            )
            for pair in range(num_pairs)
            for item, answer in zip("ab", answers, strict=True)
        ],
        name="doors",
    )
