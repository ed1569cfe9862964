"""Ranges that the literature recommends for settings, the sizes of model they were given for, and what lies outside.

Advice, not a check: a value outside is allowed, and a range says nothing about models of another size. Rates that suit
a model of half a million parameters destroy one of seven billion, so most ranges for rates name their sizes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BILLION = 1_000_000_000
LARGE = (1 * BILLION, 100 * BILLION)
SMALLEST_TUNED = BILLION // 10

HUANG = "Huang et al. 2024 (N+ details of RLHF with PPO)"
SCHULMAN = "Schulman et al. 2017 (PPO)"
OUYANG = "Ouyang et al. 2022 (InstructGPT)"
TOUVRON = "Touvron et al. 2023 (Llama 2)"


def _always(section: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """What a source recommends for one setting."""

    key: str
    """Dotted name of the setting, such as ppo.clip_range."""
    low: float
    """Smallest recommended value."""
    high: float
    """Largest recommended value."""
    sizes: tuple[int, int] | None
    """Fewest and most parameters of the models it was given for, rounded outwards; None: of any size."""
    source: str
    """Who recommends it, and where."""
    below: str
    """What a smaller value leads to."""
    above: str
    """What a larger value leads to."""
    when: Callable[[Mapping[str, Any]], bool] = _always
    """Whether the setting is in use, given the section that it stands in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """One setting outside the range that is recommended for it."""

    key: str
    """Dotted name of the setting."""
    value: float
    """What it is set to."""
    low: float
    """Smallest recommended value."""
    high: float
    """Largest recommended value."""
    source: str
    """Who recommends it, and where."""
    sentence: str
    """All of it for people, with the sizes of model and what to expect."""


def _clips(section: Mapping[str, Any]) -> bool:
    return section.get("objective", "clipped") in ("clipped", "clipped_penalised")


def _learned_reward(section: Mapping[str, Any]) -> bool:
    names = section.get("rewards", {"reward_model": 1.0})
    learned = any(str(name) == "reward_model" or str(name).startswith("model:") for name in names)
    return learned and section.get("kl_controller", "fixed") == "fixed"


def _adapter(section: Mapping[str, Any]) -> bool:
    return bool(section.get("lora_rank", 0))


def _plain_dpo(section: Mapping[str, Any]) -> bool:
    return section.get("objective", "dpo") == "dpo" and not section.get("length_normalised", False)


def _length_normalised_dpo(section: Mapping[str, Any]) -> bool:
    return section.get("objective", "dpo") == "dpo" and bool(section.get("length_normalised", False))


