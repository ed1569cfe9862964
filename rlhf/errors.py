"""The two ways in which a stage may end badly; the launcher turns them into exit codes.

BadInput     the user's data, parameters or files are at fault    exit code 2, never retried
StageFailed  the stage itself could not go on (diverged, ...)     exit code 1

Their messages quote names and values from outside, so both write out what a terminal would obey instead of showing.
"""

import re

SHOWN = 120
"""Characters of a word that are shown where it is endless."""
SECRETS = {
    "an access token": re.compile(r"\b(?:gh[pousr]|github_pat|glpat|hf|sk|xox[abprs])[-_][A-Za-z0-9_-]{16,}"),
    "a key of AWS": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in an address": re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
}
"""What looks like a secret, in words; no message shows it."""
_ENDLESS = re.compile(r"[^\s;]{500,}")


def one_line(text: object) -> str:
    """A text as it may stand in a sentence: on one line, no secrets, no endless words, no signs that a terminal obeys.

    Args:
        text: anything; printable text is left as it is.
    """
    words = str(text)
    for pattern in SECRETS.values():
        words = pattern.sub("(secret)", words)
    words = _ENDLESS.sub(lambda word: f"{word[0][:SHOWN]}...", words)
    if words.isprintable():
        return words
    words = " ".join(words.split())
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in words)


def secret_in(text: str) -> str | None:
    """What kind of secret a text seems to hold, None where it does not look like one."""
    return next((kind for kind, pattern in SECRETS.items() if pattern.search(text)), None)


class BadInput(Exception):
    """Something the user gave is wrong; the message is one sentence: what, where, got, wanted, what to do."""

    exit_code = 2

    def __init__(self, sentence: object = "") -> None:
        super().__init__(one_line(sentence))


class StageFailed(Exception):
    """The stage cannot go on although its input was accepted; the message says what to try."""

    exit_code = 1

    def __init__(self, sentence: object = "") -> None:
        super().__init__(one_line(sentence))
