"""The two ways a command can fail, and the exit codes that go with them.

A message is one or two sentences: the thing, the value, the reason, the remedy.
"""


class DlmbenchError(Exception):
    """Base of every error whose message is written for the user (shown without a traceback)."""

    exit_code = 1


class RequestError(DlmbenchError):
    """The request was wrong: an unknown name, an impossible combination, missing data. Exit code 2."""

    exit_code = 2


class UnknownName(RequestError):
    """Nothing is called so, here or anywhere: no data and no download would help."""


class RunError(DlmbenchError):
    """The request was fine and the run failed. Exit code 1."""
