"""Steps of training an interleaved Mixture-of-Features model: losses in fp32 against bf16, then tokens a second, MFU."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

from benchmarks.gpu_bench import Bench, CheckError, Found, percent

# Shapes: R rows, T tokens, I images (one a row), C = 3, H x W pixels.

LOSS_TOLERANCE = 0.02
"""Between a step's losses in fp32 and in bf16, relative: bfloat16 keeps 8 bits, 0.4 %, and a mean of many errs less."""
CHECKED_STEPS = 4
RATES = {"full": 2e-5, "smoke": 3e-3}
"""The paper's; and one at which a small model learns a batch in a few steps."""
NUM_SKIPPED = {"full": 3, "smoke": 1}
NUM_TIMED = {"full": 10, "smoke": 3}
ROWS_AND_TOKENS = {"full": (16, 1024), "smoke": (2, 96)}
"""Of a step; 512 tokens of a row are its image at full scale, as in the paper's interleaved models at 224 px."""
IMAGE_TOKEN = 3
TOWER_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {
        "clip": TOWER_L | {"intermediate_size": 4096, "image_size": 224},
        "dinov2": TOWER_L | {"mlp_ratio": 4, "image_size": 518},
        # Sheared-LLaMA-1.3B's, whose vocabulary is filled up to a multiple of 64 as from_backbones does it.
        "llama": TOWER_L | {"hidden_size": 2048, "intermediate_size": 5504, "vocab_size": 32_064},
    },
    "smoke": {
        "clip": TINY | {"intermediate_size": 128, "image_size": 56},
        "dinov2": TINY | {"mlp_ratio": 2, "image_size": 112},
        "llama": TINY | {"intermediate_size": 172, "vocab_size": 256},
    },
}


