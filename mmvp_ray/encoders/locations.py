"""Where a model's files are: a path on this machine, a remote directory, or a repository of the Hugging Face hub (its cache first)."""

from __future__ import annotations

import difflib
import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmvp_ray.encoders.folders import is_url, local_copy
from mmvp_ray.encoders.weights import one_line
from mmvp_ray.errors import ConfigError, ResourceError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)


def looks_like_path(text: str) -> bool:
    """Whether a name can only be meant as a path or URL."""
    return text.startswith(("/", "./", "../", "~")) or text in (".", "..") or is_url(text)


def local_directory(text: str, *, name: str) -> Path | None:
    """The absolute directory that `text` names, or None where it names none and may be a hub id; of a URL a copy on this machine.

    Raises:
        ConfigError: `text` looks like a path, and there is no such directory. Others as for `folders.local_copy`.
    """
    if is_url(text):
        return local_copy(text, name=name)
    path = Path(text).expanduser()
    if path.is_dir():
        return path.resolve()
    if looks_like_path(text):
        found = "a file" if path.is_file() else "nothing"
        raise ConfigError(f"Encoder {name!r}: expected a directory of weights at {path}, found {found}; check the path")
    return None


def near_matches(word: str, known: Iterable[str], *, count: int = 5) -> str:
    """The known names nearest to an unknown one, for a message."""
    choices = list(known)
    by_lower = {choice.lower(): choice for choice in choices}
    found = [by_lower[match] for match in difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=0.5)]
    return ", ".join(found or sorted(choices)[:count])


def split_revision(text: str) -> tuple[str, str | None]:
    """Split "id@revision"; the revision is None where none is given."""
    repo_id, _, revision = text.partition("@")
    return repo_id, revision or None


def open_snapshot(
    repo_id: str,
    *,
    revision: str | None,
    patterns: Sequence[str],
    is_complete: Callable[[Path], bool],
    name: str,
    instead: str = "give a local directory in place of the name",
) -> Path:
    """The directory of a hub repository at one revision: from the local cache if it is all there, else fetched.

    Args:
        repo_id: "owner/name".
        revision: A branch, tag or commit; None is "main".
        patterns: The files to fetch, as shell patterns.
        is_complete: Whether a cached snapshot holds all that is needed; if so, the network is not touched.
        name: The encoder's name, for messages.
        instead: What the user can do without the hub, for messages.

    Returns:
        The snapshot's directory; its own name is the commit.

    Raises:
        ConfigError: No such repository or revision, no right to read it, or no connection and nothing in the cache.
        TransientError: The hub answered that it is overloaded or broken.
        ResourceError: The disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The hub client's HTTP library is httpx in version 1 and httpx2 in version 2; its error base is the same place.
    http_error: Any = HfHubHTTPError.__bases__[0]
    where = f"{repo_id}@{revision}" if revision else repo_id
    try:
        cached = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
        if is_complete(cached):
            return cached
    except HFValidationError as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a local directory or a hub id such as owner/name, found {repo_id!r}, "
            "which is neither; check the path"
        ) from error
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise ConfigError(
            f"Encoder {name!r}: the hub repository {where} is gated; accept its terms on its page, then run "
            "'hf auth login'"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            f"Encoder {name!r}: expected a local directory or a hub repository, found neither: no directory "
            f"{repo_id!r} and no repository {where} that this user may read; check the name"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if _is_overload(error.__cause__):
            raise TransientError(f"Encoder {name!r}: the hub is overloaded or broken ({one_line(error)})") from error
        raise ConfigError(
            f"Encoder {name!r}: expected its files in the local Hugging Face cache or from the hub, found neither: "
            f"tried the directory {repo_id!r}, the cache for {where}, and the hub, which cannot be reached "
            f"({one_line(error)}); run 'hf download {repo_id}' where there is a network and copy the cache, or "
            f"{instead}"
        ) from error
    except HfHubHTTPError as error:
        kind = TransientError if _is_overload(error) else ConfigError
        raise kind(f"Encoder {name!r}: the hub refused {where} ({one_line(error)})") from error
    except http_error as error:
        raise TransientError(f"Encoder {name!r}: the connection to the hub broke off ({one_line(error)})") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceError(
                f"Encoder {name!r}: the disk of the Hugging Face cache is full; free some, or set HF_HOME"
            ) from error
        raise ConfigError(
            f"Encoder {name!r}: cannot write the Hugging Face cache ({one_line(error)}); set HF_HOME"
        ) from error


def open_weights(
    repo_id: str,
    *,
    revision: str | None,
    weights: Sequence[str],
    name: str,
    instead: str,
    required: Sequence[str] = (),
    others: Sequence[str] = (),
) -> Path:
    """A snapshot that holds one of several weight files: safetensors if the repository has them, else torch files.

    Args:
        repo_id: As in `open_snapshot`.
        revision: As in `open_snapshot`.
        weights: The names that a weight file may have.
        name: As in `open_snapshot`.
        instead: As in `open_snapshot`.
        required: Files that must be there as well.
        others: Patterns of files that are fetched with them.

    Returns:
        As in `open_snapshot`; that a weight file is there is for the caller to check (`first_file`).

    Raises:
        ConfigError, TransientError, ResourceError: As in `open_snapshot`.
    """

    def is_complete(directory: Path) -> bool:
        return any((directory / file).is_file() for file in weights) and all(
            (directory / file).is_file() for file in required
        )

    safe = [file for file in weights if file.endswith(".safetensors")]
    for patterns in (safe, weights):
        directory = open_snapshot(
            repo_id,
            revision=revision,
            patterns=[*patterns, *required, *others],
            is_complete=is_complete,
            name=name,
            instead=instead,
        )
        if is_complete(directory):
            break
    return directory


def first_file(directory: Path, candidates: Sequence[str], *, name: str) -> Path:
    """The first of several files that a directory has.

    Raises:
        ConfigError: It has none.
    """
    for file_name in candidates:
        if (directory / file_name).is_file():
            return directory / file_name
    raise ConfigError(f"Encoder {name!r}: expected one of {', '.join(candidates)} in {directory}, found none")


def _is_overload(error: BaseException | None) -> bool:
    """Whether an HTTP error is one of those that pass by themselves."""
    return getattr(getattr(error, "response", None), "status_code", None) in _TRANSIENT_STATUS
