"""MMVP-VLM's sentences: one statement for each image, proposed from question and answer, worded by a person, reviewed by another."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmvp_ray.annotate.holding import check_seen, hold, release
from mmvp_ray.annotate.people import User
from mmvp_ray.annotate.rules import MAX_NOTE_CHARS, REVIEW, STATE, clean
from mmvp_ray.annotate.workspace import Workspace, record
from mmvp_ray.errors import ConfigError

MAX_STATEMENT_CHARS: Final = 200
WRITTEN, APPROVED, RETURNED = "written", "approved", "returned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """The statements of a pair that are not settled yet: written and waiting for review, or returned to be reworded.

    Attributes:
        statement_id: Of the statements table.
        state: WRITTEN or RETURNED.
        author: Name.
        text_a, text_b: One sentence for each image.
        comment: Of the reviewer who returned them.
        question: Of the annotation.
        answer_a, answer_b: Texts of the options that are right.
    """

    statement_id: int
    state: str
    author: str
    text_a: str
    text_b: str
    comment: str
    question: str
    answer_a: str
    answer_b: str


def check_statements(text_a: str, text_b: str) -> dict[str, str]:
    """What must be mended before statements are kept: "text_a" or "text_b" -> one sentence. They are looked at as rules.clean leaves them."""
    problems = {}
    texts = {"text_a": clean(text_a), "text_b": clean(text_b)}
    for name, text in texts.items():
        if not text:
            problems[name] = "Write a sentence."
        elif len(text) > MAX_STATEMENT_CHARS:
            problems[name] = f"At most {MAX_STATEMENT_CHARS} characters."
        elif "?" in text:
            problems[name] = "Write a statement, not a question."
    if not problems and texts["text_a"].casefold() == texts["text_b"].casefold():
        problems["text_b"] = "The sentences must differ."
    return problems


def write(workspace: Workspace, user: User, pair_id: int, text_a: str, text_b: str) -> None:
    """Write the statements of a verified pair; somebody else reviews them.

    Raises:
        NotHeldError: the pair is somebody else's, not verified, or has statements. ConfigError: check_statements has something to say.
    """
    problems = check_statements(text_a, text_b)
    if problems:
        raise ConfigError(" ".join(f"{name}: {problem}" for name, problem in problems.items()))
    with workspace.transaction() as connection:
        hold(connection, user, STATE, pair_id)
        cursor = connection.execute(
            "INSERT INTO statements (annotation_id, author, text_a, text_b, state, created_at) "
            "SELECT annotation_id, ?, ?, ?, ?, ? FROM annotations WHERE pair_id = ? AND replaced_at IS NULL",
            (user.user_id, clean(text_a), clean(text_b), WRITTEN, time.time(), pair_id),
        )
        content = {"statement_id": cursor.lastrowid, "text_a": clean(text_a), "text_b": clean(text_b)}
        release(connection, pair_id)
        record(connection, "statement_written", content, user_id=user.user_id, pair_id=pair_id)


def review(
    workspace: Workspace, user: User, pair_id: int, approve: bool, comment: str = "", *, seen: int | None = None
) -> None:
    """Approve statements that somebody else wrote, or return them with a comment; returned ones are written anew.

    Args:
        workspace: Where.
        user: The reviewer.
        pair_id: The pair.
        approve: Or return.
        comment: What to reword.
        seen: The statement_id that the reviewer read (holding.check_seen).

    Raises:
        NotHeldError: the pair is somebody else's, has no statements by others that wait, or has others than those seen. ConfigError: returned without a comment, or too
            long a comment.
    """
    comment = clean(comment)
    if not approve and not comment:
        raise ConfigError("Say in the comment what to reword.")
    if len(comment) > MAX_NOTE_CHARS:
        raise ConfigError(f"expected a comment of at most {MAX_NOTE_CHARS} characters, found {len(comment)}")
    state = APPROVED if approve else RETURNED
    with workspace.transaction() as connection:
        hold(connection, user, REVIEW, pair_id)
        reviewed = connection.execute(
            "UPDATE statements SET state = ?, reviewer = ?, comment = ?, reviewed_at = ? WHERE state = ? AND annotation_id = "
            "(SELECT annotation_id FROM annotations WHERE pair_id = ? AND replaced_at IS NULL) RETURNING statement_id",
            (state, user.user_id, comment, time.time(), WRITTEN, pair_id),
        ).fetchone()
        check_seen(pair_id, reviewed["statement_id"], seen)
        content = {"statement_id": reviewed["statement_id"], "comment": comment}
        release(connection, pair_id)
        record(connection, f"statement_{state}", content, user_id=user.user_id, pair_id=pair_id)


def pending(workspace: Workspace, pair_id: int) -> Pending | None:
    """The latest statements of a pair unless they are approved; None if there are none."""
    found = workspace.row(
        "SELECT statements.*, users.name AS author_name, question, options, answer_a, answer_b FROM statements "
        "JOIN annotations USING (annotation_id) JOIN users ON user_id = statements.author "
        "WHERE pair_id = ? AND replaced_at IS NULL ORDER BY statement_id DESC LIMIT 1",
        pair_id,
    )
    if found is None or found["state"] == APPROVED:
        return None
    options = json.loads(found["options"])
    return Pending(
        statement_id=found["statement_id"],
        state=found["state"],
        author=found["author_name"],
        text_a=found["text_a"],
        text_b=found["text_b"],
        comment=found["comment"],
        question=found["question"],
        answer_a=options[found["answer_a"]],
        answer_b=options[found["answer_b"]],
    )


def propose(question: str, option_text: str) -> str:
    """A sentence that says what a question's answer says, for a person to reword.

    A handful of forms of question become a sentence; of any other, question and answer are joined as they are. Nothing is kept of it unless
    somebody writes it.
    """
    asked = clean(question).rstrip("?. ")
    option = _plain_option(asked, clean(option_text))
    for shown in (_IN_PICTURE.sub("", asked), asked):
        for form in _FORMS:
            sentence = form(shown, option)
            if sentence:
                return sentence[0].upper() + sentence[1:] + "."
    return f"{clean(question)} {clean(option_text)}".strip()


_IN_PICTURE: Final = re.compile(r" in (?:the|this) (?:image|picture|photo)\b", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\d+|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve", re.IGNORECASE)
_SINGLE: Final = {"1", "one"}
_PRONOUN: Final = re.compile(r"it|he|she|they|this|that|these|those", re.IGNORECASE)
_PLACE: Final = re.compile(
    r"in|on|at|under|above|below|behind|beside|near|next|inside|outside|with|without|from|to|towards|between|against|over",
    re.IGNORECASE,
)
_BEGINS_PREDICATE: Final = re.compile(
    rf"{_PLACE.pattern}|an?|not|visible|made|closer|more|less|mostly|fully|partly", re.IGNORECASE
)
_BEFORE_NOUN: Final = re.compile(r"an?|the|this|that|these|those|his|her|its|their|your|any|some|of|to", re.IGNORECASE)
"""After these a word in -ing is part of a noun: "next to the sleeping dog"."""


def _plain_option(question: str, option: str) -> str:
    """The option as it would stand inside a sentence: as the question spells it, or with a small first letter if it is a plain word."""
    option = option.rstrip(". ")
    in_question = re.search(rf"(?<!\w){re.escape(option)}(?!\w)", question, re.IGNORECASE) if option else None
    if in_question and in_question.start() > 0:
        return in_question[0]
    first = option.split(" ")[0]
    return option[0].lower() + option[1:] if len(first) > 1 and first[1:].islower() else option


def _halves(phrase: str, *, latest: int | None = None) -> tuple[str, str] | None:
    """Subject and predicate of "the dog facing left"; `latest` is where the predicate begins at the latest, in words."""
    words = phrase.split()
    last = len(words) - 1 if latest is None else latest
    if not 1 <= last < len(words):
        return None
    alone = _PRONOUN.fullmatch(words[0]) and (last == 1 or _BEGINS_PREDICATE.fullmatch(words[1]))
    first = 2 if _BEFORE_NOUN.fullmatch(words[0]) and not alone else 1
    if last < first:
        return None
    inner = range(first, last + 1)
    verbs = [at for at in inner if words[at].endswith("ing") and not _BEFORE_NOUN.fullmatch(words[at - 1])]
    places = [at for at in inner if _BEGINS_PREDICATE.fullmatch(words[at])]
    begin = 1 if alone else min(verbs or places or [last])
    return " ".join(words[:begin]), " ".join(words[begin:])


def _there_is(asked: str, option: str) -> str | None:
    found = re.fullmatch(r"(is|are|was|were) there (?:(?:an?|any|some) )?(.+)", asked, re.IGNORECASE)
    if found is None or option.casefold() not in {"yes", "no"} or " or " in found[2]:
        return None
    verb = found[1].lower()
    article = re.match(r"\S+ there (an? )", asked, re.IGNORECASE)
    return (
        f"there {verb} {article[1].lower() if article else ''}{found[2]}"
        if option.casefold() == "yes"
        else f"there {verb} no {found[2]}"
    )


def _yes_or_no(asked: str, option: str) -> str | None:
    found = re.fullmatch(r"(is|are|was|were) (.+)", asked, re.IGNORECASE)
    if found is None or option.casefold() not in {"yes", "no"} or " or " in found[2]:
        return None
    halves = _halves(found[2])
    negation = " not" if option.casefold() == "no" else ""
    return None if halves is None else f"{halves[0]} {found[1].lower()}{negation} {halves[1]}"


def _has(asked: str, option: str) -> str | None:
    found = re.fullmatch(r"(does|do) (.+?) have (.+)", asked, re.IGNORECASE)
    if found is None or option.casefold() not in {"yes", "no"} or " or " in found[3]:
        return None
    one = found[1].lower() == "does"
    if option.casefold() == "no":
        return f"{found[2]} {found[1].lower()} not have {found[3]}"
    return f"{found[2]} {'has' if one else 'have'} {found[3]}"


def _one_of_two(asked: str, option: str) -> str | None:
    found = re.fullmatch(r"(is|are|was|were) (.+?),? or (.+)", asked, re.IGNORECASE)
    if found is None or not option or " or " in found[3] or "," in found[2]:
        return None
    left, right = found[2], found[3]
    if left.casefold().endswith(f" {option.casefold()}"):
        stem = left[: -len(option)].split()
    elif right.casefold() == option.casefold():
        # How long the other option is can only be guessed: as long as this one.
        stem = left.split()[: -len(option.split())]
    else:
        return None
    halves = _halves(" ".join([*stem, option]), latest=len(stem))
    return None if halves is None else f"{halves[0]} {found[1].lower()} {halves[1]}"


def _how_many(asked: str, option: str) -> str | None:
    if not _NUMBER.fullmatch(option):
        return None
    verb = "is" if option.casefold() in _SINGLE else "are"
    found = re.fullmatch(r"how many (.+?) (?:are|is) there(?: (.+))?", asked, re.IGNORECASE)
    if found:
        return " ".join(filter(None, ("there", verb, option, _counted(found[1], option), found[2])))
    found = re.fullmatch(r"how many (.+?) (?:are|is) (.+)", asked, re.IGNORECASE)
    if found:
        return f"{option} {_counted(found[1], option)} {verb} {found[2]}"
    found = re.fullmatch(r"how many (.+?) (does|do) (.+) have", asked, re.IGNORECASE)
    if found:
        return f"{found[3]} {'has' if found[2].lower() == 'does' else 'have'} {option} {_counted(found[1], option)}"
    return None


def _counted(things: str, option: str) -> str:
    return things[:-1] if option.casefold() in _SINGLE and re.search(r"[^sie]s$", things) else things


def _what(asked: str, option: str) -> str | None:
    for pattern in (
        r"(?:what|which) colou?r (is|are) (.+)()",
        r"(?:in )?(?:what|which) (?:direction|way) (is|are) (.+) (\w+ing)(?: in| to| towards)?",
    ):
        found = re.fullmatch(pattern, asked, re.IGNORECASE)
        if found and option:
            return " ".join(filter(None, (found[2], found[1].lower(), found[3], option)))
    found = re.fullmatch(r"(?:where (is|are) (.+)|what (is|are) (.+) doing)", asked, re.IGNORECASE)
    if found is None or not option:
        return None
    first = option.split()[0]
    fits = _PLACE.fullmatch(first) if found[1] else first.endswith("ing")
    return f"{found[2] or found[4]} {(found[1] or found[3]).lower()} {option}" if fits else None


_FORMS: Final[tuple[Callable[[str, str], str | None], ...]] = (
    _there_is,
    _yes_or_no,
    _has,
    _one_of_two,
    _how_many,
    _what,
)
