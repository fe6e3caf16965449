"""The cards of an evaluation report, each worked out of scores and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmvp_ray.benchmark.benchmark import AS_FOUND, Benchmark
from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.benchmark.keys import available_keys, published_key, with_key
from mmvp_ray.evaluate.baselines import baselines, chance_of_at_least
from mmvp_ray.evaluate.contrasts import BlindCheck, SwapConsistency, check_blind, compare_swapped
from mmvp_ray.evaluate.correlation import correlate
from mmvp_ray.evaluate.mcnemar import compare_runs
from mmvp_ray.evaluate.mllm import BLIND, PLAIN, SWAPPED
from mmvp_ray.evaluate.mllm_results import MllmResult
from mmvp_ray.evaluate.other_readings import RELEASED_GRADER, SAID_NEITHER
from mmvp_ray.evaluate.paper_tables import paper_tables
from mmvp_ray.evaluate.rates import Rate
from mmvp_ray.evaluate.scores import RunScores, score_run
from mmvp_ray.report.evaluation_data import (
    BlindCard,
    ChanceLine,
    ClaimCard,
    CorrelationCard,
    Duel,
    EncoderRow,
    HardPair,
    OtherReading,
    PublishedScore,
    ScoreRow,
    Share,
    SwapCard,
)

MIN_PATTERNS_TO_CORRELATE = 3


def _share(rate: Rate | None) -> Share:
    """A rate as the report shows it; nothing of nothing where there is no headline."""
    if rate is None:
        return Share(k=0, n=0, low=0.0, high=1.0)
    return Share(k=rate.num_right, n=rate.num_total, low=rate.low, high=rate.high)


def score_row(run: RunScores, found: MllmResult, benchmark: Benchmark, questions: Sequence[Question]) -> ScoreRow:
    """The scores of one model, with the other answer key, swapped options and the blind run where they are there."""
    swapped, blind = found.by_variant.get(SWAPPED), found.by_variant.get(BLIND)
    other = None
    changed: list[str] = []
    keys = [name for name in available_keys(benchmark) if name not in (benchmark.key, AS_FOUND)]
    if keys and benchmark.key != AS_FOUND:
        again = score_run(
            run.model,
            with_key(benchmark, keys[0]).questions,
            found.by_variant[PLAIN],
            answer_key=keys[0],
            allow_incomplete=True,
        )
        other = _share(again.pair_accuracy)
        changed = [
            one.pair_id for one, same in zip(run.pairs, again.pairs, strict=True) if one.is_right != same.is_right
        ]
    turned = compare_swapped(questions, found.by_variant[PLAIN], swapped) if swapped is not None else None
    without = check_blind(questions, blind) if blind is not None else None
    return ScoreRow(
        model=run.model,
        pairs=_share(run.pair_accuracy),
        questions=_share(run.question_accuracy),
        pairs_other_key=other,
        changed_pairs=changed,
        swapped=None if turned is None else _share(turned.same_option),
        blind=None if without is None else _share(without.pairs_right),
        num_unread=run.num_unparsed,
        num_failed=run.num_failed,
        rules=dict(run.rules),
        p_guessing=_p_guessing(run, questions),
        swap=None if turned is None else _swap_card(turned),
        no_image=None if without is None else _blind_card(without),
    )


def _swap_card(found: SwapConsistency) -> SwapCard:
    return SwapCard(
        pairs_in_both=_share(found.pairs_right_in_both),
        first_shown=_share(found.first_shown),
        first_shown_swapped=_share(found.first_shown_swapped),
        always_first=found.always_first,
        always_last=found.always_last,
        num_unread=found.num_unread,
    )


def _blind_card(found: BlindCheck) -> BlindCard:
    return BlindCard(
        num_same_text=found.num_same_text,
        same_answer=_share(found.same_answer),
        other_pairs=_share(found.other_pairs_right),
        unread=_share(found.refused_or_unread),
    )


def _p_guessing(run: RunScores, questions: Sequence[Question]) -> float | None:
    if run.pair_accuracy is None:
        return None
    # What the headline is over: a pair with a failed request is in neither.
    complete = {pair.pair_id for pair in run.pairs if not pair.num_unanswered}
    return chance_of_at_least([one for one in questions if one.pair_id in complete], run.pair_accuracy.num_right)


def other_readings(
    found: MllmResult, benchmark: Benchmark, questions: Sequence[Question], *, allow_incomplete: bool
) -> list[OtherReading]:
    """The same answers as others would have read them; the released grader's verdicts only with the answers that it was told."""
    rows = []
    for reading, answers in found.others.items():
        is_grader = reading == RELEASED_GRADER
        if is_grader and found.told_fingerprint != benchmark.fingerprint:
            continue
        run = score_run(found.model, questions, answers, answer_key=benchmark.key, allow_incomplete=allow_incomplete)
        rows.append(
            OtherReading(
                model=found.model,
                reading=reading,
                pairs=_share(run.pair_accuracy),
                questions=_share(run.question_accuracy),
                num_unread=run.rules.get(SAID_NEITHER, 0) if is_grader else run.num_unparsed,
                num_failed=run.num_failed,
            )
        )
    return rows


