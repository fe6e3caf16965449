"""How often one address may try to log in: a sliding minute in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import Final

WINDOW_SECONDS: Final = 60.0
MAX_ADDRESSES: Final = 10_000


class LoginLimit:
    """Counts attempts by address; thread-safe. Addresses that were quiet longest are forgotten first.

    Args:
        per_minute: Attempts that one address has in a minute.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._attempts: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, address: str, *, now: float | None = None) -> bool:
        """Count an attempt, and say whether it may go on."""
        now = time.monotonic() if now is None else now
        with self._lock:
            mine = self._attempts.setdefault(address, deque())
            self._attempts.move_to_end(address)
            while mine and mine[0] <= now - WINDOW_SECONDS:
                mine.popleft()
            while len(self._attempts) > MAX_ADDRESSES:
                self._attempts.popitem(last=False)
            if len(mine) >= self._per_minute:
                return False
            mine.append(now)
            return True
