"""Why the miniature models answer as they do: what a linear readout finds of the asked attribute in pooled vectors and in patch tokens."""

# Shapes: N training pictures, P pairs, F features, V values of an attribute, C = 3, H x W pixels.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.rates import wilson_rate
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.miniature.instructions import image_name, split_scene
from mmvp_ray.miniature.world import VALUES
from mmvp_ray.pipeline.mof_experiment_config import MofExperimentConfig
from mmvp_ray.pipeline.mof_experiment_data import Ingredients
from mmvp_ray.report.mof_experiment import Readout

CLIP_LAYER, SSL_LAYER = -2, -1
"""Those that the models read (mof.towers)."""
FEATURES: Final = ("clip, pooled", "clip, patch tokens", "dino, pooled", "dino, patch tokens")
RIDGES: Final = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Penalties tried, as shares of the summed squared length of all pictures' centred features."""
FITTED_SHARE: Final = 0.8
"""Of the training pictures; the others choose the penalty."""
_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pictures:
    pixels_NCHW: NDArray[np.uint8]
    values: dict[str, NDArray[np.int64]]


def read_out(config: MofExperimentConfig, made: Ingredients) -> list[Readout]:
    """Fit a readout for each kind of features and attribute on training pictures, and apply it to the pairs, in the calling process.

    The readout is ridge regression onto the attribute's values, its penalty chosen on training pictures that it was not fitted on. Of a question's
    two values the one with the larger output counts.
    """
    import torch

    torch.set_num_threads(1)
    training = _training_pictures(config, made)
    questions = made.benchmark.questions
    uris = sorted({question.image_uri for question in questions})
    pairs_NCHW = _pixels(uris)
    found = []
    for name in FEATURES:
        fitted_NF, shown_NF = features_of(name, training.pixels_NCHW), features_of(name, pairs_NCHW)
        found.append(_readout(name, fitted_NF, training.values, dict(zip(uris, shown_NF, strict=True)), questions))
    return found


def features_of(name: str, pixels_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, F) of one of `FEATURES`, patch tokens flattened."""
    import torch

    from mmvp_ray.encoders import load_encoder, resolve_encoder

    role, _, kind = name.partition(", ")
    encoder: Any = load_encoder(resolve_encoder(f"miniature:{role}", device="cpu"), device="cpu")
    batches = []
    for at in range(0, len(pixels_NCHW), _BATCH):
        pixels = torch.from_numpy(np.ascontiguousarray(pixels_NCHW[at : at + _BATCH]))
        if kind == "pooled":
            batches.append(encoder.embed(pixels).numpy())
        else:
            layer = CLIP_LAYER if role == "clip" else SSL_LAYER
            batches.append(encoder.patch_tokens(pixels, layer).flatten(1).numpy())
    return np.concatenate(batches).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ridge:
    """A fitted readout: outputs are (features - mean_F) @ weight_FV + bias_V."""

    mean_F: NDArray[np.float64]
    weight_FV: NDArray[np.float64]
    bias_V: NDArray[np.float64]

    def outputs(self, features_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, V)."""
        found: NDArray[np.float64] = (features_NF - self.mean_F) @ self.weight_FV + self.bias_V
        return found


class Ridges:
    """Ridge regressions on the same pictures, solved over pictures, of which there are fewer than features; one decomposition serves all.

    Args:
        features_NF: Features.
    """

    def __init__(self, features_NF: NDArray[np.float32]) -> None:
        self._mean_F = features_NF.mean(axis=0, dtype=np.float64)
        self._centred_NF = features_NF - self._mean_F
        values_N, self._vectors_NN = np.linalg.eigh(self._centred_NF @ self._centred_NF.T)
        self._values_N = np.maximum(values_N, 0.0)

    def fit(self, values_N: NDArray[np.int64], num_values: int, ridge: float) -> Ridge:
        """Onto one-hot values.

        Args:
            values_N: Index of each picture's value.
            num_values: V.
            ridge: Penalty, above 0, as a share of the summed squared length of the centred features.
        """
        target_NV = np.eye(num_values)[values_N]
        bias_V = target_NV.mean(axis=0)
        penalty = ridge * float(self._values_N.sum()) + 1e-12
        turned_NV = self._vectors_NN.T @ (target_NV - bias_V)
        dual_NV = self._vectors_NN @ (turned_NV / (self._values_N + penalty)[:, None])
        return Ridge(mean_F=self._mean_F, weight_FV=self._centred_NF.T @ dual_NV, bias_V=bias_V)


def _readout(
    name: str,
    features_NF: NDArray[np.float32],
    values: Mapping[str, NDArray[np.int64]],
    shown: Mapping[str, NDArray[np.float32]],
    questions: Sequence[Question],
) -> Readout:
    ridges = _chosen(features_NF, values)
    verdicts: dict[str, list[bool]] = {}
    for pair in pairs_of(questions).values():
        attribute = pair[0].provenance["attribute"]
        names = [str(value) for value in VALUES[attribute]]
        asked = [names.index(question.provenance["value"]) for question in pair]
        right = []
        for question, own in zip(pair, asked, strict=True):
            outputs_V = ridges[attribute].outputs(shown[question.image_uri][None])[0]
            right.append(max(asked, key=lambda value: outputs_V[value]) == own)
        verdicts.setdefault(pair[0].patterns[0], []).append(all(right))
    every = [one for found in verdicts.values() for one in found]
    return Readout(
        features=name,
        num_features=features_NF.shape[1],
        pairs=wilson_rate(sum(every), len(every)),
        patterns={pattern: wilson_rate(sum(found), len(found)) for pattern, found in verdicts.items()},
    )


def _chosen(features_NF: NDArray[np.float32], values: Mapping[str, NDArray[np.int64]]) -> dict[str, Ridge]:
    """For each attribute the readout whose penalty is best on the pictures left for that, fitted on the others."""
    num_fitted = max(1, int(FITTED_SHARE * len(features_NF)))
    ridges = Ridges(features_NF[:num_fitted])
    chosen = {}
    for attribute, values_N in values.items():
        found = []
        for ridge in RIDGES:
            fitted = ridges.fit(values_N[:num_fitted], len(VALUES[attribute]), ridge)
            guessed_N = fitted.outputs(features_NF[num_fitted:]).argmax(axis=1)
            found.append((float(np.mean(guessed_N == values_N[num_fitted:])), fitted))
        chosen[attribute] = max(found, key=lambda one: one[0])[1]
    return chosen


def _training_pictures(config: MofExperimentConfig, made: Ingredients) -> _Pictures:
    indices = range(config.num_probe_images)
    scenes = [split_scene("train", config.data_seed, index) for index in indices]
    return _Pictures(
        pixels_NCHW=_pixels([storage.join(made.images, image_name("train", index)) for index in indices]),
        values={
            attribute: np.array([known.index(getattr(scene.attributes, attribute)) for scene in scenes])
            for attribute, known in VALUES.items()
        },
    )


def _pixels(uris: Sequence[str]) -> NDArray[np.uint8]:
    found = []
    for uri in uris:
        decoded = decode(storage.read_bytes(uri))
        if not isinstance(decoded, Decoded):
            raise DataError(
                f"expected an image that decodes at {uri}, found {decoded.reason}: {decoded.detail}; remove --out and start again"
            )
        found.append(decoded.image_HWC.transpose(2, 0, 1))
    return np.stack(found)
