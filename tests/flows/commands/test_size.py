import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main

ROOT = Path(__file__).parents[3]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["size", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_model_needs_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, found = answer(capsys, "sft", "0.5B", "--memory", "80GB")
    assert (code, found["fits"], found["model"]) == (0, True, "Qwen2.5-0.5B")
    assert found["peak"] == max(moment["total"] for moment in found["moments"].values())
    assert found["cheapest"]["setting"]["gpus"] == 1


def test_flags_change_what_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("dpo", "7B", "--gpus", "2", "--zero", "3", "--lora", "8", "--checkpointing", "--response", "100")
    _, found = answer(capsys, *words, "--micro-batch", "2", "--examples", "1000", "--utilisation", "0.2")
    setting = found["setting"]
    assert (setting["gpus"], setting["zero_stage"], setting["lora_rank"], setting["micro_batch"]) == (2, 3, 8, 2)
    assert (setting["activation_checkpointing"], setting["response_tokens"]) == (True, 100)
    assert found["time"]["pass"] == found["time"]["per_1000"]
    assert found["assumed"]["utilisation"] == 0.2


@pytest.mark.parametrize(("words", "gpus"), [(("ppo", "33B", "--rollouts", "64"), 4), (("dpo", "33B"), 2)])
def test_a_33b_model_fits_no_few_gpus_of_this_engine_and_why(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], gpus: int
) -> None:
    code, found = answer(capsys, *words, "--gpus", str(gpus), "--memory", "80GB")
    assert (code, found["fits"], found["cheapest"]) == (1, False, None)
    assert found["fits_if"]["engine"]
    assert found["fits_if"]["peak"] <= 80e9


def test_without_options_it_reads_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text((ROOT / "profiles/default.yaml").read_text())
    monkeypatch.setenv("RATCHET_ROOT", str(tmp_path))
    code, found = answer(capsys)
    assert code == 0
    assert [stage["method"] for stage in found["stages"]] == ["sft", "reward", "judge", "ppo", "dpo"]
    assert main(["size", "ppo"]) == 0
    assert "ppo of scratch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [(("ppo", "never/heard-of"), "network is not asked"), (("33B",), "a method too"),
     (("ppo", "7B", "8B"), "one model"),
     (("ppo", "7B", "--memory", "much"), "--memory"), (("ppo", "7B", "--gpu", "abacus"), "A100"),
     (("ppo", "7B", "--utilisation", "2"), "at most 1"), (("ppo", "7B", "--reference", "adapter_off"), "lora_rank")],
)  # fmt: skip
def test_what_is_not_understood_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reason: str
) -> None:
    code = main(["size", *words])
    assert code == 2
    assert reason in capsys.readouterr().err
