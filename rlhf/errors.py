"""The two ways in which a stage may end badly; the launcher turns them into exit codes.

BadInput     the user's data, parameters or files are at fault    exit code 2, never retried
StageFailed  the stage itself could not go on (diverged, ...)     exit code 1
"""


class BadInput(Exception):
    """Something the user gave is wrong; the message is one sentence: what, where, got, wanted, what to do."""

    exit_code = 2


class StageFailed(Exception):
    """The stage cannot go on although its input was accepted; the message says what to try."""

    exit_code = 1
