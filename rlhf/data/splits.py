"""Which split a prompt belongs to: a function of the prompt alone, so that it holds for ever and across data versions.

A record is put where its prompt belongs, whatever its kind, so no prompt is ever in two splits. Prompts are given here
as their canonical JSON.
"""

from typing import Literal, TypeAlias

from rlhf.data.records import digest

Split: TypeAlias = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
UNLIKE = "unlike"
"""Beside the three: prompts that were made to be unlike all others; a mark in the record, not a hash, decides."""


def fraction(prompt: str, *, seed: int, purpose: str = "split") -> float:
    """A number in [0, 1) that depends on the prompt, the seed and the purpose, and looks uniform.

    Numbers for different purposes are independent of each other.
    """
    return digest(prompt, salt=f"{purpose} {seed}") / 2**64


def split_of(prompt: str, *, seed: int, test_fraction: float, dev_fraction: float) -> Split:
    """The split of a prompt; growing `dev_fraction` never moves a prompt out of or into test."""
    place = fraction(prompt, seed=seed)
    if place < test_fraction:
        return "test"
    return "dev" if place < test_fraction + dev_fraction else "train"


def is_for_judge(prompt: str, *, seed: int, judge_fraction: float) -> bool:
    """Whether training pairs with this prompt are kept for the judge, so that the reward model never sees them."""
    return fraction(prompt, seed=seed, purpose="judge") < judge_fraction
