"""Whose fault a file system's exception is, whether a retry helps, and the retries of what may pass."""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from mmvp_ray.errors import ConfigError, DataError, MmvpError, ResourceError, TransientError

T = TypeVar("T")

NUM_ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.2
MAX_SECONDS = 120.0
"""No attempt begins later than this after the first one: a store that lets every request run into its time limit is given up too."""

FULL_DISK = frozenset([errno.ENOSPC, errno.EDQUOT])
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_CLIENTS = {
    "botocore",
    "aiobotocore",
    "aiohttp",
    "s3fs",
    "gcsfs",
    "adlfs",
    "azure",
    "google",
    "fsspec",
    "requests",
    "urllib3",
}
_FORBIDDEN_SIGNS = re.compile(r"AccessDenied|Forbidden|\b403\b|\b401\b")
_REFUSED_SIGNS = re.compile(
    r"Credential|NoSuchBucket|InvalidBucketName|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|ProfileNotFound"
)
_PASSING_SIGNS = re.compile(
    r"\b(429|500|502|503|504)\b|SlowDown|InternalError|ServiceUnavailable|RequestTimeout|Throttl|TooManyRequests|[Tt]imed? ?out|"
    r"Connection(Reset|Closed|Error| reset| was closed| aborted)|EndpointConnection|ServerDisconnected|IncompleteRead|"
    r"PayloadError|Could not connect|reach max retries|FileExpired|NoSuchUpload"
)


def translate(error: Exception, *, action: str, uri: str) -> Exception:
    """The mmvp-ray error that says whose fault a file system's exception is, and whether a retry helps.

    An exception that comes from no file system is a defect of ours (or an error of ours already) and is given back as it is.
    """
    chain = _chain(error)
    if isinstance(error, MmvpError) or not any(_of_file_system(one) for one in chain):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    signs = " ".join(sign for one in chain for sign in _signs(one))
    number = getattr(error, "errno", None)
    if number in FULL_DISK:
        return ResourceError(f"no space left while {action} {uri}; free space or choose another --out or --store")
    if _REFUSED_SIGNS.search(signs):
        return ConfigError(
            f"the object store refused while {action} {uri} ({text}); check the bucket's name, the endpoint and the credentials"
        )
    if isinstance(error, FileNotFoundError) and "NoSuchUpload" not in signs:
        return DataError(f"expected a file at {uri}, found none while {action} it ({text})")
    if isinstance(error, PermissionError) or number in _FORBIDDEN or _FORBIDDEN_SIGNS.search(signs):
        return ConfigError(
            f"no permission while {action} {uri} ({text}); check credentials and the rights on the bucket or folder"
        )
    if isinstance(error, (NotADirectoryError, IsADirectoryError, FileExistsError)):
        return ConfigError(
            f"expected a folder where a folder is needed and a file where a file is, found it otherwise while {action} {uri} ({text}); "
            f"choose another path"
        )
    if isinstance(error, (ConnectionError, TimeoutError)) or number == errno.ESTALE or _PASSING_SIGNS.search(signs):
        return TransientError(f"the file system was unwell while {action} {uri} ({type(error).__name__}: {text})")
    if isinstance(error, OSError):
        return DataError(f"{action} {uri} failed ({type(error).__name__}: {text})")
    return ConfigError(
        f"the object store could not be used while {action} {uri} ({type(error).__name__}: {text}); check the URL and its settings"
    )


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def _of_file_system(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.split(".", 1)[0] in _CLIENTS


def _signs(error: BaseException) -> list[str]:
    # Of an OSError of the kernel only the words, never the file's name: a path may hold any number.
    message = error.strerror if isinstance(error, OSError) and error.filename is not None else str(error)
    words = re.sub(r"\b\d+\b", "", message or "") if isinstance(error, OSError) else message
    response = getattr(error, "response", None)
    found = response if isinstance(response, dict) else {}
    codes = [
        found.get("Error", {}).get("Code"),
        found.get("ResponseMetadata", {}).get("HTTPStatusCode"),
        getattr(error, "status", None),
        getattr(error, "status_code", None),
        getattr(error, "code", None),
    ]
    return [type(error).__name__, words or "", *(str(code) for code in codes if isinstance(code, (str, int)))]


def pause_seconds(attempt: int) -> float:
    """Seconds to wait after failure number `attempt` (from 0): doubled each time, and drawn from the upper half of that.

    Tasks that were slowed down together do not come back together.
    """
    return float(FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311  # no secret


def with_retries(action: str, uri: str, work: Callable[[], T]) -> T:
    """Run `work`, again after a growing pause while it fails for a passing reason.

    Raises:
        ConfigError, DataError, ResourceError: at once, a retry would not help.
        TransientError: after `NUM_ATTEMPTS` attempts, or the first failure after `MAX_SECONDS`.
    """
    started = time.monotonic()
    for attempt in range(NUM_ATTEMPTS):
        try:
            return work()
        except Exception as error:
            meant = translate(error, action=action, uri=uri)
            is_last = attempt == NUM_ATTEMPTS - 1 or time.monotonic() - started > MAX_SECONDS
            if not isinstance(meant, TransientError) or is_last:
                if meant is error:
                    raise
                raise meant from error
            time.sleep(pause_seconds(attempt))
    raise AssertionError("the loop above returns or raises")
