from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from rlhf.config import load_section, read_params
from rlhf.errors import BadInput


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    rate: float
    steps: int
    kind: Literal["fixed", "adaptive"]
    files: tuple[str, ...]
    limit: int | None
    shuffle: bool

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate is {self.rate}, wanted more than 0")


GOOD: dict[str, Any] = {
    "rate": 0.1, "steps": 3, "kind": "fixed", "files": ["a"], "limit": None, "shuffle": True, "threads": 1,
    "launch": "python",
}  # fmt: skip


def load(**changes: Any) -> Config:
    return load_section({"x": {**GOOD, **changes}}, "x", Config)


def test_a_good_section_becomes_the_dataclass_without_the_launcher_keys() -> None:
    assert load(rate=1) == Config(rate=1.0, steps=3, kind="fixed", files=("a",), limit=None, shuffle=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rat": 1.0}, r"params.yaml: unknown key x.rat; did you mean x.rate\?"),
        ({"rate": "3e-6"}, r"x.rate is '3e-6' \(a str\), wanted a number; remove the quotes"),
        ({"rate": "fast"}, r"x.rate is 'fast' \(a str\), wanted a number$"),
        ({"steps": 2.5}, "x.steps is 2.5 .*, wanted a whole number"),
        ({"steps": True}, "x.steps is True .*, wanted a whole number"),
        ({"steps": None}, "x.steps is empty, wanted a whole number"),
        ({"kind": "other"}, "wanted one of fixed, adaptive"),
        ({"files": "a"}, "x.files is 'a' .*, wanted a list"),
        ({"files": [1]}, r"x.files\[0\] is 1 .*, wanted text"),
        ({"limit": "x"}, "x.limit is 'x' .*, wanted a whole number"),
        ({"shuffle": 1}, "wanted true or false"),
        ({"rate": -1.0}, "params.yaml: x: rate is -1.0, wanted more than 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load(**changes)


def test_missing_keys_and_sections_are_named() -> None:
    with pytest.raises(BadInput, match=r"missing key x.rate"):
        load_section({"x": {k: v for k, v in GOOD.items() if k != "rate"}}, "x", Config)
    with pytest.raises(BadInput, match="no section 'y'"):
        load_section({"x": GOOD}, "y", Config)
    with pytest.raises(BadInput, match="x is 3"):
        load_section({"x": 3}, "x", Config)


def test_a_key_that_must_not_exist_is_refused_with_its_reason() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Strict:
        REFUSED: ClassVar[dict[str, str]] = {"speed": "it breaks things; remove it"}
        rules: dict[str, Any]

    given = {"a": {"b": [1, None]}, "c": "text"}
    assert load_section({"x": {"rules": given}}, "x", Strict).rules == given
    with pytest.raises(BadInput, match=r"params.yaml: x.speed is refused: it breaks things; remove it"):
        load_section({"x": {"rules": {}, "speed": 3}}, "x", Strict)


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 3e-6\nb: 1E5\nc: 1.5e-3\nd: .5\ne: 12\nf: 1.\ng: 2e3x\nh: '3e-6'\n")
    params = read_params(path)
    assert params == {"a": 3e-6, "b": 1e5, "c": 1.5e-3, "d": 0.5, "e": 12, "f": 1.0, "g": "2e3x", "h": "3e-6"}
    # the reason for the own loader: the stock one would hand on text
    assert yaml.safe_load("a: 3e-6") == {"a": "3e-6"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: 1\na: 2\n", "params.yaml:2: the key 'a' stands twice"),
        (b"a: [1\n", "not valid YAML"),
        (b"- 1\n", "holds a list, wanted one section per stage"),
        (b"", "params.yaml: is empty, wanted one section per stage"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: bytes, sentence: str) -> None:
    (tmp_path / "params.yaml").write_bytes(text)
    with pytest.raises(BadInput, match=sentence):
        read_params(tmp_path / "params.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_params(tmp_path / "params.yaml")
