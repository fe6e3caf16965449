"""ask_all: what the log has no answer to is asked, and every prompt gets its reply, kept or new."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from mmvp_ray.errors import ConfigError, DataError, MmvpError, TransientError
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.answer_parts import content_digest
from mmvp_ray.evaluate.image_payload import read_image
from mmvp_ray.evaluate.responder import Ask, Reply, Responder

logger = logging.getLogger(__name__)

MAX_FAILED_SHARE = 0.05
NUM_FIRST = 20
"""If so many prompts failed and the log has no answer at all, the rest is not tried."""
NUM_AWAY = 32
"""If so many prompts, one after the other, failed for a reason that passes, the responder is away and the rest is not tried."""
NUM_READING_THREADS = 16
NUM_AHEAD = 64
NUM_KNOWN_IMAGES = 1 << 16
UNREADABLE = "unreadable"
"""Stands for the id of an image that cannot be read: its prompt goes on, fails, and is another one when the image is back."""


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
    progress = AskingProgress()
    waiting: dict[str, tuple[Ask, tuple[str, ...]]] = {}
    kept: deque[Reply] = deque()
    num_away = 0

    def done(reply: Reply, *, new: bool) -> Reply:
        progress.count(reply, new=new)
        if on_reply is not None:
            on_reply(reply, progress)
        return reply

    looked_up = _looked_up(asks, log)

    def missing() -> Iterator[Ask]:
        for ask, image_ids, found in looked_up:
            if found is not None:
                kept.append(found)
            else:
                waiting[ask.key] = (ask, image_ids)
                yield ask

    for ask, image_ids, found in looked_up:
        if found is None:
            waiting[ask.key] = (ask, image_ids)
            replies = responder.answer(itertools.chain([ask], missing()))
            break
        yield done(found, new=False)
    else:
        _warn_of_few_tokens(progress, responder)
        return
    try:
        for reply in replies:
            while kept:
                yield done(kept.popleft(), new=False)
            if reply.key not in waiting:
                raise DataError(
                    f"expected one reply for each prompt from {responder.name}, found one more for {reply.key!r}; mend the responder"
                )
            ask, image_ids = waiting.pop(reply.key)
            if not reply.retry_helps:
                num_away = 0
            elif not log.has_failed(ask, image_ids):
                # One that failed in an earlier run too may always fail: it does not tell that the responder is away.
                num_away += 1
            log.add(ask, image_ids, reply)
            yield done(reply, new=True)
            if progress.num_failed >= NUM_FIRST and not log.num_answers and max_failed_share < 1:
                raise _too_many(progress, responder, max_failed_share, num_prompts)
            if num_away >= NUM_AWAY:
                raise TransientError(
                    f"expected answers from {responder.name}, found none for {num_away} prompts one after the other, the last because: "
                    f"{reply.error}; look at the service, then run the same command again"
                )
    finally:
        # At once, not when the traceback is let go of: requests on their way cost money.
        if isinstance(replies, Generator):
            replies.close()
    while kept:
        yield done(kept.popleft(), new=False)
    log.flush()
    _warn_of_few_tokens(progress, responder)
    if waiting:
        raise DataError(
            f"expected a reply to every prompt from {responder.name}, found none for {len(waiting)}, such as {next(iter(waiting))!r}; mend "
            f"the responder"
        )
    is_silent = progress.failed_share == 1.0 and max_failed_share < 1
    if is_silent or progress.num_failed / (num_prompts or progress.num_done) > max_failed_share:
        raise _too_many(progress, responder, max_failed_share, num_prompts)


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


def _too_many(
    progress: AskingProgress, responder: Responder, max_failed_share: float, num_prompts: int | None
) -> MmvpError:
    kind = TransientError if progress.first_error_passes else ConfigError
    prompts = "the prompts" if num_prompts is None else f"{num_prompts} prompts, and not all that it was asked,"
    without = "" if num_prompts is None else ", --max-failed-share 1 goes on without them"
    return kind(
        f"expected at most {max_failed_share:.0%} of {prompts} without an answer from {responder.name}, found {progress.num_failed} of "
        f"{progress.num_done}, the first because: {progress.first_error}; the same command asks those again{without}"
    )


def _looked_up(asks: Iterable[Ask], log: AnswerLog) -> Iterator[tuple[Ask, tuple[str, ...], Reply | None]]:
    """Each prompt once, with the ids of its images and the answer that the log has.

    Raises:
        DataError: two different prompts have one key.
    """
    seen: dict[str, str] = {}
    for ask, image_ids in _with_image_ids(asks):
        digest = content_digest(ask, image_ids)[:16]
        if ask.key not in seen:
            seen[ask.key] = digest
            yield ask, image_ids, log.find(ask, image_ids)
        elif seen[ask.key] != digest:
            raise DataError(f"expected one prompt for each key, found two different ones for {ask.key!r}")


def image_id(uri: str) -> str:
    """SHA-256 of the encoded image at `uri`, 64 hex digits; UNREADABLE if there is none.

    Raises:
        ConfigError: no permission.
    """
    try:
        return hashlib.sha256(read_image(uri)).hexdigest()
    except (DataError, TransientError):
        return UNREADABLE


def _with_image_ids(asks: Iterable[Ask]) -> Iterator[tuple[Ask, tuple[str, ...]]]:
    """Each prompt with the ids of its images, read some prompts ahead, for a bucket answers slowly."""
    known = lru_cache(NUM_KNOWN_IMAGES)(image_id)
    ahead: deque[tuple[Ask, Future[tuple[str, ...]]]] = deque()
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        try:
            for ask in asks:
                ahead.append((ask, pool.submit(lambda ask: tuple(known(uri) for uri in ask.image_uris), ask)))
                if len(ahead) >= NUM_AHEAD:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
