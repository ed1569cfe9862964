"""Running one case and judging what came of it: accepted, refused by one clear sentence, or a fault."""

import contextlib
import hashlib
import io
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

SECONDS = 20
"""Of processor time: a case that takes more hangs."""
LONGEST_WAIT = 240
"""Seconds of the clock: a case that takes longer waits for nothing, however busy the machine is."""
LONGEST_SENTENCE = 700
"""Characters, without the paths of the workspace."""
INSIDES = re.compile(
    r"Traceback|<class '|<\w+ object at 0x|\bNoneType\b|unexpected \w+Error|object has no attribute|is not iterable"
    r"|not subscriptable"
)
"""Words of Python that tell a user nothing."""
ADVICE = re.compile(
    r";|\bwanted\b|\bgive\b|\bknown\b|\bdid you mean\b|--help|\bmend\b|\bcheck\b|\bset\b|\buse\b|\bchoose\b|most often"
)
"""At least one of these stands where a sentence says what to do, or what was wanted."""


class Fault(Exception):
    """The project did something that it must not do."""


class Hang(BaseException):
    """The case took too long; no Exception, so that no door of the project catches it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case."""

    verdict: Literal["accepted", "refused", "failed"]
    text: str = ""
    """The sentence of a refusal; what went wrong in a failure."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command line ended with."""

    code: int
    out: str
    err: str


def judged(action: Callable[[], str | None]) -> Outcome:
    """Run a case.

    Args:
        action: returns None when the input was accepted and everything about that is in order, else the sentence of
            the refusal. BadInput, StageFailed and CommandError are refusals, too; any other exception is a fault.
    """
    from flows.errors import CommandError
    from rlhf.errors import BadInput, StageFailed

    try:
        with _alarm():
            sentence = action()
    except (BadInput, StageFailed, CommandError) as error:
        sentence = str(error)
    except Hang:
        return Outcome("failed", f"no end within {SECONDS} s of processor time and {LONGEST_WAIT} s of the clock")
    except Fault as error:
        return Outcome("failed", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # that of a library in another language is no Exception
        last = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
        return Outcome("failed", f"{type(error).__name__} at {where}: {str(error)[:300]}")
    if sentence is None:
        return Outcome("accepted")
    complaint = complain(sentence)
    return Outcome("failed", f"{complaint}: {sentence[:1500]!r}") if complaint else Outcome("refused", sentence)


def complain(sentence: str) -> str | None:
    """What is wrong with the sentence of a refusal, None when nothing is."""
    if not sentence.strip():
        return "says nothing"
    if "\n" in sentence:
        return "several lines"
    if not sentence.isprintable():
        return "characters that a terminal obeys"
    if INSIDES.search(sentence):
        return "insides of Python"
    if len(re.sub(r"/[^ :;,]*/", "", sentence)) > LONGEST_SENTENCE:
        return f"longer than {LONGEST_SENTENCE} characters"
    if not ADVICE.search(sentence):
        return "does not say what to do"
    return None


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Hang

    before = {name: signal.signal(name, ring) for name in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(LONGEST_WAIT)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for name, handler in before.items():
            signal.signal(name, handler)


def said(action: Callable[[], int]) -> Said:
    """Run something that writes to the terminal, with streams as a shell gives them and nothing to read."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    kept = sys.stdin
    sys.stdin = io.StringIO("")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = action()
    finally:
        sys.stdin = kept
    found = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]  # a BytesIO
    return Said(code, *found)


def sentence_of(ended: Said) -> str | None:
    """The one sentence of a command that refused; None where it did what was asked.

    Raises:
        Fault: an exit code, or lines on stderr, that no refusal has.
    """
    if "Traceback" in ended.err or "Traceback" in ended.out:
        raise Fault(f"a traceback: {ended.err[-800:]}")
    errors = [line.removeprefix("error: ") for line in ended.err.split("\n") if line.startswith("error: ")]
    if ended.code == 0:
        if errors:
            raise Fault(f"exit code 0 with an error: {errors[0]}")
        return None
    if ended.code not in (1, 2):
        raise Fault(f"exit code {ended.code}: {ended.err[-300:]}")
    if not errors and ended.code == 1 and ended.out.strip():
        return None  # a report that says no: a gate, a size that does not fit, a doctor
    if len(errors) != 1:
        raise Fault(f"{len(errors)} error lines, wanted one: {ended.err[-500:]!r}")
    return errors[0]


def fingerprint(folder: Path) -> str:
    """A hash of all names and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode("utf-8", "surrogateescape"))
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