PPO = (
    Range(
        key="ppo.clip_range", low=0.1, high=0.2, sizes=None, when=_clips,
        source=f"{SCHULMAN}, tables 1 and 5; {HUANG}, 0.2",
        below="updates stop after tiny moves and samples are wasted",
        above="one update may move far from the policy that sampled",
    ),
    Range(
        key="ppo.clip_range_high", low=0.1, high=0.28, sizes=LARGE, when=_clips,
        source="Yu et al. 2025 (DAPO), section 4.1, 0.28 at 32 billion",
        below="tokens that are rare and good gain probability slowly",
        above="good luck of one sample moves the policy far",
    ),
    Range(
        key="ppo.kl_coef", low=0.01, high=0.1, sizes=(SMALLEST_TUNED, 175 * BILLION), when=_learned_reward,
        source=f"{OUYANG}, appendix C.4, 0.02; {HUANG}, 0.05; Ziegler et al. 2019, code, 0.03",
        below="the policy is free to exploit the faults of the reward model",
        above="the policy hardly leaves the SFT model",
    ),
    Range(
        key="ppo.gae_lambda", low=0.9, high=1.0, sizes=None, when=lambda s: s.get("advantage", "gae") == "gae",
        source=f"{SCHULMAN}, tables 3 to 5, and {HUANG}, 0.95; 1 is the plain return",
        below="advantages lean on a value model that is not yet right",
        above="a weight above 1 favours what lies furthest ahead",
    ),
    Range(
        key="ppo.epochs", low=3, high=10, sizes=(1 * BILLION, 10 * BILLION),
        source=f"{SCHULMAN}, tables 3 and 5, 10 and 3; {HUANG}, 4 at 1 to 7 billion",
        below="each sample is used less often than it could be",
        above="later passes learn from a policy that is no longer the one that sampled",
    ),
    Range(
        key="ppo.value_coef", low=0.1, high=0.5, sizes=None, when=lambda s: s.get("value_model") == "shared",
        source=f"{HUANG}, 0.1; OpenAI baselines, ppo2, 0.5",
        below="values lag behind the policy and advantages are noisy",
        above="fitting values pulls the shared trunk away from writing",
    ),
    Range(
        key="ppo.entropy_coef", low=0.0, high=0.01, sizes=None,
        source=f"{SCHULMAN}, table 5, 0.01; {HUANG}, none",
        below="a negative bonus drives the policy to one answer",
        above="over a whole vocabulary the bonus is earned by writing noise",
    ),
    Range(
        key="ppo.learning_rate", low=1e-6, high=5e-5, sizes=LARGE, when=lambda s: not _adapter(s),
        source=f"{TOUVRON}, section 3.2.3, 1e-6; {HUANG}, 3e-6; Ziegler et al. 2019, code, 1e-5",
        below="nothing is learned in an affordable number of updates",
        above="steps this large destroy the language before they raise the reward",
    ),
    Range(
        key="ppo.learning_rate", low=1e-5, high=5e-4, sizes=(BILLION // 2, 100 * BILLION), when=_adapter,
        source="Schulman et al. 2025 (LoRA Without Regret): ten times the rate of full fine-tuning",
        below="an adapter needs a higher rate than all weights do",
        above="steps this large destroy the language before they raise the reward",
    ),
    Range(
        key="ppo.gamma", low=0.99, high=1.0, sizes=None,
        source=f"{HUANG}, 1; {SCHULMAN}, tables 3 to 5, 0.99",
        below="the score at the end hardly reaches the first words, and short answers pay",
        above="rewards grow with their distance",
    ),
    Range(
        key="ppo.temperature", low=0.7, high=1.0, sizes=None,
        source=f"{HUANG}, 0.7; Liu et al. 2025 (Dr. GRPO), 1",
        below="samples of one prompt hardly differ, so there is nothing to learn from",
        above="many samples are noise that the policy would not write",
    ),
    Range(
        key="ppo.group_size", low=4, high=64, sizes=None,
        when=lambda s: s.get("advantage") in ("group_relative", "group_centred"),
        source="Shao et al. 2024 (DeepSeekMath), section 4.2, 64; Yu et al. 2025, 16; Liu et al. 2025, 8",
        below="the mean and spread of so few answers are mostly chance",
        above="most of the time goes into answers to few prompts",
    ),
    Range(
        key="ppo.group_size", low=2, high=64, sizes=None, when=lambda s: s.get("advantage") == "leave_one_out",
        source="Ahmadian et al. 2024 (RLOO), 2 and 4; Shao et al. 2024 (DeepSeekMath), 64",
        below="there is no other answer to compare with",
        above="most of the time goes into answers to few prompts",
    ),
    Range(
        key="ppo.step_kl_target", low=0.003, high=0.03, sizes=(1_000, 10_000_000),
        source=f"{SCHULMAN}, table 1",
        below="the penalty grows until the policy stands still",
        above="one update may move far from the policy that sampled",
    ),
)  # fmt: skip
"""Of the stage ppo."""

PREFERENCES = (
    Range(
        key="dpo.beta", low=0.1, high=0.5, sizes=None, when=_plain_dpo,
        source="Rafailov et al. 2023 (DPO), code of its loss; appendix B, 0.1",
        below="the tie to the reference is so loose that texts nobody judged become likely",
        above="the policy hardly leaves the SFT model",
    ),
    Range(
        key="dpo.beta", low=2.0, high=10.0, sizes=LARGE, when=_length_normalised_dpo,
        source="Meng et al. 2024 (SimPO), 2 to 10; Lambert et al. 2024 (Tulu 3), 5",
        below="log-probabilities per token are small numbers, which so small a factor leaves without effect",
        above="single pairs decide the gradient",
    ),
    Range(
        key="dpo.learning_rate", low=5e-7, high=5e-6, sizes=LARGE,
        source="Rafailov et al. 2023 (DPO), appendix B, 1e-6; Tunstall et al. 2023 (Zephyr), 5e-7",
        below="nothing is learned in one pass over the pairs",
        above="the chosen answers lose probability together with the rejected ones",
    ),
    Range(
        key="dpo.label_smoothing", low=0.0, high=0.3, sizes=None,
        source=f"Mitchell 2023 (cDPO), below 0.5; {OUYANG}, section 3.4: people agree on 73 of 100 pairs",
        below="a negative share of wrong labels means nothing",
        above="more labels are taken for wrong than people disagree on",
    ),
    Range(
        key="dpo.nll_coef", low=0.2, high=1.0, sizes=(1 * BILLION, 500 * BILLION),
        when=lambda s: bool(s.get("nll_coef")),
        source="Dubey et al. 2024 (Llama 3), section 4.1.4, 0.2; Pang et al. 2024, 1",
        below="too weak to keep the chosen answers likely",
        above="mostly imitation of the chosen answers, as in SFT",
    ),
)  # fmt: skip
"""Of the stage dpo."""

MODELS = (
    Range(
        key="sft.learning_rate", low=3e-6, high=2e-5, sizes=LARGE,
        source=f"{HUANG}, 3e-6; {TOUVRON}, section 3.1, 2e-5",
        below="the demonstrations leave little trace",
        above="what the base model knew is overwritten",
    ),
    *(
        setting
        for stage in ("reward", "judge")
        for setting in (
            Range(
                key=f"{stage}.epochs", low=1, high=1, sizes=LARGE,
                source=f"{OUYANG}, appendix C.2; {TOUVRON}, section 3.2.2; {HUANG}",
                below="pairs are left unused",
                above="a large model learns its pairs by heart in a second pass",
            ),
            Range(
                key=f"{stage}.learning_rate", low=3e-6, high=1e-5, sizes=LARGE,
                source=f"{HUANG}, 3e-6; {OUYANG}, appendix C.2, 9e-6; {TOUVRON}, section 3.2.2, 5e-6 and 1e-5",
                below="the order of answers is not learned in one pass",
                above="accuracy on held-out pairs falls while that on training pairs rises",
            ),
        )
    ),
)  # fmt: skip
"""Of the stages sft, reward and judge."""

RANGES = (*MODELS, *PPO, *PREFERENCES)


def warnings(params: Mapping[str, Any], parameters: int | None) -> list[Advice]:
    """Compare settings with what is recommended for a model of this size.

    Args:
        params: the whole parameter file; sections and keys that are absent are passed over.
        parameters: size of the policy; None where it is not known, and then every range counts, since models that come
            from elsewhere are mostly of the sizes that ranges were given for.

    Returns:
        One entry for each setting outside its range, in the order of `RANGES`.
    """
    return list(_outside(params, parameters))


def _outside(params: Mapping[str, Any], parameters: int | None) -> Iterator[Advice]:
    for range_ in RANGES:
        stage, key = range_.key.split(".")
        section = params.get(stage)
        if not isinstance(section, Mapping) or not range_.when(section) or not _is_for(range_, parameters):
            continue
        value = section.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or range_.low <= value <= range_.high:
            continue
        yield Advice(
            key=range_.key, value=value, low=range_.low, high=range_.high, source=range_.source,
            sentence=_sentence(range_, value, parameters),
        )  # fmt: skip


def _is_for(range_: Range, parameters: int | None) -> bool:
    return range_.sizes is None or parameters is None or range_.sizes[0] <= parameters <= range_.sizes[1]


def _sentence(range_: Range, value: float, parameters: int | None) -> str:
    side, effect = ("below", range_.below) if value < range_.low else ("above", range_.above)
    wanted = _number(range_.low) if range_.low == range_.high else f"{_number(range_.low)} to {_number(range_.high)}"
    unknown = "" if parameters is not None or range_.sizes is None else "; the size of this model is not known"
    return (
        f"{range_.key} is {_number(value)}, {side} the {wanted} recommended for {_models(range_.sizes)} "
        f"({range_.source}{unknown}): {effect}"
    )


def _models(sizes: tuple[int, int] | None) -> str:
    if sizes is None:
        return "models of any size"
    low, high = sizes
    unit, word = (BILLION, "billion ") if low >= SMALLEST_TUNED else (1, "")
    return f"models of {low / unit:,g} to {high / unit:,.10g} {word}parameters"


def _number(value: float) -> str:
    """Write a number as people write it in a parameter file: 3e-6 rather than 3e-06."""
    return f"{value:g}".replace("e-0", "e-")
