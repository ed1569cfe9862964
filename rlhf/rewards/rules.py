r"""Rewards by rule: pure functions from a response's text to a number. Nothing is learnt, so nothing drifts.

A rule is switched on by its name in `ppo.rewards` and set up under its name in `ppo.reward_rules`:

    rewards: {reward_model: 1.0, exact_answer: 2.0, length: 1.0}
    reward_rules:
      exact_answer: {form: gsm8k}               # the last `#### 42` of the response against the record's meta.answer
      format: {pattern: '(?s)<think>.*</think>.*', whole: true}
      length: {at_most: 60, unit: words, price: 0.02}
      forbidden_phrases: {phrases: [as an AI, I cannot], price: 0.5}

The fields of the four dataclasses below are the keys. A rule gives its value in its own units; the weight in
`ppo.rewards` says what that is worth in standard deviations of the reward model's score.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from rlhf.ranges import require_at_least, require_choice

Setting: TypeAlias = bool | int | float | str | tuple[str, ...] | None
"""What a key of a rule may hold."""

FORMS = ("gsm8k", "boxed", "pattern")
UNITS = ("words", "tokens", "characters")

NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?![,.]?\d)"
"""A decimal number, with or without commas between thousands; `1,5` is none, since it could mean 15 or 1.5."""
GSM8K = re.compile(rf"####[ \t]*([-+]?[ \t]*\$?[ \t]*[-+]?{NUMBER})")
PLAIN_NUMBER = re.compile(rf"[-+]?{NUMBER}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactAnswer:
    """Settings of `exact_answer`."""

    form: str = "gsm8k"
    """How an answer is marked: "gsm8k" (`#### 42`), "boxed" (`\\boxed{42}`) or "pattern"."""
    pattern: str | None = None
    """Regular expression of the form "pattern"; its first group, or all of it, is the answer."""
    key: str = "answer"
    """Key of the record's meta that holds the right answer, marked in the same form or bare."""
    right: float = 1.0
    """Value of a right answer."""
    wrong: float = 0.0
    """Value of another answer."""
    missing: float = 0.0
    """Value of a response in which no answer is marked."""

    def __post_init__(self) -> None:
        """Check the form and the pattern."""
        require_choice(FORMS, form=self.form)
        if (self.pattern is None) == (self.form == "pattern"):
            raise ValueError(f"form is {self.form} and pattern is {self.pattern!r}, wanted both of them or neither")
        if self.pattern is not None:
            require_pattern(self.pattern)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """Settings of `matches_format`, the signal `format`."""

    pattern: str
    """Regular expression; `(?s)` at its start lets a dot match line ends, `(?i)` ignores case."""
    whole: bool = True
    """Whether the whole response has to match, or any part of it."""
    right: float = 1.0
    """Value of a response that matches."""
    wrong: float = 0.0
    """Value of any other."""

    def __post_init__(self) -> None:
        """Check the pattern."""
        require_pattern(self.pattern)


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """Settings of `length`."""

    at_most: int
    """Longest response that costs nothing, units."""
    at_least: int = 0
    """Shortest response that costs nothing, units."""
    unit: str = "words"
    """"words", "tokens" (as the policy sampled them, the end included) or "characters"."""
    price: float = 0.01
    """Cost of each unit too many or too few, at least 0."""
    most: float | None = None
    """Highest cost, at least 0; null for no limit."""

    def __post_init__(self) -> None:
        """Check ranges."""
        require_choice(UNITS, unit=self.unit)
        require_at_least(0, at_least=self.at_least, price=self.price, most=self.most)
        require_at_least(max(1, self.at_least), at_most=self.at_most)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForbiddenPhrases:
    """Settings of `forbidden_phrases`."""

    phrases: tuple[str, ...]
    """What must not be written: words or phrases, in any case; a gap in one matches any white space."""
    price: float = 1.0
    """Cost of each occurrence, at least 0."""

    def __post_init__(self) -> None:
        """Check that there is something to look for."""
        require_at_least(0, price=self.price)
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise ValueError(f"phrases is {list(self.phrases)}, wanted at least one, and none of them empty")


