"""What an encoder is, without its weights: a light, picklable description and the fingerprint made from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Self

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import Geometry

DTYPES = ("float16", "float32", "bfloat16")
FAMILIES = ("clip", "vision")

_FINGERPRINT_VERSION = 1
_FINGERPRINT_HEX = 16
_MAX_LABEL_CHARACTERS = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """Everything that decides an encoder's vectors, and where a worker finds its weights.

    The driver holds specs and the workers hold models. Two specs with one fingerprint give the same vectors (bit-equal
    on the same hardware), so the fingerprint is part of every path that holds vectors.

    Attributes:
        name: The encoder as the user wrote it, such as "open_clip:ViT-L-14/openai".
        backend: A key of `mmvp_ray.encoders.backends.BACKENDS`.
        source: What the backend opens on a worker: a local directory or file, or a hub id with its revision.
        architecture: The model's structure: a JSON object with sorted keys, or a plain name. A JSON object may hold
            "label", a short readable name, which then starts `slug`.
        weights_sha256: SHA-256 over the weight files (`mmvp_ray.encoders.weights.hash_files`), 64 hex digits.
        geometry: How a decoded image becomes the encoder's pixels.
        mean: Subtracted per RGB channel, on the 0..1 scale.
        std: Divided by per RGB channel, on the 0..1 scale; above 0.
        feature: Which of the model's outputs is the embedding, such as "projected image embedding".
        dtype: The dtype the model runs in: "float16", "float32" or "bfloat16".
        dim: Length of one embedding.
        family: "clip" (has a text tower, `embed_texts`) or "vision".
        num_parameters: Parameters of the loaded model, both towers for the CLIP family; for memory estimates.
        trust_remote_code: Whether code that came with the weights may run.
    """

    name: str
    backend: str
    source: str
    architecture: str
    weights_sha256: str
    geometry: Geometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    feature: str
    dtype: str
    dim: int
    family: str
    num_parameters: int
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ConfigError: A field cannot be used; the message names it.
        """
        for field_name in ("name", "backend", "source", "architecture", "feature"):
            if not getattr(self, field_name):
                raise ConfigError(f"EncoderSpec.{field_name}: expected a non-empty string, found none ({self.name!r})")
        if re.fullmatch(r"[0-9a-f]{64}", self.weights_sha256) is None:
            raise ConfigError(
                f"EncoderSpec.weights_sha256 of {self.name!r}: expected 64 hex digits, found {self.weights_sha256!r}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"EncoderSpec.dtype of {self.name!r}: expected one of {', '.join(DTYPES)}, found {self.dtype!r}"
            )
        if self.family not in FAMILIES:
            raise ConfigError(
                f"EncoderSpec.family of {self.name!r}: expected one of {', '.join(FAMILIES)}, found {self.family!r}"
            )
        if self.dim < 1 or self.num_parameters < 0:
            raise ConfigError(
                f"EncoderSpec of {self.name!r}: expected dim >= 1 and num_parameters >= 0, "
                f"found {self.dim} and {self.num_parameters}"
            )
        for field_name, values, low in (
            ("mean", self.mean, -math.inf),
            ("std", self.std, 0.0),
        ):
            if len(values) != 3 or not all(math.isfinite(value) and value > low for value in values):
                raise ConfigError(
                    f"EncoderSpec.{field_name} of {self.name!r}: expected 3 finite numbers above {low}, found "
                    f"{values!r}"
                )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the vectors: architecture, weights, geometry, mean and std, feature and dtype.

        `name` and `source` are left out: the same weights in another directory are the same encoder.
        """
        content = {
            "version": _FINGERPRINT_VERSION,
            "backend": self.backend,
            "architecture": self.architecture,
            "weights_sha256": self.weights_sha256,
            "geometry": dataclasses.asdict(self.geometry),
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
            "feature": self.feature,
            "dtype": self.dtype,
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:_FINGERPRINT_HEX]

    @property
    def slug(self) -> str:
        """Path-safe "<architecture's label>-<fingerprint>" for store paths, made of [A-Za-z0-9._-].

        A function of what the fingerprint covers, so that renaming a directory of weights does not recompute vectors.
        """
        label = self.architecture
        if label.startswith("{"):
            label = str(json.loads(label).get("label", self.backend))
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", label)[:_MAX_LABEL_CHARACTERS].strip("-._")
        return f"{label or self.backend}-{self.fingerprint}"

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Self:
        """The spec whose `dataclasses.asdict` went through JSON."""
        fields = _with_tuples(found)
        return cls(**{**fields, "geometry": Geometry(**_with_tuples(fields["geometry"]))})


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def require_same(spec: EncoderSpec, found: EncoderSpec) -> None:
    """Refuse to load what would give other vectors than the spec says; they would be mixed into its store unseen.

    Workers resolve `spec.source` again before they load it, weights' hash included (one to three seconds per
    gigabyte): a comparison of sizes would not see a fine-tuned checkpoint saved over the old one.

    Args:
        spec: From the driver.
        found: What the same source resolves to on this machine.

    Raises:
        DataError: The fingerprints differ.
    """
    if spec.fingerprint == found.fingerprint:
        return
    fields = (
        "backend",
        "architecture",
        "weights_sha256",
        "geometry",
        "mean",
        "std",
        "feature",
        "dtype",
    )
    changed = [field for field in fields if getattr(spec, field) != getattr(found, field)]
    raise DataError(
        f"Encoder {spec.name!r}: expected fingerprint {spec.fingerprint} at {spec.source}, found {found.fingerprint} "
        f"(differs in {', '.join(changed)}); it changed since the run began, or differs between machines: make the "
        "machines agree and start the run anew"
    )


def canonical_json(content: object) -> str:
    """JSON that is equal for equal content: sorted keys, no spaces, ASCII.

    Raises:
        TypeError: `content` holds something that JSON lacks.
        ValueError: `content` holds a number that is not finite.
    """
    return json.dumps(
        content,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
