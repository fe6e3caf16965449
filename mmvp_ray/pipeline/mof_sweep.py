"""A sweep: each recipe trained through both stages and scored on MMVP, LLaVA-Bench and POPE, as the paper's tables of Mixture-of-Features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from mmvp_ray import storage
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.cluster import Session
from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.llava_bench_run import RESULT_FILE as BENCH_FILE
from mmvp_ray.evaluate.llava_bench_run import LlavaBenchConfig
from mmvp_ray.evaluate.mllm import PLAIN, MllmConfig
from mmvp_ray.evaluate.mllm_results import read_result
from mmvp_ray.evaluate.pope_run import RESULT_FILE as POPE_FILE
from mmvp_ray.evaluate.pope_run import PopeConfig
from mmvp_ray.evaluate.rates import Rate
from mmvp_ray.evaluate.scores import score_run
from mmvp_ray.mof.recipe import MoFRecipe, load_recipe
from mmvp_ray.mof.training.command import TrainCommand
from mmvp_ray.pipeline.evaluate import evaluate_llava_bench, evaluate_mllm, evaluate_pope
from mmvp_ray.pipeline.preflight import check_writable

RESULT_FILE = "sweep.json"
OFFICIAL = "official"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """Which recipes are trained, how, and what they are scored on."""

    recipes: tuple[str, ...] = ()
    """Files of configs/mof, or globs of them; each is one row."""
    align: str | None = None
    """YAML of `train` for stage align, with its rows and images; out and model are the sweep's."""
    finetune: str | None = None
    """YAML of `train` for stage finetune, the same way."""
    mmvp: str | None = None
    """YAML of jobs/evaluate.py mllm with its benchmark; model and out are the sweep's. Left out, the column is empty, as are the other two."""
    pope: str | None = None
    """YAML of jobs/evaluate.py pope."""
    llava_bench: str | None = None
    """YAML of jobs/evaluate.py llava-bench."""
    llm: str | None = None
    """Language model in place of the recipes' own, for a smaller sweep."""
    out: str | None = None
    """Folder or URL: one folder for each recipe, and the table."""
    address: str | None = None
    """Ray cluster to join; RAY_ADDRESS, or a cluster of its own on this machine, unless given."""

    def check(self) -> None:
        """Raise ConfigError for what is missing."""
        for name in ("recipes", "align", "finetune", "out"):
            if not getattr(self, name):
                raise ConfigError(f"expected --{name}, found none; docs/mof_training.md has an example")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRow:
    """One recipe.

    Attributes:
        recipe: Its file's name without .yaml.
        mode: none, additive or interleaved.
        ssl_ratio: Of mode additive, else None.
        image_px: Input side of the CLIP tower; 0 is its own.
        pairs: MMVP's pair accuracy; None where it was not asked for.
        questions: MMVP's question accuracy.
        llava_bench: Score relative to the reference answers, in percent.
        pope: Mean F1 of the three splits, 0..1.
        model: Where the trained model lies.
    """

    recipe: str
    mode: str
    ssl_ratio: float | None
    image_px: int
    model: str
    pairs: Rate | None = None
    questions: Rate | None = None
    llava_bench: float | None = None
    pope: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """The files of a sweep, read."""

    recipes: dict[str, MoFRecipe]
    align: TrainCommand
    finetune: TrainCommand
    mmvp: MllmConfig | None = None
    pope: PopeConfig | None = None
    bench: LlavaBenchConfig | None = None


