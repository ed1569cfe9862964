"""Rules from mappings of settings, and functions of the user's own: what is taken and what is refused."""

import sys

import pytest

from rlhf.errors import BadInput
from rlhf.rewards.answer import Answer
from rlhf.rewards.sources import own_function, rule

ANSWER = Answer([{"role": "user", "content": "How many?"}], "It is #### 12.", {"answer": 12, "solution": "12"}, 7, True)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("exact_answer", {}, 1.0),
        ("exact_answer", {"key": "solution", "right": 3}, 3.0),
        ("format", {"pattern": "It .*"}, 1.0),
        ("format", {"pattern": "####"}, 0.0),
        ("format", {"pattern": "####", "whole": False}, 1.0),
        # 7 tokens, 5 free
        ("length", {"at_most": 5, "unit": "tokens", "price": 0.25, "most": None}, -0.5),
        ("forbidden_phrases", {"phrases": ["it is"]}, -1.0),
    ],
)
def test_a_rule_reads_its_settings(name, values, expected):
    assert rule(name, values, stage="ppo")(ANSWER) == expected


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("format", {}, r"missing key ppo\.reward_rules\.format\.pattern"),
        ("length", {"at_mots": 3, "at_most": 3}, r"unknown key ppo\.reward_rules\.length\.at_mots; did you mean"),
        ("length", {"at_most": "3"}, r"ppo\.reward_rules\.length\.at_most is '3' .*wanted a whole number"),
        ("length", {"at_most": 0}, r"ppo\.reward_rules\.length: at_most is 0"),
        ("forbidden_phrases", {"phrases": "sorry"}, "wanted a list"),
        ("exact_answer", {"form": "roman"}, "wanted one of gsm8k, boxed, pattern"),
        ("length", [3], "wanted a mapping"),
    ],
)
def test_settings_that_do_not_fit_are_bad_input(name, values, sentence):
    with pytest.raises(BadInput, match=sentence):
        rule(name, values, stage="ppo")


def test_an_answer_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match=r"no text or number under meta\.answer"):
        rule("exact_answer", {}, stage="ppo")(ANSWER._replace(meta={"answer": [1]}))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working folder, as a user would write it."""

    def write(text, folder=tmp_path, name="own_rewards_for_a_test"):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        sys.modules.pop(name, None)
        return name

    monkeypatch.chdir(tmp_path)
    yield write
    sys.modules.pop("own_rewards_for_a_test", None)


def test_a_function_gets_messages_text_and_meta(module):
    name = module("def points(messages, text, meta):\n    return len(messages) + len(text) / meta['answer']\n")
    # 1 + 14 / 12
    assert own_function(f"{name}:points", stage="ppo")(ANSWER) == pytest.approx(1 + 14 / 12)


def test_an_installed_function_is_taken():
    assert own_function("textwrap:indent", stage="ppo")


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        ("", "own_rewards_for_a_test:points", "has no function points"),
        ("points = 3\n", "own_rewards_for_a_test:points", "has no function points"),
        (
            "def points(text):\n    return 1\n",
            "own_rewards_for_a_test:points",
            r"cannot be called as function\(messages",
        ),
        ("import nowhere_at_all\n", "own_rewards_for_a_test:points", r"cannot be imported \(ModuleNotFoundError"),
        ("", "nowhere_at_all:points", "no such module"),
        ("", "own_rewards_for_a_test:", "in Python's spelling"),
        ("", "own-rewards:points", "in Python's spelling"),
    ],
)
def test_what_cannot_be_called_is_one_sentence(module, text, name, sentence):
    module(text)
    with pytest.raises(BadInput, match=rf"ppo\.rewards\.{name}: .*{sentence}"):
        own_function(name, stage="ppo")


def test_a_module_from_elsewhere_is_refused(module, tmp_path, monkeypatch):
    name = module("def points(messages, text, meta):\n    return 1.0\n", folder=tmp_path / "elsewhere")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(BadInput, match="lies outside the project and is not installed"):
        own_function(f"{name}:points", stage="ppo")
