"""Errors that users can act on, with their exit codes.

Every message says what was wrong, what was received and what to do next. The command line prints it without a
traceback. Any other exception is a defect and keeps its traceback (exit code 1).
"""


class CracksError(Exception):
    """An input cannot be used: a file, a folder, a parameter; or a package is missing."""

    exit_code = 2


class RefusedError(CracksError):
    """A rule of the project is broken: a failed data contract, a split with leaks, a promotion that fails the gate."""

    exit_code = 3


class UnavailableError(CracksError):
    """A required service did not answer. Trying again later can help."""

    exit_code = 4