def sweep(config: SweepConfig, *, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Train and score every recipe, write OUT/sweep.json, and give the table for people; what is finished is not done again.

    Raises:
        ConfigError: a file that is none, or a stage or evaluation that cannot work; all files are read before anything is trained. Others:
            as `train` and the evaluations.
    """
    config.check()
    assert config.out is not None
    out = storage.normalise(config.out)
    check_writable(out, flag="--out")
    # Not at the head: --help and the docs' tests need no torch.
    from mmvp_ray.mof.training.run import train

    parts = _read(config)
    rows: list[SweepRow] = []
    uri = storage.join(out, RESULT_FILE)
    earlier = {row["recipe"]: row for row in storage.read_json(uri)["rows"]} if storage.exists(uri) else {}
    with Session(config.address) as session:
        for name, recipe in parts.recipes.items():
            say(f"{name}: mode {recipe.mode}")
            aligned = _stage(parts.align, recipe, storage.join(out, name, "align"), None)
            first = train(aligned.stage_config(), aligned.scale, session=session, say=say)
            tuned = _stage(parts.finetune, recipe, storage.join(out, name, "finetune"), first.product)
            last = train(tuned.stage_config(), tuned.scale, session=session, say=say)
            rows.append(_scored(name, recipe, last.product, parts, storage.join(out, name)))
            # Rows that an earlier call has scored stand until this one comes to them.
            told = earlier | {row.recipe: dataclasses.asdict(row) for row in rows}
            storage.write_json(uri, {"rows": [told[one] for one in parts.recipes if one in told]})
    return table(rows)


def table(rows: list[SweepRow]) -> list[str]:
    """The rows for people; MMVP with Wilson's interval (95 %)."""
    width = max(len("recipe"), *(len(row.recipe) for row in rows))
    found = [
        f"{'recipe':<{width}}  {'mode':<11}  {'ratio':>5}  {'px':>4}  {'MMVP pairs':>20}  {'questions':>9}  {'LLaVA-Bench':>11}  {'POPE F1':>7}"
    ]
    for row in rows:
        ratio = "" if row.ssl_ratio is None else f"{row.ssl_ratio:g}"
        found.append(
            f"{row.recipe:<{width}}  {row.mode:<11}  {ratio:>5}  {row.image_px or 'own':>4}  {_interval(row.pairs):>20}  {_percent(row.questions):>9}  "
            f"{'' if row.llava_bench is None else f'{row.llava_bench:.1f}':>11}  {'' if row.pope is None else f'{row.pope:.1%}':>7}"
        )
    return found


def _read(config: SweepConfig) -> _Parts:
    recipes: dict[str, MoFRecipe] = {}
    for pattern in config.recipes:
        for info in storage.find_files(storage.normalise(pattern)):
            name = PurePosixPath(info.uri).stem
            if name in recipes:
                raise ConfigError(f"expected recipes of different names in --recipes, found {name} twice; rename one")
            recipe = load_recipe(info.uri)
            recipes[name] = recipe if config.llm is None else dataclasses.replace(recipe, llm=config.llm)
    parts = _Parts(
        recipes=recipes,
        align=load_yaml(TrainCommand, str(config.align)),
        finetune=load_yaml(TrainCommand, str(config.finetune)),
        mmvp=None if config.mmvp is None else load_yaml(MllmConfig, config.mmvp),
        pope=None if config.pope is None else load_yaml(PopeConfig, config.pope),
        bench=None if config.llava_bench is None else load_yaml(LlavaBenchConfig, config.llava_bench),
    )
    for name, stage in (("align", parts.align), ("finetune", parts.finetune)):
        if stage.stage != name:
            raise ConfigError(f"expected stage {name} in --{name}, found {stage.stage}; give the other file")
        for recipe in recipes.values():
            whole = _stage(stage, recipe, str(config.out), None)
            whole.stage_config().check()
            whole.scale.check()
    for part in (parts.mmvp, parts.pope, parts.bench):
        if part is not None:
            dataclasses.replace(part, model="hf:trained", out=config.out).check()
    return parts


def _stage(command: TrainCommand, recipe: MoFRecipe, out: str, start: str | None) -> TrainCommand:
    return dataclasses.replace(command, model=recipe, recipe=None, out=out, start=start)


def _scored(name: str, recipe: MoFRecipe, product: str, parts: _Parts, out: str) -> SweepRow:
    row = SweepRow(
        recipe=name,
        mode=recipe.mode,
        ssl_ratio=recipe.ssl_ratio if recipe.mode == "additive" else None,
        image_px=recipe.image_px or 0,
        model=product,
    )
    model = f"hf:{product}"
    if parts.mmvp is not None:
        mllm = dataclasses.replace(parts.mmvp, model=model, out=storage.join(out, "mmvp"))
        evaluate_mllm(mllm)
        benchmark = open_benchmark(str(mllm.benchmark), key=mllm.key)
        answers = read_result(mllm.out_url).by_variant[PLAIN]
        scores = score_run(
            name, benchmark.questions, answers, answer_key=mllm.key, allow_incomplete=mllm.allow_incomplete
        )
        row = dataclasses.replace(row, pairs=scores.pair_accuracy, questions=scores.question_accuracy)
    if parts.pope is not None:
        pope = dataclasses.replace(parts.pope, model=model, out=storage.join(out, "pope"))
        evaluate_pope(pope)
        row = dataclasses.replace(row, pope=_mean_f1(storage.join(pope.out_url, POPE_FILE)))
    if parts.bench is not None:
        bench = dataclasses.replace(parts.bench, model=model, out=storage.join(out, "llava_bench"))
        evaluate_llava_bench(bench)
        found = storage.read_json(storage.join(bench.out_url, BENCH_FILE))["scores"]["categories"][0]
        row = dataclasses.replace(row, llava_bench=found["relative"])
    return row


def _mean_f1(uri: str) -> float:
    """LLaVA's one number of POPE: the mean F1 of the splits, read by the official parser."""
    found = [one for one in storage.read_json(uri)["scores"] if one["parser"] == OFFICIAL]
    if not found or any(one["f1"] is None or one["num_failed"] or one["num_missing"] for one in found):
        raise DataError(
            f"expected every split of POPE answered in full in {uri}, found one that is not; run the sweep again"
        )
    return float(sum(one["f1"] for one in found) / len(found))


def _interval(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.fraction:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


def _percent(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.fraction:.1%}"
