"""ask_all: what the log has no answer to is asked, and every prompt gets its reply, kept or new."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from mmvp_ray.errors import ConfigError, DataError, TransientError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.asked_prompts import Prompt, distinct_prompts
from mmvp_ray.evaluate.responder import Ask, Reply, Responder

logger = logging.getLogger(__name__)

MAX_FAILED_SHARE = 0.05
NUM_FIRST = 20
"""If so many prompts failed and the log has no answer at all, the rest is not tried."""
NUM_AWAY = 32
"""If so many prompts, one after the other, failed for a reason that passes, the responder is away and the rest is not tried."""


@dataclass(kw_only=True, slots=True)
class AskingProgress:
    """How far a run is.

    Attributes:
        num_kept: Answers that the log had.
        num_answered: New answers.
        num_failed: Prompts without an answer.
        num_cut: Answers, kept ones too, that ended at the limit of tokens ("length").
        num_empty: Answers, kept ones too, without a word; those that were cut before the first one are among them.
        num_attempts: Tries of all new prompts.
        num_prompt_tokens, num_answer_tokens: Of new answers, as far as the responder counted them.
        first_error: Why the first failed prompt has no answer; empty if none failed.
        first_error_passes: Whether that may be otherwise later.
    """

    num_kept: int = 0
    num_answered: int = 0
    num_failed: int = 0
    num_cut: int = 0
    num_empty: int = 0
    num_attempts: int = 0
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0
    first_error: str = ""
    first_error_passes: bool = False

    @property
    def num_done(self) -> int:
        """Prompts that have a reply."""
        return self.num_kept + self.num_answered + self.num_failed

    @property
    def failed_share(self) -> float:
        """Failed prompts among all, 0 to 1."""
        return self.num_failed / self.num_done if self.num_done else 0.0

    def count(self, reply: Reply, *, new: bool) -> None:
        """Note one more reply."""
        if reply.error is None:
            self.num_cut += reply.finish == "length"
            self.num_empty += not (reply.text or "").strip()
        if not new:
            self.num_kept += 1
            return
        self.num_attempts += reply.num_attempts
        if reply.error is not None:
            if not self.num_failed:
                self.first_error, self.first_error_passes = reply.error, reply.retry_helps
            self.num_failed += 1
            return
        self.num_answered += 1
        self.num_prompt_tokens += reply.num_prompt_tokens or 0
        self.num_answer_tokens += reply.num_answer_tokens or 0


def ask_all(
    asks: Iterable[Ask],
    responder: Responder,
    log: AnswerLog,
    *,
    on_reply: Callable[[Reply, AskingProgress], None] | None = None,
    max_failed_share: float = MAX_FAILED_SHARE,
    num_prompts: int | None = None,
) -> Iterator[Reply]:
    """Yield one reply for every prompt: kept answers from the log, the others as the responder gives them, in any order.

    A new reply is given to the log before it is yielded. A prompt that is given twice is asked once and has one reply. The responder is
    not called if the log has every answer. Beside the replies that the log has between two prompts that it lacks, memory grows by about a
    kilobyte for each prompt.

    Args:
        asks: Prompts; drawn from lazily.
        responder: Answers them.
        log: Opened with the responder's identity.
        on_reply: Called with each reply and the progress after it.
        max_failed_share: Raise at the end if more than this share of all prompts has no answer; 1 never raises.
        num_prompts: How many the share is of, where `asks` are a few that are left of a run's; those of `asks` unless given. Where none of
            `asks` has an answer, that raises whatever the share below 1.

    Raises:
        ConfigError: the responder refuses this user or model, or too many prompts failed for a reason that stays.
        TransientError: the responder stayed away for NUM_AWAY prompts, or too many failed for a reason that may pass; the same run again asks
            them.
        DataError: two different prompts have one key, or the responder gives no reply or two for a prompt.
    """
    progress, open_prompts = AskingProgress(), _OpenPrompts(asks, log)
    patience = _Patience(name=responder.name, max_failed_share=max_failed_share, num_prompts=num_prompts)

    def done(reply: Reply, *, new: bool) -> Reply:
        progress.count(reply, new=new)
        if on_reply is not None:
            on_reply(reply, progress)
        return reply

    for kept in open_prompts.kept_before_first():
        yield done(kept, new=False)
    if open_prompts.waiting:
        replies = responder.answer(open_prompts.draw())
        try:
            for reply in replies:
                for kept in open_prompts.kept_meanwhile():
                    yield done(kept, new=False)
                prompt = open_prompts.waiting.pop(reply.key, None)
                if prompt is None:
                    raise DataError(
                        f"expected one reply for each prompt from {responder.name}, found one more for {reply.key!r}; mend the responder"
                    )
                patience.note(reply, failed_before=log.has_failed(prompt.ask, prompt.image_ids))
                log.add(prompt.ask, prompt.image_ids, reply)
                yield done(reply, new=True)
                patience.check(progress, reply, has_answers=log.num_answers > 0)
        finally:
            # At once, not when the traceback is let go of: requests on their way cost money.
            if isinstance(replies, Generator):
                replies.close()
        for kept in open_prompts.kept_meanwhile():
            yield done(kept, new=False)
        log.flush()
    _warn_of_few_tokens(progress, responder)
    if open_prompts.waiting:
        raise DataError(
            f"expected a reply to every prompt from {responder.name}, found none for {len(open_prompts.waiting)}, such as "
            f"{next(iter(open_prompts.waiting))!r}; mend the responder"
        )
    patience.check_all(progress)


class _OpenPrompts:
    """The prompts that the log has no answer to, drawn lazily; the kept replies that are met on the way wait here to be handed out.

    Attributes:
        waiting: What was drawn and has no reply yet, by key.
    """

    def __init__(self, asks: Iterable[Ask], log: AnswerLog) -> None:
        self._prompts, self._log = distinct_prompts(asks), log
        self.waiting: dict[str, Prompt] = {}
        self._kept: deque[Reply] = deque()

    def kept_before_first(self) -> Iterator[Reply]:
        """The kept replies before the first open prompt, which is drawn; none is held."""
        for prompt in self._prompts:
            found = self._log.find(prompt.ask, prompt.image_ids)
            if found is None:
                self.waiting[prompt.ask.key] = prompt
                return
            yield found

    def draw(self) -> Iterator[Ask]:
        """Every open prompt, from the first one on."""
        # The first one was drawn already.
        yield from [prompt.ask for prompt in self.waiting.values()]
        for prompt in self._prompts:
            found = self._log.find(prompt.ask, prompt.image_ids)
            if found is None:
                self.waiting[prompt.ask.key] = prompt
                yield prompt.ask
            else:
                self._kept.append(found)

    def kept_meanwhile(self) -> Iterator[Reply]:
        """The kept replies that were met since the last call."""
        while self._kept:
            yield self._kept.popleft()


@dataclass(kw_only=True, slots=True)
class _Patience:
    """When so many prompts failed that a run is given up.

    Attributes:
        name: Of the responder.
        max_failed_share, num_prompts: As ask_all is given them.
        num_away: Prompts, one after the other, that failed for a reason that passes.
    """

    name: str
    max_failed_share: float
    num_prompts: int | None
    num_away: int = 0

    def note(self, reply: Reply, *, failed_before: bool) -> None:
        """Take one more new reply into account."""
        if not reply.retry_helps:
            self.num_away = 0
        elif not failed_before:
            # One that failed in an earlier run too may always fail: it does not tell that the responder is away.
            self.num_away += 1

    def check(self, progress: AskingProgress, last: Reply, *, has_answers: bool) -> None:
        """Raise if trying the rest makes no sense."""
        if progress.num_failed >= NUM_FIRST and not has_answers and self.max_failed_share < 1:
            self._give_up(progress)
        if self.num_away >= NUM_AWAY:
            raise TransientError(
                f"expected answers from {self.name}, found none for {self.num_away} prompts one after the other, the last because: "
                f"{last.error}; look at the service, then run the same command again"
            )

    def check_all(self, progress: AskingProgress) -> None:
        """Raise if too many failed of all."""
        num_prompts = self.num_prompts or progress.num_done
        is_silent = progress.failed_share == 1.0 and self.max_failed_share < 1
        if is_silent or (num_prompts and progress.num_failed / num_prompts > self.max_failed_share):
            self._give_up(progress)

    def _give_up(self, progress: AskingProgress) -> NoReturn:
        kind = TransientError if progress.first_error_passes else ConfigError
        prompts = (
            "the prompts" if self.num_prompts is None else f"{self.num_prompts} prompts, and not all that it was asked,"
        )
        without = "" if self.num_prompts is None else ", --max-failed-share 1 goes on without them"
        raise kind(
            f"expected at most {self.max_failed_share:.0%} of {prompts} without an answer from {self.name}, found {progress.num_failed} of "
            f"{progress.num_done}, the first because: {progress.first_error}; the same command asks those again{without}"
        )


def _warn_of_few_tokens(progress: AskingProgress, responder: Responder) -> None:
    # Parsers make something of every text: POPE's official one takes none at all for a yes.
    if progress.num_cut or progress.num_empty:
        logger.warning(
            "%d of %d answers of %s ended at the limit of tokens, %d are empty, and are judged as they are; a model that reasons needs a higher "
            "limit where it has an option",
            progress.num_cut,
            progress.num_done - progress.num_failed,
            responder.name,
            progress.num_empty,
        )
