import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.fuzz.watch import Hang, Said, complain, judged, sentence_of
from rlhf.errors import BadInput

ROOT = Path(__file__).parents[2]


def test_some_broken_inputs_are_accepted_rightly_or_refused_in_one_sentence(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "bench.fuzz_inputs", "--cases", "120", "--seed", "11", "--jobs", "2"]
    ended = subprocess.run(
        [*line, "--work", str(tmp_path / "work"), "--json", str(tmp_path / "found.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    verdicts = [verdict for *_, verdict, _ in found]
    assert {family for family, *_ in found} == {"data", "settings", "models", "commands"}
    assert min(verdicts.count("accepted"), verdicts.count("refused")) > 25


def refuse(sentence: str) -> str:
    raise BadInput(sentence)


def overrun() -> str:
    raise Hang


def stumble() -> str:
    return str({}["missing"])


def test_what_is_no_clear_refusal_is_a_failure() -> None:
    assert judged(lambda: None).verdict == "accepted"
    assert judged(lambda: refuse("a.json: is empty; wanted rows")).verdict == "refused"
    assert judged(lambda: refuse("it did not work")).verdict == "failed"
    assert judged(overrun).text.startswith("no end within")
    assert judged(stumble).text.startswith("KeyError at test_fuzz_inputs.py")


@pytest.mark.parametrize(
    "sentence",
    ["", "a\nb; mend it", "\x1b[2J; mend it", "'NoneType' object is wrong; mend it", "x" * 800 + "; mend it", "no"],
)
def test_sentences_that_help_nobody(sentence: str) -> None:
    assert complain(sentence)


@pytest.mark.parametrize(
    "ended",
    [
        Said(2, "", ""), Said(2, "", "error: a; b\nerror: c; d\n"), Said(0, "", "error: a; b\n"),
        Said(137, "", "error: a\n"), Said(1, "", "Traceback (most recent call last):\n"),
    ],
)  # fmt: skip
def test_ends_that_no_command_may_have(ended: Said) -> None:
    with pytest.raises(Exception, match=r"error|traceback|exit code"):
        sentence_of(ended)