def pattern_scores(runs: Sequence[RunScores], encoders: Sequence[Mapping[str, Any]]) -> list[dict[str, Share]]:
    """For each model of the report, in its order, pairs right by pattern."""
    mllms = [
        {
            one.pattern: Share(k=one.pairs.num_right, n=one.pairs.num_total, low=one.pairs.low, high=one.pairs.high)
            for one in run.patterns
        }
        for run in runs
    ]
    return [
        *mllms,
        *(
            {name: _plain_share(rate) for name, rate in one["scores"]["text_to_image"]["patterns"].items()}
            for one in encoders
        ),
    ]


def _plain_share(rate: Mapping[str, Any]) -> Share:
    return Share(k=rate["num_right"], n=rate["num_total"], low=rate["low"], high=rate["high"])


def chance(questions: Sequence[Question]) -> list[ChanceLine]:
    """What answering without looking gives on these questions."""
    found = baselines(questions)
    best = max(found.constants, key=lambda one: one.pair_accuracy)
    return [
        ChanceLine(
            name="guessing",
            pairs=found.guessing_pair_accuracy,
            questions=found.guessing_question_accuracy,
            pairs_low=found.guessing_low,
            pairs_high=found.guessing_high,
        ),
        ChanceLine(name="best constant answer", pairs=best.pair_accuracy, questions=best.question_accuracy),
    ]


