"""What the miniature Mixture-of-Features experiment is made of is found again, or made again, wherever it was killed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmvp_ray import storage
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.benchmark.table import write_table
from mmvp_ray.miniature.benchmark import make_mmvp
from mmvp_ray.pipeline import mof_experiment_data as data
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig


@pytest.mark.parametrize("moment", ["write_json", "write_pair_benchmark"])
@pytest.mark.parametrize("is_written", [False, True])
def test_killed_while_the_benchmark_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, is_written: bool
) -> None:
    made = make_mmvp(tmp_path / "made", num_pairs=2)

    def write(folder: str, asked: Any, *, name: str) -> Any:
        write_table(folder, list(made.questions), name=name)
        return open_benchmark(folder)

    asked = [SimpleNamespace(question=SimpleNamespace(attribute="colour"))] * 2
    monkeypatch.setattr(
        data, "mine_pairs", lambda *_, **__: SimpleNamespace(pairs=lambda: SimpleNamespace(to_pylist=list))
    )
    monkeypatch.setattr(data, "ask_pairs", lambda _: (asked, Counter({"alike": 1})))
    monkeypatch.setattr(data, "write_pair_benchmark", write)
    config = MofExperimentConfig(out=str(tmp_path / "out"))
    session: Any = SimpleNamespace(start=lambda: None)
    with monkeypatch.context() as patch:
        place: Any = storage if moment == "write_json" else data
        real = getattr(place, moment)

        def killed(*args: Any, **more: Any) -> None:
            if is_written:
                real(*args, **more)
            raise KeyboardInterrupt

        patch.setattr(place, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            data._benchmark(config, session)
    for _ in range(2):
        benchmark, facts = data._benchmark(config, session)
        assert (benchmark.fingerprint, facts["num_selected"]) == (made.fingerprint, 3)
