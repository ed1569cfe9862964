import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import BadInput
from tasks.yaml_edit import load, set_values, written_scalar

TEXT = """\
# head
seed: 1   # the seed
validate:
  # before the files
  files:   # which files
    - a   # first
    - b
  # after the files
  empty:
  flow: [1, 2]  # two numbers
  rate: 3e-6    # a number
  name: "x y"
  weights:
    a: 1
    b: 2   # last
ppo:
  kl: 0.1
"""


def edited(**values: object) -> str:
    return set_values(TEXT, {f"validate.{key}": value for key, value in values.items()}, file="p")


def test_only_the_value_changes() -> None:
    assert edited(rate=1e-5) == TEXT.replace("3e-6 ", "1e-5 ")
    assert edited(name="z") == TEXT.replace('"x y"', "z")
    assert set_values(TEXT, {"seed": 2, "ppo.kl": 0.2}, file="p") == TEXT.replace("seed: 1", "seed: 2").replace(
        "kl: 0.1", "kl: 0.2"
    )


def test_an_equal_value_leaves_the_text_alone() -> None:
    assert edited(rate=0.000003, flow=[1, 2], files=["a", "b"], empty=None) == TEXT


def test_a_block_list_stays_a_block_and_keeps_the_comments_around_it() -> None:
    expected = TEXT.replace("    - a   # first\n    - b\n", "    - c.jsonl\n    - 'd'\n".replace("'d'", '"d: e"'))
    assert edited(files=["c.jsonl", "d: e"]) == expected
    assert edited(files=[]) == TEXT.replace("   # which files\n    - a   # first\n    - b\n", " []\n")


def test_mappings_empty_values_and_flow_lists() -> None:
    assert edited(weights={"c": 1.5}) == TEXT.replace("    a: 1\n    b: 2 ", "    c: 1.5 ")
    assert edited(empty="now") == TEXT.replace("empty:", "empty: now")
    assert edited(flow=[3]) == TEXT.replace("[1, 2]", "[3]")
    assert edited(name={"a": [1, None]}) == TEXT.replace('"x y"', "{a: [1, null]}")


def test_deeper_keys() -> None:
    assert set_values(TEXT, {"validate.weights.a": 5}, file="p") == TEXT.replace("a: 1", "a: 5")


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(BadInput, match=r"params.yaml: there is no key ppo.kll"):
        set_values(TEXT, {"ppo.kll": 1}, file="params.yaml")


def test_broken_yaml_is_refused() -> None:
    with pytest.raises(BadInput, match="p:1: not valid YAML"):
        load("a: [1", file="p")
    with pytest.raises(BadInput, match="the key 'a' stands twice"):
        load("a: 1\na: 2", file="p")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (7, "7"),
        (3e-6, "3e-6"),
        (0.15, "0.15"),
        (1e22, "1e22"),
        (math.inf, ".inf"),
        (-math.inf, "-.inf"),
        ("python", "python"),
        ("torchrun --nproc-per-node=8", "torchrun --nproc-per-node=8"),
        ("no", '"no"'),
        ("3e-6", '"3e-6"'),
        ("a # b", '"a # b"'),
        ("", '""'),
        ("two\nlines", '"two\\nlines"'),
    ],
)
def test_scalars_are_written_so_that_they_read_back(value: object, text: str) -> None:
    assert written_scalar(value) == text
    assert load(f"[{text}]", file="p") == [value]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False),
    st.text(st.characters(min_codepoint=32, max_codepoint=126)),
)


@settings(max_examples=40, deadline=None)  # a busy machine is no failure
@given(st.one_of(SCALARS, st.lists(SCALARS), st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), SCALARS)))
def test_whatever_is_written_reads_back_and_nothing_else_changes(value: object) -> None:
    for key in ("files", "empty", "flow", "rate", "name", "weights"):
        after = load(edited(**{key: value}), file="p")
        before = load(TEXT, file="p")
        assert after["validate"].pop(key) == value
        before["validate"].pop(key)
        assert after == before
