"""The one exception that a command raises when it cannot do what was asked."""

from __future__ import annotations

from rlhf.errors import one_line


class CommandError(Exception):
    """A sentence for the person at the terminal, and the exit code that goes with it.

    Attributes:
        sentence: what, where, what was got, what was wanted, what to do.
        exit_code: 1 a stage failed or a gate said no, 2 bad input or usage.
    """

    def __init__(self, sentence: str, exit_code: int = 2) -> None:
        """Keep the sentence and the exit code."""
        self.sentence = one_line(sentence)
        super().__init__(self.sentence)
        self.exit_code = exit_code