def measure_mof(bench: Bench, found: Found) -> None:
    """Compare a small model's losses in both precisions, then time steps of the model of this scale in bf16."""
    import torch

    losses = {precision: small_losses(bench.device, precision) for precision in ("fp32", "bf16")}
    worst = check_losses(losses["fp32"], losses["bf16"], LOSS_TOLERANCE)
    shown = {precision: ", ".join(f"{loss:.4f}" for loss in found) for precision, found in losses.items()}
    print(
        f"mof: losses of {CHECKED_STEPS} steps: fp32 {shown['fp32']}; bf16 {shown['bf16']}; at most {worst:.2%} apart",
        flush=True,
    )
    found.add(losses=losses, largest_difference=worst, tolerance=LOSS_TOLERANCE)
    bench.forget_peak_memory()
    from mmvp_ray.mof.training.speed import peak_flops, work_of

    rows, tokens = ROWS_AND_TOKENS[bench.scale]
    trainee = Trainee(bench.scale, bench.device, "bf16", rows=rows, tokens=tokens)
    for _ in range(NUM_SKIPPED[bench.scale]):
        trainee.step()
    bench.synchronise()
    seconds = []
    for _ in range(NUM_TIMED[bench.scale]):
        started = time.perf_counter()
        step = trainee.step()
        bench.synchronise()
        seconds.append(time.perf_counter() - started)
    if not math.isfinite(step.loss):
        raise CheckError(f"mof: expected a finite loss of the model that was timed, found {step.loss}")
    median = statistics.median(seconds)
    flop = work_of(trainee.model).of_step(num_tokens=step.num_tokens, num_images=step.num_images)
    share = bench.share(flop / median, "bfloat16")
    published = peak_flops(torch.cuda.get_device_name()) if bench.device == "cuda" else None
    figures = {
        "mode": "interleaved",
        "num_parameters": sum(value.numel() for value in trainee.model.parameters()),
        "num_trained": sum(value.numel() for value in trainee.model.parameters() if value.requires_grad),
        "activation_checkpointing": True,
        "rows": rows,
        "tokens_per_row": tokens,
        "image_tokens_per_row": trainee.model.config.num_image_tokens,
        "step_seconds": median,
        "tokens_per_second": step.num_tokens / median,
        "flop_per_second": flop / median,
        "share_of_measured_peak": share,
        "share_of_published_peak": flop / median / published if published else None,
    }
    memory = ""
    if bench.device == "cuda":
        figures["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        memory = f"; {figures['peak_gpu_gib']:.1f} GiB at most"
    print(
        f"mof, {figures['num_parameters'] / 1e9:.2f}e9 parameters, {rows} x {tokens} tokens: {figures['tokens_per_second']:,.0f} tokens/s, "
        f"{median:.3f} s a step, {flop / median / 1e12:.2f} TFLOP/s without what checkpointing computes twice: MFU {percent(share)}{memory}",
        flush=True,
    )
    found.add(**figures)


class Trainee:
    """A random model in stage finetune, as `spread_model` leaves it, its optimiser, and the one batch that it sees."""

    def __init__(self, scale: str, device: str, precision: Any, *, rows: int, tokens: int) -> None:
        import torch

        from mmvp_ray.mof.training.config import OptimConfig, TrainConfig
        from mmvp_ray.mof.training.ranks import Ranks
        from mmvp_ray.mof.training.spread import prepared
        from mmvp_ray.mof.training.steps import optimizer_for

        optim = OptimConfig(learning_rate=RATES[scale])
        config = TrainConfig(stage="finetune", precision=precision, optim=optim)
        # Drawn on the CPU where the weights are compared; a CPU would draw the large model's for a minute.
        drawn_on = device if scale == "full" else "cpu"
        torch.manual_seed(0)
        with torch.device(drawn_on):
            model = random_model(scale)
        self.model = prepared(model, config, activation_checkpointing=True).to(device)
        self._optimizer = optimizer_for(self.model, optim)
        self._batch = one_batch(self.model.config, rows=rows, tokens=tokens)
        self._ranks = Ranks(device=device)
        self._is_half = precision == "bf16"

    def step(self) -> Any:
        """One step of the training loop; a StepResult."""
        from mmvp_ray.mof.training.steps import train_step

        return train_step(
            self.model, self._optimizer, [self._batch], ranks=self._ranks, max_grad_norm=1.0, autocast=self._is_half
        )


def random_model(scale: str) -> Any:
    """A MoFForConditionalGeneration, interleaved, with the weights that transformers draws."""
    import transformers

    from mmvp_ray.mof.config import MoFConfig
    from mmvp_ray.mof.model import MoFForConditionalGeneration

    sizes = SIZES[scale]
    make_config: Any = MoFConfig
    return MoFForConditionalGeneration(
        make_config(
            vision_config=transformers.CLIPVisionConfig(**sizes["clip"], patch_size=14),
            ssl_config=transformers.Dinov2Config(**sizes["dinov2"], patch_size=14),
            text_config=transformers.LlamaConfig(**sizes["llama"], max_position_embeddings=4096),
            mode="interleaved",
            image_token_id=IMAGE_TOKEN,
        )
    )


def one_batch(config: Any, *, rows: int, tokens: int) -> Any:
    """Rows of one image and a random text, which is all label; pixels random as well."""
    import torch

    from mmvp_ray.mof.data.collate import IGNORED, Batch

    generator = torch.Generator().manual_seed(1)
    first = 1 + config.num_image_tokens
    ids_RT = torch.randint(IMAGE_TOKEN + 1, config.text_config.vocab_size, (rows, tokens), generator=generator)
    ids_RT[:, 1:first] = IMAGE_TOKEN
    labels_RT = ids_RT.clone()
    labels_RT[:, :first] = IGNORED
    pixels = {
        "pixel_values": torch.randn(rows, 3, config.image_px, config.image_px, generator=generator),
        "ssl_pixel_values": torch.randn(rows, 3, config.ssl_px, config.ssl_px, generator=generator),
    }
    inputs = {"input_ids": ids_RT, "attention_mask": torch.ones_like(ids_RT), "labels": labels_RT, **pixels}
    return Batch(inputs, rows=tuple(range(rows)), num_label_tokens=rows * (tokens - first))


def small_losses(device: str, precision: str) -> list[float]:
    """Losses of the small model's first steps: the same weights and the same batch whatever the precision."""
    trainee = Trainee("smoke", device, precision, rows=4, tokens=96)
    return [trainee.step().loss for _ in range(CHECKED_STEPS)]


def check_losses(exact: list[float], rounded: list[float], tolerance: float) -> float:
    """The largest relative difference between the losses of equal steps.

    Raises:
        CheckError: it is above `tolerance` or no number, or a model did not learn the batch that it saw.
    """
    differences = [abs(ours - theirs) / abs(theirs) for ours, theirs in zip(rounded, exact, strict=True)]
    # Not so for NaN either.
    if not all(difference <= tolerance for difference in differences):
        raise CheckError(f"mof: expected losses in bf16 within {tolerance:.0%} of fp32's, found {rounded} and {exact}")
    for losses in (exact, rounded):
        if not losses[-1] < losses[0]:
            raise CheckError(f"mof: expected the loss of one batch to fall from step to step, found {losses}")
    return max(differences)
