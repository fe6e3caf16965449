"""Vision encoders: a spec string resolves to a fingerprinted EncoderSpec, which a worker loads as an Encoder."""

from __future__ import annotations

from mmvp_ray.encoders.backends import load_encoder, resolve_encoder
from mmvp_ray.encoders.products import load_for_embedding
from mmvp_ray.encoders.protocol import Encoder, PatchEncoder, TextEncoder
from mmvp_ray.encoders.resolving import resolve_encoders
from mmvp_ray.encoders.spec import EncoderSpec

__all__ = [
    "Encoder",
    "EncoderSpec",
    "PatchEncoder",
    "TextEncoder",
    "load_encoder",
    "load_for_embedding",
    "resolve_encoder",
    "resolve_encoders",
]
