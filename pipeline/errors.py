"""The errors that a person can act on, and the exit codes that a script can.

Every message says what was wrong, what was received and what to do next. The command line prints it without a
traceback; anything else that escapes is a defect and keeps its traceback (exit code 1).
"""


class CracksError(Exception):
    """What a person gave cannot be used: a file, a folder, a parameter, a missing package."""

    exit_code = 2


class RefusedError(CracksError):
    """A rule of the project said no: a failed data contract, a split with leaks, a promotion that is not earned."""

    exit_code = 3


class UnavailableError(CracksError):
    """A service that is needed did not answer. Trying again later can help."""

    exit_code = 4
