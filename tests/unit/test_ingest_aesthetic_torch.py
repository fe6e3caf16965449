"""LAION's own file of a head, read without running anything in it, gives what LAION's own code gives."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from mmvp_ray.encoders.aesthetic_head import load_aesthetic_head
from mmvp_ray.errors import DataError

pytestmark = pytest.mark.integration


def test_laions_head_scores_as_torch_does(real_data: Path) -> None:
    import torch

    path = real_data / "aesthetic_heads/sa_0_4_vit_l_14_linear.pth"
    head = load_aesthetic_head(str(path))
    assert head.dim == 768
    # As in asthetics_predictor.ipynb of LAION-AI/aesthetic-predictor.
    model = torch.nn.Linear(768, 1)
    model.load_state_dict(torch.load(path, weights_only=True))
    features = torch.randn(64, 768, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    features /= features.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        expected_N = model(features).numpy()[:, 0]
        stored = features.half()
        from_stored_N = model(stored.float() / stored.float().norm(dim=-1, keepdim=True)).numpy()[:, 0]
    found_N = head.score(stored.numpy())
    assert np.abs(found_N - from_stored_N).max() < 1e-4
    assert np.abs(found_N - expected_N).max() < 0.02


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    (tmp_path / "x.pth").write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(DataError, match="tensors"):
        load_aesthetic_head(str(tmp_path / "x.pth"))
    assert not (tmp_path / "ran").exists()
