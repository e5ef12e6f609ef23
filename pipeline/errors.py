"""Errors that users can act on, with their exit codes.

Every message says what was wrong, what was received and what to do next. The command line prints it without a
traceback. Any other exception is a defect and keeps its traceback (exit code 1).
"""

import errno
import os

MAX_SHOWN_NAME = 300  # characters
# What a person can do about errors of the operating system.
REMEDIES = {
    errno.ENOSPC: "Make room on that disk (`make gc` lists what is no longer used), and run it again.",
    errno.EDQUOT: "Make room in your quota, or have it raised, and run it again.",
    errno.EFBIG: "Raise the limit of the size of files (`ulimit -f`), and run it again.",
    errno.EROFS: "That disk is mounted for reading only: choose another folder, or mount it for writing.",
    errno.ENAMETOOLONG: "Folders are nested too deep there, or a name is too long: move or rename it.",
    errno.EACCES: "Give the user that runs this permission there, and run it again.",
}


class CracksError(Exception):
    """An input cannot be used: a file, a folder, a parameter; or a package is missing."""

    exit_code = 2


class TooFewImagesError(CracksError):
    """There are too few images of a kind to train or to score with."""


class RefusedError(CracksError):
    """A rule of the project is broken: a failed data contract, a split with leaks, a promotion that fails the gate."""

    exit_code = 3


class UnavailableError(CracksError):
    """A required service did not answer. Trying again later can help."""

    exit_code = 4


def with_remedy(error: CracksError | OSError) -> CracksError:
    """Return the error with its remedy if it is of a full disk or a missing permission. Raises any other OSError."""
    if isinstance(error, CracksError):
        return error
    if error.errno not in REMEDIES:
        raise error
    name = str(error.filename or "a file")
    shown = name if len(name) <= MAX_SHOWN_NAME else f"{name[:MAX_SHOWN_NAME]}..."
    return CracksError(f"{os.strerror(error.errno)}: {shown}. {REMEDIES[error.errno]}")