def statement_chance(encoders: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[ChanceLine]:
    """What random scores give on a benchmark of statements."""
    chances = {one["scores"]["text_to_image"]["chance"] for _, one in encoders}
    return [ChanceLine(name="guessing", pairs=chance, questions=0.5) for chance in sorted(chances)[:1]]


def duels(runs: Sequence[RunScores]) -> list[Duel]:
    """Every two models with a headline on the same pairs."""
    return [
        Duel(
            first=one.model_a,
            second=one.model_b,
            only_first=one.only_a,
            only_second=one.only_b,
            p=one.p,
            p_holm=one.p_holm,
            difference=one.difference,
            low=one.low,
            high=one.high,
            num_left_out=one.num_left_out,
        )
        for one in compare_runs([run for run in runs if run.pair_accuracy is not None])
    ]


def correlations(runs: Sequence[RunScores], encoders: Sequence[Mapping[str, Any]]) -> list[CorrelationCard]:
    """Every encoder with every model over the patterns that both have."""
    cards = []
    for encoder in encoders:
        by_pattern = encoder["scores"]["text_to_image"]["patterns"]
        for run in runs:
            mine = {one.pattern: one.pairs.value for one in run.patterns if one.pairs.value is not None}
            names = [name for name in by_pattern if name in mine]
            if len(names) < MIN_PATTERNS_TO_CORRELATE:
                continue
            xs, ys = [by_pattern[name]["value"] for name in names], [float(mine[name] or 0.0) for name in names]
            pearson, spearman = correlate(xs, ys), correlate(xs, ys, kind="spearman")
            cards.append(
                CorrelationCard(
                    x=encoder["label"],
                    y=run.model,
                    patterns=names,
                    x_scores=xs,
                    y_scores=ys,
                    pearson=pearson.value,
                    pearson_low=pearson.low,
                    pearson_high=pearson.high,
                    pearson_p=pearson.p,
                    spearman=spearman.value,
                    spearman_low=spearman.low,
                    spearman_high=spearman.high,
                    spearman_p=spearman.p,
                    pearson_drawn_low=pearson.bootstrap_low,
                    pearson_drawn_high=pearson.bootstrap_high,
                    spearman_drawn_low=spearman.bootstrap_low,
                    spearman_drawn_high=spearman.bootstrap_high,
                    reason=pearson.reason or spearman.reason,
                )
            )
    return cards


def published_scores(benchmark: Benchmark | None) -> list[PublishedScore]:
    """What the paper printed for the published MMVP; nothing for any other benchmark."""
    if benchmark is None or published_key(benchmark) is None:
        return []
    return [
        PublishedScore(model=model, pairs=percent / 100, source="Tong et al., CVPR 2024, Figure 4")
        for model, percent in paper_tables().mmvp.items()
    ]


def hard_pairs(runs: Sequence[RunScores], questions: Sequence[Question]) -> list[HardPair]:
    """Every pair, fewest models right first; none without models."""
    if not runs:
        return []
    verdicts: dict[str, list[bool]] = {pair_id: [] for pair_id in pairs_of(questions)}
    for run in runs:
        for verdict in run.pairs:
            if verdict.is_right is not None:
                verdicts[verdict.pair_id].append(verdict.is_right)
    cards = []
    for pair_id, pair in pairs_of(questions).items():
        first, second = pair[0], pair[1]
        cards.append(
            HardPair(
                pair_id=pair_id,
                question=" ".join(dict.fromkeys(question.text for question in pair)),
                options=list(first.options),
                patterns=list(first.patterns),
                num_right=sum(verdicts[pair_id]),
                num_models=len(verdicts[pair_id]),
                image_id_a=first.key,
                image_id_b=second.key,
            )
        )
    return sorted(cards, key=lambda card: card.num_right / card.num_models if card.num_models else 2.0)


def encoder_row(one: Mapping[str, Any]) -> EncoderRow:
    """A row of the table of encoders, from an entry of encoders.json."""
    scores, zero_shot, published = one["scores"], one["zero_shot"], one["published"]
    average = scores["text_to_image"]["average"]
    return EncoderRow(
        model=one["label"],
        image_px=min(one["image_px"]),
        num_parameters=one["num_parameters"],
        zero_shot=None if zero_shot is None else _plain_share(zero_shot["top1"]),
        text_to_image=_plain_share(scores["text_to_image"]["pairs"]),
        image_to_text=_plain_share(scores["image_to_text"]["pairs"]),
        both=_plain_share(scores["group"]["pairs"]),
        average=average["value"] if average else scores["text_to_image"]["pairs"]["value"],
        published_average=None if published is None else _published_average(published),
    )


def _published_average(published: Mapping[str, Any]) -> float | None:
    value = published.get("average")
    return None if value is None else float(value) / (100 if value > 1 else 1)


def _evidence(claim: Mapping[str, Any]) -> str:
    said = []
    for test in claim["tests"]:
        if test["correlation"] is not None:
            found = test["correlation"]
            said.append(
                f"Pearson {found['pearson']:.2f} ({found['low']:.2f} to {found['high']:.2f}) over {found['num_models']} models"
            )
        elif test["difference"] is not None:
            said.append(
                f"{100 * test['difference']:+.1f} points ({100 * test['low']:+.1f} to {100 * test['high']:+.1f})"
            )
        if test["missing"]:
            said.append(f"not evaluated: {', '.join(test['missing'])}")
    return "; ".join(said) or "nothing to compare"


def claim_card(claim: Mapping[str, Any]) -> ClaimCard:
    """A claim of encoders.json."""
    return ClaimCard(claim=claim["text"], verdict=claim["verdict"], evidence=_evidence(claim))
