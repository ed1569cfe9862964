import pytest
import torch

from rlhf.out_of_memory import explain

GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 512.00 MiB is "
    "free. Including non-PyTorch memory, this process has 78.50 GiB memory in use."
)
SECTION = {"batch_size": 64, "micro_batch": None, "lora_rank": 0, "base_model": "small", "engine": {}}


def test_other_errors_are_none_of_its_business():
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), SECTION, ranks=1) is None
    assert explain(KeyError("memory"), SECTION, ranks=1) is None


def test_an_allocation_that_torch_refused_is_told_with_its_size():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    # 2**50 numbers of 4 bytes are 2**22 GiB
    sentence = explain(caught.value, SECTION, ranks=1)
    assert sentence is not None
    assert sentence.startswith("this computer ran out of memory: 4.19e+06 GiB more were wanted; the last checkpoint")


def test_a_gpu_says_by_how_much():
    sentence = explain(torch.OutOfMemoryError(GPU), SECTION, ranks=8)
    assert sentence is not None
    assert (
        "the GPU ran out of memory: 2 GiB more were wanted and 512 MiB of 79.1 GiB were free, 1.5 GiB short" in sentence
    )
    # 64 rows over 8 ranks are 8 a rank: half of that
    assert sentence.endswith(
        "try micro_batch: 4, or engine.activation_checkpointing: true, or engine.zero_stage: 3, or engine.offload: "
        "optimizer"
    )


@pytest.mark.parametrize(
    ("section", "ranks", "cure"),
    [
        (
            {**SECTION, "micro_batch": 6}, 1,
            "try micro_batch: 3, or engine.activation_checkpointing: true, or lora_rank: 16",
        ),
        ({**SECTION, "micro_batch": 1, "base_model": "scratch"}, 1, "try engine.activation_checkpointing: true"),
        (
            {**SECTION, "micro_batch": 1, "lora_rank": 8, "engine": {"activation_checkpointing": True}}, 2,
            "try engine.zero_stage: 3",
        ),
        ({"threads": 1}, 1, "it needs a smaller model, shorter sequences or more memory"),
        ({"minibatch": 16, "micro_batch": None}, 1, "try micro_batch: 8"),
    ],
)  # fmt: skip
def test_cures_are_settings_that_are_not_in_force(section, ranks, cure):
    sentence = explain(MemoryError(), section, ranks=ranks)
    assert sentence == f"this computer ran out of memory; the last checkpoint is kept; {cure}"
