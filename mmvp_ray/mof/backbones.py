"""from_backbones: a new Mixture-of-Features model out of a CLIP-family tower, a vision-only tower and a causal language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mmvp_ray.encoders.hf_files import open_model
from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import ConfigError
from mmvp_ray.mof.tower_weights import Tower, load_weights, open_tower

if TYPE_CHECKING:
    from pathlib import Path

    from mmvp_ray.mof.model import MoFForConditionalGeneration
    from mmvp_ray.mof.processor import MoFProcessor

VOCABULARY_MULTIPLE: Final = 64
"""Embeddings that a new token needs are added in such numbers, which matrix products on GPUs take well."""
_HEAD_MESSAGE: Final = (
    "expected a language model whose head is one matrix, found {found} in the {kind} at {where}; "
    "choose one such as Llama, Vicuna, Qwen or Mistral"
)
_SAMPLING: Final = ("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_HEAD_EXTRAS: Final = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_scale")


def from_backbones(
    clip: str,
    ssl: str | None,
    llm: str,
    *,
    mode: str,
    ssl_ratio: float = 0.5,
    vision_layer: int | None = None,
    ssl_layer: int | None = None,
    image_px: int | None = None,
    ssl_px: int | None = None,
    grid: str = "equal",
    framing: str = "pad",
    ssl_normalisation: str = "native",
    adapter: str = "mlp2x_gelu",
    image_token: str = "<image>",  # noqa: S107  (no password)
    add_image_token: bool = True,
    dtype: str = "float32",
    attention: str = "sdpa",
    seed: int = 0,
) -> tuple[MoFForConditionalGeneration, MoFProcessor]:
    """A model with published towers and language model and new adapters, and the processor that fits it.

    Args:
        clip: CLIP or SigLIP: a folder, a URL of one, or a hub id.
        ssl: The vision-only tower, the same way or as "timm:..."; None with mode none.
        llm: The causal language model, the same way as clip.
        mode: none, additive or interleaved.
        ssl_ratio: Share of the vision-only tower, additive only.
        vision_layer: As in MoFConfig, as are the four after it; None takes what the towers tell.
        ssl_layer: As in MoFConfig.
        image_px: As in MoFConfig.
        ssl_px: As in MoFConfig.
        grid: As in MoFConfig.
        framing: pad, crop or squash (MoFImagesKwargs).
        ssl_normalisation: native: the vision-only tower's own mean and standard deviation; clip: the CLIP tower's, as the released code has it.
        adapter: mlp2x_gelu or linear.
        image_token: Stands for an image in a text.
        add_image_token: Add it to a tokenizer that has none; False refuses such a tokenizer. Where embeddings must grow, new rows are the mean
            of the old ones.
        dtype: float32, bfloat16 or float16, of all parts.
        attention: transformers' attention implementation.
        seed: Of the adapters' first weights, which are torch's nn.Linear's.

    Returns:
        (model, processor): on the CPU, in evaluation mode; `model.freeze(stage)` chooses what trains. A tokenizer without a padding token pads with
        its unknown token, or its end-of-text token.

    Raises:
        ConfigError: what MoFConfig refuses, a folder that is not there, a language model whose head is more than a matrix, a tokenizer without
            an image token. DataError: weights that are missing or do not read.
    """
    import torch

    from mmvp_ray.mof.config import MoFConfig
    from mmvp_ray.mof.model import MoFForConditionalGeneration
    from mmvp_ray.mof.processor import add_image_token as add_token
    from mmvp_ray.mof.processor import image_token_id, processor_for
    from mmvp_ray.mof.register import register

    register()
    check_names(mode=mode, ssl=ssl, ssl_normalisation=ssl_normalisation, dtype=dtype)
    llm_directory, _ = open_model(llm.removeprefix("hf:"), name=llm, trust_remote_code=False, is_text_only=True)
    tokenizer = load_tokenizer(llm_directory)
    token_id = add_token(tokenizer, image_token) if add_image_token else image_token_id(tokenizer, image_token)
    vision = open_tower(clip, family="clip", dtype=dtype, attention=attention)
    other = open_tower(ssl, family="vision", dtype=dtype, attention=attention) if ssl is not None else None
    make_config: Any = MoFConfig
    config = make_config(
        vision_config=vision.model.config,
        ssl_config=None if other is None else other.model.config,
        text_config=_text_config(llm_directory),
        mode=mode,
        ssl_ratio=ssl_ratio,
        vision_layer=vision_layer,
        ssl_layer=ssl_layer,
        image_px=image_px,
        ssl_px=ssl_px,
        grid=grid,
        adapter=adapter,
        image_token_id=token_id,
        dtype=getattr(torch, dtype),
    )
    image_processor = image_processor_for(config, vision, other, framing=framing, ssl_normalisation=ssl_normalisation)
    # By now all that can be wrong with the towers was said; the language model takes minutes to read.
    body, head, generation_config = _language_model(
        llm_directory, num_tokens=len(tokenizer), dtype=dtype, attention=attention
    )
    config.text_config = body.config
    with torch.device("meta"):
        model: Any = MoFForConditionalGeneration(config)
    model.model.vision_tower = vision.model
    if other is not None:
        model.model.ssl_tower = other.model
    model.model.language_model = body
    model.lm_head = head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in model.adapters().values():
            part.to_empty(device="cpu").to(getattr(torch, dtype))
            for linear in part.children():
                linear.reset_parameters()
    left = [name for name, value in model.named_parameters() if value.is_meta]
    assert not left, left
    generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = generation_config
    model.eval()
    return model, processor_for(config, tokenizer, image_processor, image_token=image_token)


def check_names(*, mode: str, ssl: str | None, ssl_normalisation: str, dtype: str) -> None:
    """Raise ConfigError for a choice that is none, or a mode without its tower, before any weight is read."""
    for field, value, known in (
        ("mode", mode, ("none", "additive", "interleaved")),
        ("ssl_normalisation", ssl_normalisation, ("native", "clip")),
        ("dtype", dtype, ("float32", "bfloat16", "float16")),
    ):
        if value not in known:
            raise ConfigError(f"expected {field} {', '.join(known)}, found {value!r}; choose one of them")
    if (ssl is None) != (mode == "none"):
        found = "none" if ssl is None else ssl
        raise ConfigError(
            f"expected a vision-only tower with modes additive and interleaved and none with mode none, found {found} with mode {mode}; "
            "name one (such as facebook/dinov2-large), or change the mode"
        )


def image_processor_for(config: Any, vision: Tower, ssl: Tower | None, *, framing: str, ssl_normalisation: str) -> Any:
    """The image processor of a model: the CLIP tower's interpolation for both, each tower's mean and standard deviation."""
    from PIL import Image

    from mmvp_ray.mof.image_processor import MoFImageProcessor

    normalised = vision if ssl_normalisation == "clip" else ssl
    settings: dict[str, Any] = {}
    if ssl is not None and normalised is not None:
        settings = {
            "ssl_px": config.ssl_px,
            "ssl_image_mean": list(normalised.mean),
            "ssl_image_std": list(normalised.std),
        }
    return MoFImageProcessor(
        size={"height": config.image_px, "width": config.image_px},
        resample=Image.Resampling[vision.interpolation.upper()],
        image_mean=list(vision.mean),
        image_std=list(vision.std),
        framing=framing,
        **settings,
    )


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a language model, with a padding token, which pads on the left as generation needs it.

    Raises:
        ConfigError: there is none that loads.
    """
    import transformers

    try:
        # As an argument, since a side that is set afterwards is not saved.
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, padding_side="left"
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"expected a tokenizer in {directory}, found none that loads ({one_line(error)})") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _text_config(directory: Path) -> Any:
    """The configuration of a causal language model whose head is one matrix, as far as a configuration tells."""
    import transformers

    try:
        config: Any = transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"expected the config of a language model in {directory}, found none that loads ({one_line(error)})"
        ) from error
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise ConfigError(
            f"expected a causal language model in {directory}, found a {config.model_type}; give one such as lmsys/vicuna-7b-v1.5"
        )
    extras = [name for name in _HEAD_EXTRAS if getattr(config, name, None) not in (None, 1, 1.0)]
    if extras or type(config) not in transformers.AutoModel._model_mapping:
        raise ConfigError(
            _HEAD_MESSAGE.format(found=", ".join(extras) or "another", kind=config.model_type, where=directory)
        )
    return config


def _language_model(directory: Path, *, num_tokens: int, dtype: str, attention: str) -> tuple[Any, Any, Any]:
    """(body, head, generation config) of a causal language model, with embeddings for at least `num_tokens` tokens."""
    import torch
    import transformers

    causal = load_weights(transformers.AutoModelForCausalLM, directory, dtype=dtype, attention=attention)
    body: Any = causal.base_model
    head: Any = causal.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or getattr(head, "bias", None) is not None:
        raise ConfigError(_HEAD_MESSAGE.format(found="a bias", kind=causal.config.model_type, where=directory))
    num_old = body.get_input_embeddings().num_embeddings
    if num_tokens > num_old:
        causal.resize_token_embeddings(num_tokens, pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
        parts = (body.get_input_embeddings(), causal.get_output_embeddings())
        with torch.no_grad():
            for weight in {id(part.weight): part.weight for part in parts}.values():
                weight[num_old:] = weight[:num_old].float().mean(dim=0).to(weight.dtype)
    generation_config: Any = causal.generation_config
    if not generation_config.do_sample:
        # Vicuna's has such settings without sampling, and transformers saves no such configuration.
        for name in _SAMPLING:
            setattr(generation_config, name, None)
    return body, causal.get_output_embeddings(), generation_config
