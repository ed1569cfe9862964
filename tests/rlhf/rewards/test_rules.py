"""Rules worked out by hand, on solutions in the manner of GSM8K that were written for this test."""

import pytest

from rlhf.rewards.rules import (
    ExactAnswer,
    ForbiddenPhrases,
    Format,
    Length,
    exact_answer,
    find_answer,
    forbidden_phrases,
    length,
    matches_format,
    normal_answer,
)

QUESTION = "A baker fills 3 trays with 14 rolls each and sells 9 rolls. How many rolls are left?"
SOLUTION = (
    "The baker has 3 * 14 = <<3*14=42>>42 rolls.\nAfter selling 9 there are 42 - 9 = <<42-9=33>>33 rolls.\n#### 33"
)
GSM8K = ExactAnswer(right=2.0, wrong=-1.0, missing=-3.0)


def test_the_last_marked_number_is_held_against_the_last_of_the_solution():
    # 33 against 33
    assert exact_answer("So 42 - 9 = 33.\n#### 33", SOLUTION, GSM8K) == 2.0
    # the first mark is a step, the last one the answer
    assert exact_answer("#### 42\nno, sold 9:\n#### 33", SOLUTION, GSM8K) == 2.0
    assert exact_answer("#### 33\nno:\n#### 42", SOLUTION, GSM8K) == -1.0
    # right in words, but not marked
    assert exact_answer("There are 33 rolls left.", SOLUTION, GSM8K) == -3.0
    # a bare reference
    assert exact_answer("#### 33", "33", GSM8K) == 2.0


@pytest.mark.parametrize(
    "written", ["1200", "1,200", "$1,200", "$ 1200", "1200.", "1,200.00", " 1200 dollars", "+1200", "\t1200"]
)
def test_spellings_of_one_number(written):
    assert exact_answer(f"That makes\n#### {written}", "#### 1200", GSM8K) == 2.0


@pytest.mark.parametrize("written", ["120", "12000", "1,20", "-1200", "1200.5", "1,200,0", "12 00"])
def test_other_numbers_are_wrong_or_none(written):
    assert exact_answer(f"#### {written}", "1200", GSM8K) in (-1.0, -3.0)


def test_negative_and_fractional_numbers():
    assert exact_answer("#### -3.50", "#### -$3.5", GSM8K) == 2.0
    assert exact_answer("#### - 3.5", "-3.5", GSM8K) == 2.0
    assert exact_answer("#### .5", "0.50", GSM8K) == 2.0
    assert exact_answer("#### 3.5", "-3.5", GSM8K) == -1.0
    # minus zero is zero
    assert exact_answer("#### -0", "0", GSM8K) == 2.0


def test_a_number_of_two_meanings_is_no_answer():
    assert find_answer("#### 1,5", GSM8K) is None
    assert find_answer("#### 1.2.3", GSM8K) is None


def test_normal_forms_by_hand():
    assert normal_answer("$1,234.50.") == "1234.5"
    assert normal_answer("100") == "100"
    assert normal_answer("  Twelve   Rolls. ") == "twelve rolls"
    assert normal_answer("1e3") == "1e3"


def test_boxed_answers_may_hold_braces():
    boxed = ExactAnswer(form="boxed")
    assert find_answer(r"first \boxed{1}, then \boxed{\frac{1}{2}}.", boxed) == r"\frac{1}{2}"
    assert exact_answer(r"so \boxed{ \frac{1}{2} }", r"thus $\boxed{\frac{1}{2}}$", boxed) == 1.0
    assert exact_answer(r"so \boxed{33}", "33.0", boxed) == 1.0
    # the last one never closes: the one before counts
    assert find_answer(r"\boxed{7} and \boxed{8", boxed) == "7"
    assert find_answer("33", boxed) is None


def test_a_pattern_of_ones_own():
    own = ExactAnswer(form="pattern", pattern=r"(?i)answer is (\w+)")
    assert exact_answer("The answer is B? No, the answer is c", "C", own) == 1.0
    assert find_answer("x=3 x=4", ExactAnswer(form="pattern", pattern=r"x=\d")) == "x=4"


def test_an_empty_reference_is_refused():
    with pytest.raises(ValueError, match="reference answer is ' '"):
        exact_answer("#### 3", " ", GSM8K)


def test_format_of_the_whole_or_of_a_part():
    thought = Format(pattern=r"(?s)<think>.+</think>\s*\S.*", right=1.0, wrong=-0.5)
    assert matches_format("<think>3 * 14\n- 9</think>\n33", thought) == 1.0
    assert matches_format("Well. <think>3</think> 33", thought) == -0.5
    assert matches_format("Well. <think>3</think> 33", Format(pattern=thought.pattern, whole=False)) == 1.0
    assert matches_format("", Format(pattern=".*")) == 1.0


def test_length_is_free_between_its_limits():
    settings = Length(at_least=2, at_most=4, price=0.5)
    # 5 words: one too many; 1 word: one too few; 7 words: three too many
    for text, value in (("a b c d e", -0.5), ("a", -0.5), ("a b", 0), ("a b c d", 0), ("a b c d e f g", -1.5)):
        assert length(text, 99, settings) == value
    assert length("a b c d e f g", 99, Length(at_most=4, price=0.5, most=0.75)) == -0.75


def test_length_in_tokens_or_characters():
    # 12 tokens and 3 characters, 10 allowed
    assert length("a b", 12, Length(at_most=10, unit="tokens", price=1.0)) == -2
    assert length("a b", 12, Length(at_most=2, unit="characters", price=1.0)) == -1


def test_phrases_are_counted_as_whole_words_in_any_case():
    settings = ForbiddenPhrases(phrases=("as an AI", "sorry"), price=0.5)
    # "As an\nai", "SORRY", "sorry": three
    assert forbidden_phrases("As an\nai I am SORRY, so sorry.", settings) == -1.5
    # parts of other words, by their end or by their beginning
    assert forbidden_phrases("as an AIde, sorrysome", settings) == 0
    assert forbidden_phrases("was an AI, unsorry", settings) == 0
    # signs are signs, not patterns
    assert forbidden_phrases("a+b aab", ForbiddenPhrases(phrases=("a+b",))) == -1
    assert forbidden_phrases("", settings) == 0


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (ExactAnswer, {"form": "roman"}),
        (ExactAnswer, {"form": "pattern"}),
        (ExactAnswer, {"pattern": "x"}),
        (ExactAnswer, {"form": "pattern", "pattern": "("}),
        (Format, {"pattern": "["}),
        (Length, {"at_most": 0}),
        (Length, {"at_most": 3, "at_least": 4}),
        (Length, {"at_most": 3, "unit": "lines"}),
        (Length, {"at_most": 3, "price": -1.0}),
        (ForbiddenPhrases, {"phrases": ()}),
        (ForbiddenPhrases, {"phrases": ("a", " ")}),
        (ForbiddenPhrases, {"phrases": ("a",), "price": -1.0}),
    ],
)
def test_settings_out_of_range_are_refused(settings, values):
    with pytest.raises(ValueError, match="wanted"):
        settings(**values)
