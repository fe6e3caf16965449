"""What a language model is asked about visual patterns, and how its answers are read: the paper's two steps, as text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmvp_ray.benchmark.items import Question
from mmvp_ray.evaluate.answer_text import read_answer_text
from mmvp_ray.evaluate.responder import Ask

PAPER_PROMPT = (
    "I am analyzing an image embedding model. Can you go through the questions and options, trying to figure out some general "
    "patterns that the embedding model struggles with? Please focus on the visual features and generalize patterns that are "
    "important to vision models"
)
"""The paper's prompt to GPT-4 (section 3.1), as quoted; the questions and options follow it."""
LIST_REQUEST = (
    "End your answer with the patterns as a JSON list of objects with the keys "
    '"name" (a few words) and "definition" (one sentence), and nothing after it.'
)
"""Ours: the paper read its answer by hand."""
MAX_FIND_TOKENS, MAX_VOTE_TOKENS = 4096, 512
NO_PATTERN = "none of these"
MAX_NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer to the question which patterns a question is about.

    Attributes:
        primary: Name of the pattern that decides it; None where the answer says that none does.
        others: Further patterns that it shows, without the primary one.
    """

    primary: str | None
    others: tuple[str, ...] = ()


def shown_question(pair: Sequence[Question]) -> str:
    """The questions of a pair with their options, each text once: most pairs ask the same of both images."""
    texts = [f"{question.text} Options: {' / '.join(question.options)}" for question in pair]
    return " ".join(dict.fromkeys(texts))


def ask_for_patterns(pairs: Mapping[str, Sequence[Question]], *, draw: int = 0) -> Ask:
    """The paper's request: all questions and options at once, general patterns back.

    Args:
        pairs: Questions by pair, as benchmark.pairs_of gives them.
        draw: Number of the request; from 1 on the pairs come in another order each time.
    """
    texts = [shown_question(pair) for pair in pairs.values()]
    if draw:
        random.Random(draw).shuffle(texts)  # noqa: S311  (an order, no secret)
    lines = "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))
    return Ask(key=f"find/{draw}", prompt=f"{PAPER_PROMPT} {lines}\n\n{LIST_REQUEST}", max_tokens=MAX_FIND_TOKENS)


def read_patterns(text: str) -> dict[str, str]:
    """Name to definition out of an answer to `ask_for_patterns`; empty where the answer holds no such list.

    The last JSON list of objects with a name counts; without one, numbered or bulleted lines `name: definition`.
    """
    for start in [match.start() for match in re.finditer(r"\[", text)][::-1]:
        try:
            found, _ = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            continue
        if isinstance(found, list) and found and all(isinstance(one, dict) and one.get("name") for one in found):
            return {_name(str(one["name"])): str(one.get("definition", "")).strip() for one in found}
    lines = re.findall(r"^\s*(?:\d+[.)]|[-*])\s+(.+)$", text, flags=re.MULTILINE)
    named = [re.split(r"\s*:\s*", line.replace("**", ""), maxsplit=1) for line in lines]
    return {_name(parts[0]): parts[1].strip() for parts in named if len(parts) == 2 and len(parts[0]) <= MAX_NAME_CHARS}


def ask_for_vote(pair_id: str, pair: Sequence[Question], patterns: Mapping[str, str], *, vote: int) -> Ask:
    """Which of the patterns does a pair's question show?

    The patterns stand in another order in each vote, so that a model that leans to the first one does not agree with itself.

    Args:
        pair_id: Key of the pair.
        pair: Its questions.
        patterns: Name to definition.
        vote: Number of the vote.
    """
    names = list(patterns)
    random.Random(f"{vote} {pair_id}").shuffle(names)  # noqa: S311  (an order, no secret)
    listed = "\n".join(f"- {name}: {patterns[name]}" if patterns[name] else f"- {name}" for name in names)
    prompt = (
        "Two images look alike but have different answers to this question:\n"
        f"{shown_question(pair)}\n\n"
        f"Which of these visual patterns must one see to answer it?\n{listed}\n\n"
        "Answer with one JSON object and nothing else: "
        f'{{"primary": "<the one pattern that decides the answer, or {NO_PATTERN}>", "others": ["<further patterns, often none>"]}}'
    )
    return Ask(key=f"vote/{pair_id}/{vote}", prompt=prompt, max_tokens=MAX_VOTE_TOKENS)


def read_vote(text: str, patterns: Mapping[str, str]) -> Vote | None:
    """A vote out of an answer to `ask_for_vote`; None where it cannot be read.

    Thoughts are left out. Names count without regard to case, spaces and quotes. An answer without JSON counts when it names exactly one
    pattern, or says that none fits and names none.
    """
    text = read_answer_text(text).text
    by_plain = {_plain(name): name for name in patterns}
    for start in [match.start() for match in re.finditer(r"\{", text)]:
        try:
            found, _ = json.JSONDecoder().raw_decode(text[start:])
        except ValueError:
            continue
        if not isinstance(found, dict) or "primary" not in found:
            continue
        primary = _plain(str(found["primary"]))
        if primary != _plain(NO_PATTERN) and primary not in by_plain:
            return None
        listed = found.get("others")
        others = [_plain(str(one)) for one in listed] if isinstance(listed, list) else []
        names = dict.fromkeys(by_plain[one] for one in others if one in by_plain and one != primary)
        return Vote(by_plain.get(primary), tuple(names))
    left = _plain(text)
    named: list[str | None] = []
    names = {**by_plain, _plain(NO_PATTERN): None}
    # The longest first: "Relational Context" names no "Context".
    for plain in sorted(names, key=len, reverse=True):
        left, count = re.subn(rf"(?<!\w){re.escape(plain)}(?!\w)", ".", left)
        named += [names[plain]] * bool(count)
    return Vote(named[0]) if len(named) == 1 else None


def _name(text: str) -> str:
    return " ".join(text.split()).strip(" \"'*.")


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w ]", " ", text.casefold()).split())
