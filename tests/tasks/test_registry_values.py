"""Single values of mlflow/registry.yaml."""

from dataclasses import dataclass
from typing import Any

import pytest

from rlhf.errors import BadInput
from tasks.registry_values import kind_of, number, one_of, refuse_unknown, section


@dataclass
class Part:
    needed: int
    spare: int = 3


def test_a_section_may_leave_out_what_has_a_default() -> None:
    assert section("part", {"needed": 1}, Part) == {"needed": 1}
    with pytest.raises(BadInput, match=r"part\.needed is missing"):
        section("part", {"spare": 1}, Part)
    with pytest.raises(BadInput, match=r"unknown key part\.neded; did you mean part\.needed\?"):
        section("part", {"neded": 1}, Part)
    with pytest.raises(BadInput, match="part is a list, wanted a mapping"):
        section("part", [1], Part)


@pytest.mark.parametrize(
    ("value", "said"),
    [({}, "a mapping"), ([], "a list"), ("x", "text"), (True, "true or false"), (None, "empty"), (1.5, "a number")],
)
def test_values_are_named_as_people_call_them(value: Any, said: str) -> None:
    assert kind_of(value) == said


def test_words_are_looked_up_and_a_bare_off_is_a_word() -> None:
    assert one_of("mode", "on", ("on", "off")) == "on"
    assert one_of("mode", False, ("on", "off")) == "off"
    with pytest.raises(BadInput, match=r"mode is 'enforced', wanted one of off, enforce; did you mean enforce"):
        one_of("mode", "enforced", ("off", "enforce"))


@pytest.mark.parametrize("value", [float("nan"), True, "1", 11, None])
def test_what_is_no_number_of_the_range_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="wanted a whole number from 1 to 10" if value == 11 else "wanted a"):
        number("n", value, 1, 10, whole=True)


def test_numbers_of_the_range_are_taken() -> None:
    assert number("n", 3, 1, 10) == 3.0
    assert isinstance(number("n", 3, 1, 10, whole=True), int)
    with pytest.raises(BadInput, match=r"n is 1.5, wanted a whole number"):
        number("n", 1.5, 1, 10, whole=True)


def test_an_unknown_key_far_from_all_lists_them() -> None:
    with pytest.raises(BadInput, match=r"unknown key zzz; known are above, below"):
        refuse_unknown("", {"zzz": 1}, ("above", "below"))
