"""Visual patterns of a benchmark: found by a language model as in the paper, or the nine; voted on, or labelled by rule; one file out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmvp_ray import storage
from mmvp_ray.benchmark.items import Question, pairs_of
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.benchmark.patterns import NINE
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.agreement import fleiss_kappa, percent_agreement
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asking import AskingProgress, ask_all
from mmvp_ray.evaluate.asking_config import AskingConfig
from mmvp_ray.evaluate.pattern_labels import (
    Label,
    count_votes,
    label_by_rule,
    read_labels,
    vote_counts,
    write_labels,
)
from mmvp_ray.evaluate.pattern_prompts import ask_for_patterns, ask_for_vote, read_patterns, read_vote, shown_question
from mmvp_ray.evaluate.responder import Ask, Reply, Responder

LABELS_FILE = "patterns.yaml"
ANSWERS_FOLDER = "answers"


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternsConfig:
    """Visual patterns of a benchmark's pairs."""

    benchmark: str | None = None
    """Folder (path or URL) of questions."""
    find: bool = False
    """Let the model find patterns in all questions, as in the paper; otherwise the paper's nine, or those of --labels, are voted on."""
    by: Literal["votes", "rule"] = "votes"
    """votes: a language model says which patterns each pair shows. rule: keywords give a rough start; no model is asked."""
    model: str = ""
    """Who finds and votes, named as for the command mllm; it sees texts alone."""
    asking: AskingConfig = field(default_factory=AskingConfig)
    """How it is asked."""
    num_votes: int = 5
    """Votes for each pair, each with the patterns in another order."""
    labels: str | None = None
    """An earlier patterns.yaml: its patterns are used, and labels that people made (by: hand) are kept."""
    out: str | None = None
    """Folder of the results; runs/patterns unless given."""

    def check(self) -> None:
        """Raise ConfigError for what is missing or out of range."""
        if not self.benchmark:
            raise ConfigError("expected --benchmark FOLDER with questions, found none; for example the MMVP download")
        if (self.by == "votes" or self.find) and not self.model:
            raise ConfigError("expected --model, found none; give one, or --by rule without --find")
        if self.num_votes < 1:
            raise ConfigError(f"expected at least 1, found {self.num_votes} in --num-votes; 5 is the default")
        self.asking.check()

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute."""
        return storage.normalise(self.out or "runs/patterns")


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelling:
    """What came out.

    Attributes:
        uri: The file of labels.
        patterns: Name to definition.
        labels: By pair.
        agreement: Mean share of pairs of votes that agree on the primary pattern; None without votes.
        kappa: Fleiss' kappa over pairs with all votes read; None where it is not defined.
    """

    uri: str
    patterns: Mapping[str, str]
    labels: Mapping[str, Label]
    agreement: float | None
    kappa: float | None


def label_patterns(
    config: PatternsConfig,
    responder: Responder | None = None,
    *,
    on_reply: Callable[[Reply, AskingProgress], None] | None = None,
) -> Labelling:
    """Label every pair and write OUT/patterns.yaml; what OUT/answers has is not asked again.

    Args:
        config: What is wanted.
        responder: The language model; not needed for labels by rule.
        on_reply: Called with each reply and the progress after it.

    Raises:
        ConfigError: the benchmark, the model or the file of labels cannot be used. DataError: the model found no patterns.
        TransientError: too many requests failed.
    """
    config.check()
    assert config.benchmark is not None
    pairs = pairs_of(open_benchmark(config.benchmark).questions)
    patterns = {pattern.name: pattern.definition for pattern in NINE}
    kept: dict[str, Label] = {}
    if config.labels is not None:
        patterns, old = read_labels(config.labels)
        kept = {pair_id: label for pair_id, label in old.items() if label.by == "hand" and pair_id in pairs}
    if config.find:
        assert responder is not None
        patterns = _found(config, responder, pairs)
        kept = {}
    left = {pair_id: pair for pair_id, pair in pairs.items() if pair_id not in kept}
    if config.by == "rule":
        labels = {pair_id: label_by_rule(shown_question(pair)) for pair_id, pair in left.items()}
    else:
        assert responder is not None
        labels = _voted(config, responder, left, patterns, on_reply)
    merged = {pair_id: kept.get(pair_id) or labels[pair_id] for pair_id in pairs}
    uri = storage.join(config.out_url, LABELS_FILE)
    write_labels(uri, patterns, merged)
    counts = vote_counts(labels.values(), list(patterns))
    return Labelling(
        uri=uri,
        patterns=patterns,
        labels=merged,
        agreement=_agreement(counts),
        kappa=_kappa(counts, config.num_votes),
    )


def labelling_lines(found: Labelling) -> list[str]:
    """What the job prints."""
    labels = found.labels.values()
    lines = [
        f"  {name:<44} {sum(label.primary == name for label in labels):>5} primary {sum(name in label.others for label in labels):>5} further"
        for name in found.patterns
    ]
    lines.append(f"  {'none':<44} {sum(label.primary is None for label in labels):>5}")
    if found.agreement is not None:
        kappa = "not defined" if found.kappa is None else f"{found.kappa:.2f}"
        lines.append(f"  agreement of votes {found.agreement:.0%}, Fleiss' kappa {kappa}")
    num_split = sum(label.is_split for label in labels)
    if num_split:
        lines.append(f"  {num_split} of {len(found.labels)} pairs are marked is_split: a person should look at them")
    return [*lines, f"  labels: {found.uri} (edit it; --labels keeps what you mark by: hand)"]


def _found(config: PatternsConfig, responder: Responder, pairs: Mapping[str, Sequence[Question]]) -> dict[str, str]:
    reply = next(iter(_replies(config, responder, [ask_for_patterns(pairs)], None)))
    patterns = read_patterns(reply.text or "")
    if not patterns:
        said = reply.error or (reply.text or "")[:120]
        raise DataError(
            f"expected a list of patterns from {responder.name}, found {said!r}; see OUT/answers, or leave --find out"
        )
    return patterns


def _voted(
    config: PatternsConfig,
    responder: Responder,
    pairs: Mapping[str, Sequence[Question]],
    patterns: Mapping[str, str],
    on_reply: Callable[[Reply, AskingProgress], None] | None,
) -> dict[str, Label]:
    asks = [
        ask_for_vote(pair_id, pair, patterns, vote=vote)
        for pair_id, pair in pairs.items()
        for vote in range(config.num_votes)
    ]
    replies = {reply.key: reply for reply in _replies(config, responder, asks, on_reply)}
    labels = {}
    for pair_id, pair in pairs.items():
        mine = [replies[f"vote/{pair_id}/{vote}"] for vote in range(config.num_votes)]
        votes = [None if reply.text is None else read_vote(reply.text, patterns) for reply in mine]
        labels[pair_id] = count_votes(shown_question(pair), votes, list(patterns))
    return labels


def _replies(
    config: PatternsConfig,
    responder: Responder,
    asks: Sequence[Ask],
    on_reply: Callable[[Reply, AskingProgress], None] | None,
) -> list[Reply]:
    folder = storage.join(config.out_url, ANSWERS_FOLDER)
    with AnswerLog(folder, name=responder.name, identity=responder.identity()) as log:
        share = config.asking.max_failed_share
        return list(ask_all(asks, responder, log, on_reply=on_reply, max_failed_share=share))


def _agreement(counts: Sequence[Sequence[int]]) -> float | None:
    import numpy as np

    return percent_agreement(np.asarray(counts, np.int64)) if counts else None


def _kappa(counts: Sequence[Sequence[int]], num_votes: int) -> float | None:
    import numpy as np

    full = [row for row in counts if sum(row) == num_votes]
    return fleiss_kappa(np.asarray(full, np.int64)) if full else None
