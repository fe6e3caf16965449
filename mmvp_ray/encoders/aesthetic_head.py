"""LAION's linear aesthetic head: a score of about 1 to 10 for how much people like a picture, from its unit-length CLIP vector.

The original (LAION-AI/aesthetic-predictor, README and asthetics_predictor.ipynb) divides the projected image embedding by its length and
applies one nn.Linear(768, 1), for the vectors of OpenAI's CLIP ViT-L/14; so does this, in float64.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.encoders.weights import check_suffix, load_state_dict
from mmvp_ray.errors import ConfigError, DataError

# Shapes: N vectors, D numbers in each.

MAX_HEAD_BYTES = 64 << 20
"""Longest file of a head; LAION's has 4 kB."""
NAME = "aesthetic head"


@dataclass(frozen=True, slots=True, eq=False)
class AestheticHead:
    """A linear head: float64 weights, (D,), a bias, and the SHA-256 of the file that they came from."""

    weight_D: NDArray[np.float64]
    bias: float
    sha256: str

    @property
    def dim(self) -> int:
        """Length of the vectors that it scores."""
        return len(self.weight_D)

    def score(self, vectors_ND: NDArray[np.float16]) -> NDArray[np.float32]:
        """The scores, (N,), of N stored vectors, whose rounding to fp16 is taken out of their length first."""
        exact_ND = vectors_ND.astype(np.float64)
        length_N = np.sqrt(np.einsum("nd,nd->n", exact_ND, exact_ND))
        with np.errstate(invalid="ignore", divide="ignore"):
            scores_N: NDArray[np.float32] = (exact_ND @ self.weight_D / length_N + self.bias).astype(np.float32)
        return scores_N


def load_aesthetic_head(url: str) -> AestheticHead:
    """Read a head from a safetensors or torch file (weights_only) at a path or URL.

    Raises:
        ConfigError: no such file, another suffix, or no linear head with one output. DataError: it holds more than tensors.
    """
    path = Path(url.rsplit("/", 1)[-1])
    check_suffix(path, name=NAME)
    try:
        data = storage.read_bytes(url, start=0, end=MAX_HEAD_BYTES + 1)
    except DataError as error:
        raise ConfigError(
            f"expected the file of an aesthetic head at {url}, found none ({error}); check --head"
        ) from error
    if len(data) > MAX_HEAD_BYTES:
        raise ConfigError(
            f"expected a linear head of some kB, found more than {MAX_HEAD_BYTES} bytes in {url}; check --head"
        )
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / f"head{path.suffix}"
        local.write_bytes(data)
        if path.suffix == ".safetensors":
            arrays = _safe_arrays(local, url)
        else:
            arrays = {name: tensor.double().numpy() for name, tensor in load_state_dict(local, name=NAME).items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    weight, bias = arrays.get("weight"), arrays.get("bias")
    if (
        set(shapes) != {"weight", "bias"}
        or weight is None
        or bias is None
        or weight.ndim != 2
        or len(weight) != 1
        or bias.size != 1
    ):
        found = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:8])
        raise ConfigError(
            f"expected weight (1, D) and bias (1,) of LAION's linear head, found {found} in {url}; take sa_0_4_vit_l_14_linear.pth of "
            f"LAION-AI/aesthetic-predictor"
        )
    weight_D = weight[0].astype(np.float64)
    if not (np.isfinite(weight_D).all() and np.isfinite(bias).all()):
        raise DataError(f"expected finite weights, found others in {url}; fetch the head again")
    return AestheticHead(weight_D, float(bias.reshape(-1)[0]), hashlib.sha256(data).hexdigest())


def _safe_arrays(path: Path, url: str) -> dict[str, NDArray[np.float64]]:
    # Not load_state_dict: for a few numbers torch need not be imported.
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: np.asarray(array, dtype=np.float64) for name, array in load_file(path).items()}
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"expected a safetensors file, found something else in {url} ({error}); check --head"
        ) from error
