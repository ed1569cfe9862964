import pytest

from rlhf.errors import BadInput
from rlhf.sizing.published import PUBLISHED, SIZES, shape_of_name

# Billions of weights as papers and model cards give them: LLaMA table 2; cards of Qwen2.5 and Llama 3.2.
WEIGHTS = {
    "LLaMA-7B": 6.7, "LLaMA-13B": 13.0, "LLaMA-33B": 32.5, "LLaMA-65B": 65.2, "Llama-3.2-1B": 1.23,
    "Llama-3.2-3B": 3.21, "Llama-3.1-8B": 8.03, "Llama-3.1-70B": 70.6,
    "Qwen2.5-0.5B": 0.49, "Qwen2.5-1.5B": 1.54, "Qwen2.5-3B": 3.09,
    "Qwen2.5-7B": 7.61, "Qwen2.5-14B": 14.7, "Qwen2.5-32B": 32.5, "Qwen2.5-72B": 72.7, "GPT-2": 0.124,
}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_shapes_have_the_published_number_of_weights(name: str) -> None:
    assert PUBLISHED[name].parameters / 1e9 == pytest.approx(WEIGHTS[name], rel=0.012)


def test_a_bare_size_stands_for_a_published_model() -> None:
    assert set(SIZES.values()) <= set(PUBLISHED)
    shape = shape_of_name("33b")
    assert shape is PUBLISHED["LLaMA-33B"]
    assert shape_of_name("Qwen/Qwen2.5-7B-Instruct") is PUBLISHED["Qwen2.5-7B"]
    assert shape_of_name("somebody/something") is None


def test_an_unknown_size_is_a_known_shape_scaled_and_says_so() -> None:
    shape = shape_of_name("20B")
    assert shape is not None
    assert shape.parameters == pytest.approx(20e9, rel=0.01)
    assert "scaled" in shape.source
    with pytest.raises(BadInput, match="fewer than 1,000"):
        shape_of_name("0.5k")
