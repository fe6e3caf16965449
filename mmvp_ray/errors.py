"""The only exceptions of mmvp-ray: whose fault it is, and whether a retry helps."""

from __future__ import annotations


class MmvpError(Exception):
    """Root of every error that mmvp-ray raises on purpose.

    A message is one line: what was expected, what was found, where, and what to do.
    """


class ConfigError(MmvpError, ValueError):
    """The user's input cannot be used as it is: a flag, a YAML key, a path, an encoder's name."""


class DataError(MmvpError):
    """A record or a file does not hold what it should; a retry would find the same."""


class TransientError(MmvpError):
    """The world was unwell for a moment (a dropped connection, a slow bucket): the only error that is retried."""


class ResourceError(MmvpError):
    """The machine lacks something the run needs: a GPU, memory, disk space."""
