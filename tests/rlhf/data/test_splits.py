import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.records import canonical_json
from rlhf.data.splits import fraction, is_for_judge, split_of

PROMPTS = [canonical_json([{"role": "user", "content": f"prompt {number}"}]) for number in range(4000)]


def test_a_fraction_is_the_hash_and_nothing_else() -> None:
    # printf 'split 1\n[{"content":"Q","role":"user"}]' | sha256sum begins with e914ab9d39b4
    found = fraction(canonical_json([{"role": "user", "content": "Q"}]), seed=1)
    assert found == fraction(canonical_json([{"content": "Q", "role": "user"}]), seed=1)
    assert found == pytest.approx(0xE914AB9D39B4 / 2**48, abs=1e-12)


def test_the_splits_have_the_sizes_asked_for() -> None:
    found = [split_of(prompt, seed=1, test_fraction=0.1, dev_fraction=0.05) for prompt in PROMPTS]
    # standard deviations: sqrt(4000 * 0.1 * 0.9) = 19 and sqrt(4000 * 0.05 * 0.95) = 14
    assert found.count("test") == pytest.approx(400, abs=60)
    assert found.count("dev") == pytest.approx(200, abs=45)


def test_a_test_prompt_stays_one_when_dev_grows() -> None:
    def tests(dev_fraction: float) -> set[int]:
        splits = [split_of(prompt, seed=1, test_fraction=0.1, dev_fraction=dev_fraction) for prompt in PROMPTS]
        return {number for number, split in enumerate(splits) if split == "test"}

    assert tests(0.05) == tests(0.5)


def test_the_judge_gets_its_share_of_every_split() -> None:
    judged = [prompt for prompt in PROMPTS if is_for_judge(prompt, seed=1, judge_fraction=0.3)]
    assert len(judged) == pytest.approx(1200, abs=90)
    dev = [prompt for prompt in judged if split_of(prompt, seed=1, test_fraction=0.1, dev_fraction=0.05) == "test"]
    # independent: a tenth of 1200, standard deviation 10
    assert len(dev) == pytest.approx(120, abs=35)


@given(st.text(), st.integers(0, 2**31))
def test_a_fraction_is_one(content: str, seed: int) -> None:
    assert 0 <= fraction(content, seed=seed) < 1
