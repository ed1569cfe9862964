import dataclasses

from rlhf.sizing.memory import estimate
from rlhf.sizing.published import PUBLISHED
from rlhf.sizing.search import cheapest, quickest, variants, what_is_lacking
from rlhf.sizing.setting import setting_of
from rlhf.sizing.timing import GPUS, timing

A100 = GPUS["A100"]
SMALL, MIDDLE, LARGE = (PUBLISHED[name] for name in ("Qwen2.5-0.5B", "LLaMA-7B", "LLaMA-33B"))


def test_what_fits_keeps_all_weights_and_the_gpus() -> None:
    asked = setting_of("sft", SMALL, gpus=2)
    found = cheapest(asked, A100)
    assert found is not None
    assert found.estimate.fits
    assert (found.setting.gpus, found.setting.lora_rank, found.setting.offload) == (2, 0, "none")
    assert found.timing.total <= timing(asked, A100).total


def test_the_quickest_is_no_slower_than_any_variant_that_fits() -> None:
    asked = setting_of("dpo", MIDDLE, gpus=4)
    best = quickest(asked, A100, None)
    assert best is not None
    fitting = [one for one in variants(asked) if estimate(one).fits]
    assert 0 < len(fitting) < len(list(variants(asked)))
    assert best.timing.total <= 1.001 * min(timing(one, A100).total for one in fitting)


def test_an_adapter_comes_before_more_gpus_and_both_after_offload() -> None:
    alone = setting_of("dpo", MIDDLE)
    found = cheapest(alone, A100)
    assert found is not None
    assert (found.setting.gpus, found.setting.lora_rank) == (1, 16)
    tight = cheapest(setting_of("sft", MIDDLE, memory=30e9), A100)
    assert tight is None or tight.setting.gpus > 1


def test_the_computers_memory_counts_where_it_is_known() -> None:
    asked = setting_of("sft", SMALL, gpus=2)
    assert cheapest(asked, A100, host=1e12) is not None
    assert cheapest(asked, A100, host=1e9) is None


def test_what_the_engine_lacks_is_named_when_nothing_fits() -> None:
    asked = setting_of("dpo", LARGE, gpus=2)
    assert cheapest(asked, A100) is None
    lacking = what_is_lacking(asked, A100)
    assert lacking is not None
    names, found = lacking
    assert found.estimate.fits
    # All but one of the changes are not enough: the list is as short as can be.
    assert len(names) == 1
    assert getattr(found.setting.holds, names[0]) != getattr(asked.holds, names[0])
    assert what_is_lacking(dataclasses.replace(asked, memory=1e9), A100) is None
