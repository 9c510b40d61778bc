"""Every mistake a user can make has a name here, and an exit code."""

from __future__ import annotations

import errno

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_OVER_LIMIT, EXIT_RESUMABLE = 0, 1, 2, 3, 75


class AegisError(Exception):
    """Something went wrong that the message explains, remedy included."""

    exit_code = EXIT_FAILED


class BadInputError(AegisError):
    """The user gave something that cannot be used; nothing was changed."""

    exit_code = EXIT_BAD_INPUT


class ConfigError(BadInputError):
    """A setting is unknown, of the wrong type, or impossible."""


class DataError(BadInputError):
    """A record, pair, topic or prompt file cannot be used."""


class ModelError(BadInputError):
    """A base or model folder cannot be used."""


class AdapterError(BadInputError):
    """An adapter folder cannot be used with this base."""


class MissingPackageError(BadInputError):
    """An optional package is needed; the message gives the command that installs it."""


class ArtifactError(AegisError):
    """An artifact folder is damaged or incomplete."""


class DiskFullError(AegisError):
    """There is not enough room; what was written before is intact."""


class AuditError(BadInputError):
    """An audit log or its keys cannot be trusted or used as they are; nothing was changed."""


class AuditUnavailableError(AegisError):
    """A record could not be put on the disk, so its answer must not leave; the log is intact."""


class StoppedError(AegisError):
    """The user or the system asked for a stop; the same command goes on from there."""

    exit_code = EXIT_RESUMABLE


class LimitError(AegisError):
    """What was asked for is done and written, and a limit on its quality does not hold."""

    exit_code = EXIT_OVER_LIMIT


def is_disk_full(error: BaseException) -> bool:
    """Return whether the error, or what caused it, is a full disk.

    torch, safetensors and SQLite report one without an errno.
    """
    texts = ("No space left on device", "StorageFull", "os error 28", "database or disk is full")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(cause) for text in texts):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
