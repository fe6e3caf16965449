"""Rate: when the next request may begin, under a limit of requests and one of tokens a minute, and after "wait" from the server.

Requests are spread evenly rather than sent in bursts: services enforce a limit per minute over shorter spans too. In any minute at
most `requests_per_minute` begin; tokens stay within their limit up to the last request, which is let in before its cost is known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

MINUTE_SECONDS = 60.0
SLACK_SECONDS = 0.05
"""A timer that rings late by up to this is caught up with; the spacing is that much wider, so that the limit holds all the same."""


class Rate:
    """The limits of one run; used from one asyncio loop.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
        clock: Seconds that only grow.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        minute = MINUTE_SECONDS + SLACK_SECONDS
        self._seconds_per_request = 0.0 if requests_per_minute is None else minute / requests_per_minute
        self._seconds_per_token = 0.0 if tokens_per_minute is None else minute / tokens_per_minute
        self._clock = clock
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self._next_request = clock()
        self._next_token = self._next_request
        self._paused_until = self._next_request

    async def turn(self, num_tokens: float) -> None:
        """Wait until a request of so many tokens may begin; those who came first go first."""
        async with self._lock:
            # Again after each sleep: meanwhile the server may have asked for patience, or an answer cost less than thought.
            while (wait := self._ready_at() - self._clock()) > 0:
                await self._sleep(wait)
            earliest = self._clock() - SLACK_SECONDS
            self._next_request = max(self._next_request, earliest) + self._seconds_per_request
            self._next_token = max(self._next_token, earliest) + self._seconds_per_token * num_tokens

    def settle(self, expected: float, found: float) -> None:
        """Correct the tokens that a request was let in with by those that it took."""
        self._next_token += self._seconds_per_token * (found - expected)

    def pause(self, seconds: float) -> bool:
        """Let nobody begin for so long: the server said so. Gives whether nobody was held yet."""
        now = self._clock()
        is_new = self._paused_until <= now
        self._paused_until = max(self._paused_until, now + seconds)
        return is_new

    def _ready_at(self) -> float:
        return max(self._next_request, self._next_token, self._paused_until)
