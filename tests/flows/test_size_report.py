from typing import Any

from flows.size_report import lines, overview

GB = 1e9
SETTING: dict[str, Any] = {
    "gpus": 4, "zero_stage": 3, "offload": "none", "activation_checkpointing": True, "micro_batch": 2, "lora_rank": 0,
    "value_model": "separate", "value_lora_rank": 0, "reference": "frozen", "precision": "bfloat16", "batch": 8,
    "prompt_tokens": 10, "response_tokens": 20, "rollouts": 64, "reward_models": 1,
}  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "method": "ppo", "model": "tiny", "parameters": 2e9, "shape_source": "a paper", "setting": SETTING, "gpu": "A100",
    "memory": 80 * GB, "peak": 90 * GB, "peak_at": "rollout", "fits": False,
    "host": {"loading": 3 * GB, "optimizer": 0}, "host_total": 3 * GB,
    "cheapest": None, "cheapest_needs_more_gpus": False, "fits_if": None,
    "moments": {
        "rollout": {"weights": 60 * GB, "KV cache": 30 * GB, "reserve": 1.0, "total": 90 * GB},
        "training": {"weights": 60 * GB, "activations": 5 * GB, "total": 65 * GB},
    },
    "time": {"parts": {"sampling": 100.0, "scoring": 0.0}, "update": 100.0, "elements": 64, "per_1000": 1562.5},
    "assumed": {"utilisation": 0.4, "decoding": 0.5},
}  # fmt: skip
CHOICE = {
    "setting": {**SETTING, "lora_rank": 16}, "peak": 50 * GB, "peak_at": "training", "host_total": GB, "seconds": 9.0,
}  # fmt: skip


def text(**changes: Any) -> str:
    return "\n".join(lines({**DOCUMENT, **changes}))


def test_the_verdict_says_by_how_much() -> None:
    assert "does not fit, 10.0 GB too much per GPU" in text()
    assert "fits, 30.0 GB to spare" in text(fits=True, peak=50 * GB, cheapest=CHOICE)
    assert "does not fit the computer's memory" in text(peak=50 * GB, cheapest=CHOICE)


def test_parts_stand_under_the_moments_and_specks_are_left_out() -> None:
    rows = {line.split("  ")[0]: line.split() for line in text().splitlines()}
    assert rows["KV cache"][2:] == ["30.0", "GB", "-"]
    assert rows["total"][1:] == ["90.0", "GB", "65.0", "GB"]
    assert "reserve" not in rows
    assert "optimizer 0" not in text()


def test_advice_names_the_change_and_what_it_costs() -> None:
    assert "cheapest that fits: 4 GPUs, ZeRO-3, offload none, checkpointing, LoRA of rank 16" in text(cheapest=CHOICE)
    assert "not the same result" in text(cheapest=CHOICE)
    as_asked = {**CHOICE, "setting": SETTING}
    assert "(as asked)" in text(cheapest=as_asked)


def test_what_the_engine_lacks_is_a_list() -> None:
    shown = text(fits_if={"engine": ["whole_load", "weights"], **CHOICE})
    assert "it would fit them if the engine had:" in shown
    assert "models split while they are loaded" in shown
    assert "no number of GPUs helps" in shown
    assert "nor would it" in text()


def test_times_have_their_assumption() -> None:
    assert "1 min 40 s for an update of 64" in text()
    assert "40% of the peak" in text()
    assert "one pass over the examples: 8.0 s" in text(time={**DOCUMENT["time"], "pass": 8.0})


def test_several_stages_have_one_line_each() -> None:
    shown = overview([DOCUMENT, {**DOCUMENT, "method": "dpo", "fits": True}])
    assert [line.split()[0] for line in shown[0].splitlines()[2:]] == ["ppo", "dpo"]