def exact_answer(text: str, reference: str, settings: ExactAnswer) -> float:
    r"""Whether the last answer marked in a response is the right one.

    Numbers are compared as numbers (`#### $1,200.` equals 1200.00), anything else as text without regard to case and
    gaps. The last mark counts, since a solution may mark steps on its way.

    Source: `####` of GSM8K, Cobbe et al. 2021, https://arxiv.org/abs/2110.14168; `\boxed` of MATH, Hendrycks et al.
    2021, https://arxiv.org/abs/2103.03874; as a reward: Lambert et al. 2024, section 6, https://arxiv.org/abs/2411.15124

    Args:
        text: the response.
        reference: the right answer, bare or as a solution that marks it.
        settings: form of the mark, and the three values.

    Returns:
        `right`, `wrong` or `missing`.

    Raises:
        ValueError: the reference is empty.
    """
    marked = find_answer(reference, settings)
    wanted = normal_answer(reference if marked is None else marked)
    if not wanted:
        raise ValueError(f"the reference answer is {reference!r}, wanted some text")
    found = find_answer(text, settings)
    if found is None:
        return settings.missing
    return settings.right if normal_answer(found) == wanted else settings.wrong


def find_answer(text: str, settings: ExactAnswer) -> str | None:
    """The last answer that a text marks in the form of the settings; None when it marks none."""
    if settings.form == "boxed":
        return _last_boxed(text)
    pattern = GSM8K if settings.pattern is None else re.compile(settings.pattern)
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - only the last one counts
        pass
    if last is None:
        return None
    return last.group(1 if pattern.groups else 0)


def normal_answer(answer: str) -> str:
    """One spelling for equal answers: numbers as plain decimals, other text in lower case with single gaps."""
    bare = " ".join(answer.replace("$", " ").replace("\\", " \\").split()).rstrip(".").strip()
    number = re.sub(r"(?<=^[-+]) ", "", bare)
    if PLAIN_NUMBER.fullmatch(number):
        value = Decimal(number.replace(",", "")).normalize()
        return f"{value + 0:f}"  # plus 0: minus zero is zero
    return bare.casefold()


def matches_format(text: str, settings: Format) -> float:
    """Whether a response has the wanted form.

    Source: the format reward of DeepSeek-R1, section 2.2.2, https://arxiv.org/abs/2501.12948

    Args:
        text: the response.
        settings: the pattern, and the two values.

    Returns:
        `right` or `wrong`.
    """
    pattern = re.compile(settings.pattern)
    found = pattern.fullmatch(text) if settings.whole else pattern.search(text)
    return settings.wrong if found is None else settings.right


def length(text: str, tokens: int, settings: Length) -> float:
    """Price of a response that is too long or too short.

        -min(most, price * (max(0, n - at_most) + max(0, at_least - n)))

    Args:
        text: the response.
        tokens: its length as it was sampled, the end token included.
        settings: limits and price.

    Returns:
        0 or less.
    """
    size = {"words": len(text.split()), "tokens": tokens, "characters": len(text)}[settings.unit]
    cost = settings.price * (max(0, size - settings.at_most) + max(0, settings.at_least - size))
    return -min(cost, cost if settings.most is None else settings.most)


def forbidden_phrases(text: str, settings: ForbiddenPhrases) -> float:
    """Price of phrases that must not be written, as whole words and in any case.

        -price * (occurrences of all phrases)

    Args:
        text: the response.
        settings: phrases and price.

    Returns:
        0 or less.
    """
    count = 0
    for phrase in settings.phrases:
        gaps = r"\s+".join(re.escape(word) for word in phrase.split())
        count += len(re.findall(rf"(?<!\w){gaps}(?!\w)", text, flags=re.IGNORECASE))
    return -settings.price * count


def require_pattern(pattern: str) -> None:
    """Refuse a text that is no regular expression.

    Raises:
        ValueError: saying where it goes wrong.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern is {pattern!r}, wanted a regular expression ({error})") from error


def _last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` whose braces close."""
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place]
    return None
