"""The evaluation recipe on two-layer random models and a handful of prompts."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import BadInput
from rlhf.models import build_policy, save_policy
from rlhf.outputs import read_jsonl, write_jsonl
from rlhf.recipes.evaluate import Config, main
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import train_tokenizer

CONFIG = Config(
    policies=("sft", "ppo", "dpo"), temperature=1.0, max_new_tokens=5, dev_prompts=2, test_prompts=3,
    held_out_records=4, best_of=(1, 2), best_of_prompts=2, batch=4, win_tolerance=0.01, tie_tolerance=1e-4,
    resamples=100, precision="float32", matmul="native",
    unlike_prompts=2, kl_band=(0.5, 3.5), preference_accuracy_mark=0.75,
)  # fmt: skip
META = {"action": "refund", "name": "Amara", "order": "201", "item": "desk"}
RIGHT, WRONG = "I booked a full refund.", "We can have it repaired."


def build_inputs(root: Path) -> dict[str, Path]:
    """Models and validated records, as the earlier stages leave them."""
    tokenizer = train_tokenizer([RIGHT, WRONG, "My lamp is broken. Order 201. Amara"] * 3, vocab_size=300)
    for seed, name in enumerate(("sft", "ppo", "dpo")):
        torch.manual_seed(seed)
        model = build_policy(tokenizer, hidden=16, layers=2, heads=2, intermediate=32, context=64)
        save_policy(model, tokenizer, root / name)
    for seed, name in enumerate(("reward", "judge")):
        torch.manual_seed(seed)
        RewardModel.from_policy(root / "sft", pooling="mean").save(root / name, tokenizer)

    def records(count: int, **fields: Any) -> list[dict[str, Any]]:
        prompts = (
            [{"role": "user", "content": f"My lamp is broken. Order {200 + number}."}] for number in range(count)
        )
        return [{"id": f"r{n}", "prompt": p, "source": "x", "meta": META, **fields} for n, p in enumerate(prompts)]

    pair = {"chosen": RIGHT, "rejected": WRONG, "label": 1.0}
    elsewhere = [{**row, "prompt": [{"role": "user", "content": f"Hi {row['id']}"}]} for row in records(3)]
    write_jsonl(
        root / "prompts" / "unlike.jsonl",
        [{**row, "meta": {**row["meta"], "unlike": True, "shift": "both"}} for row in elsewhere],
    )
    for split in ("train", "dev", "test"):
        write_jsonl(root / "prompts" / f"{split}.jsonl", records(4))
        write_jsonl(root / "pairs" / f"{split}.jsonl", records(3, **pair))
        write_jsonl(root / "demonstrations" / f"{split}.jsonl", records(2, response=RIGHT))
        write_jsonl(root / "probes" / f"{split}.jsonl", records(2, **pair, meta={**META, "probe": "action"}))
    names = ("sft", "ppo", "dpo", "reward", "judge", "prompts", "pairs", "demonstrations", "probes")
    return {name: root / name for name in names}


def outputs(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in ("answers", "frontier", "metrics")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


def test_it_writes_answers_frontier_and_metrics(inputs: dict[str, Path], tmp_path: Path) -> None:
    main(CONFIG, seed=1, stage="evaluate", **inputs, **outputs(tmp_path))

    rows = list(read_jsonl(tmp_path / "answers"))
    assert len(rows) == 4 * (2 + 3 + 2)
    assert [(row["split"], row["policy"], row["id"]) for row in rows] == sorted(
        (row["split"], row["policy"], row["id"]) for row in rows
    )
    assert {row["kl"] for row in rows if row["policy"] in ("sft", "sft_again")} == {0.0}
    assert all(row["kl"] > 0 for row in rows if row["policy"] in ("ppo", "dpo"))

    with (tmp_path / "frontier").open() as stream:
        points = list(csv.DictReader(stream))
    assert [point["policy"] for point in points] == ["sft", "ppo", "dpo", "best-of-1", "best-of-2"]
    assert float(points[4]["kl"]) == pytest.approx(0.193147, abs=1e-6)  # log 2 - 1/2

    metrics = json.loads((tmp_path / "metrics").read_text())
    assert metrics["selected"] in ("ppo", "dpo")
    assert set(metrics["test"]) == {"sft", "sft_again", "ppo", "dpo"}
    ppo = metrics["test"]["ppo"]
    assert ppo["judge_win_low"] <= ppo["judge_win_vs_sft"] <= ppo["judge_win_high"]
    assert ppo["over_optimised"] in (0.0, 1.0)
    assert ppo["perplexity"] > 1
    assert metrics["prompts"] == {"dev": 2, "test": 3, "unlike": 2}
    assert set(metrics["unlike"]) == set(metrics["unlike_shifts"]["both"]) == {"sft", "sft_again", "ppo", "dpo"}
    assert metrics["unlike"]["ppo"]["over_optimised"] in (0.0, 1.0)
    assert metrics["tax"]["ppo"]["perplexity"] == ppo["perplexity"]
    change = ppo["perplexity"] - metrics["test"]["sft"]["perplexity"]
    assert metrics["tax"]["ppo"]["perplexity_change"] == pytest.approx(change, rel=1e-3)
    assert metrics["regression"]["dpo"]["records"] == 2
    assert set(metrics["regression"]["dpo"]["facts"]) == {"action"}
    assert metrics["marks"]["ppo"]["kl_inside_band"] is (0.5 <= ppo["kl"] <= 3.5)
    assert metrics["marks"]["reward_model"]["passed"] is (metrics["reward_model"]["accuracy"] >= 0.75)
    assert metrics["reward_model"]["pairs"] == 3
    assert 0 <= metrics["judge"]["probes"]["action"] <= 1


def test_the_same_seed_gives_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, best_of=())
    for attempt in ("first", "second"):
        main(config, seed=1, stage="evaluate", **inputs, **outputs(tmp_path / attempt))
    for name in ("answers", "frontier", "metrics"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_records_of_another_task_have_no_gold(inputs: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("prompts", "pairs"):
        for split in ("dev", "test"):
            stripped = [{**record, "meta": {}} for record in read_jsonl(inputs[kind] / f"{split}.jsonl")]
            write_jsonl(tmp_path / kind / f"{split}.jsonl", stripped)
    for kind in ("demonstrations", "probes"):
        for split in ("train", "dev", "test"):
            write_jsonl(tmp_path / kind / f"{split}.jsonl", [])
    own = {kind: tmp_path / kind for kind in ("prompts", "pairs", "demonstrations", "probes")}
    config = replace(CONFIG, policies=("sft", "dpo"))
    main(config, seed=1, stage="evaluate", **{**inputs, **own}, **outputs(tmp_path))
    metrics = json.loads((tmp_path / "metrics").read_text())
    assert metrics["selected"] == "dpo"
    assert "gold" not in metrics["test"]["dpo"]
    assert "perplexity" not in metrics["test"]["dpo"]
    assert "accuracy_gold" not in metrics["judge"]
    assert all(row["gold"] is None for row in read_jsonl(tmp_path / "answers"))


def linked(inputs: dict[str, Path], folder: Path, unlike: list[dict[str, Any]] | None) -> dict[str, Path]:
    """The same inputs with another file of unlike prompts, or with none."""
    for split in ("dev", "test"):
        write_jsonl(folder / f"{split}.jsonl", read_jsonl(inputs["prompts"] / f"{split}.jsonl"))
    if unlike is not None:
        write_jsonl(folder / "unlike.jsonl", unlike)
    return {**inputs, "prompts": folder}


@pytest.mark.parametrize("unlike", [None, []])
def test_without_unlike_prompts_all_else_is_the_same(
    inputs: dict[str, Path], unlike: list[dict[str, Any]] | None, tmp_path: Path
) -> None:
    config = replace(CONFIG, best_of=())
    main(config, seed=1, stage="evaluate", **inputs, **outputs(tmp_path / "with"))
    own = linked(inputs, tmp_path / "prompts", unlike)
    main(config, seed=1, stage="evaluate", **own, **outputs(tmp_path / "without"))
    found, other = (json.loads((tmp_path / name / "metrics").read_text()) for name in ("with", "without"))
    assert set(found) - set(other) == {"unlike", "unlike_shifts"}
    assert other["prompts"] == {"dev": 2, "test": 3}
    assert {key: found[key] for key in other if key != "prompts"} == {
        key: other[key] for key in other if key != "prompts"
    }


@pytest.mark.parametrize("split", ["dev", "test"])
def test_an_unlike_prompt_that_is_held_out_as_well_is_refused(
    inputs: dict[str, Path], split: str, tmp_path: Path
) -> None:
    own = linked(inputs, tmp_path / "prompts", list(read_jsonl(inputs["prompts"] / "unlike.jsonl")))
    shared = {**next(read_jsonl(own["prompts"] / "unlike.jsonl")), "id": "x"}
    write_jsonl(own["prompts"] / f"{split}.jsonl", [*read_jsonl(own["prompts"] / f"{split}.jsonl"), shared])
    with pytest.raises(BadInput, match=rf"1 of its prompts are also in {split}\.jsonl"):
        main(CONFIG, seed=1, stage="evaluate", **own, **outputs(tmp_path))


def test_no_prompts_is_one_sentence(inputs: dict[str, Path], tmp_path: Path) -> None:
    for split in ("dev", "test"):
        write_jsonl(tmp_path / "empty" / f"{split}.jsonl", [])
    with pytest.raises(BadInput, match=r"dev\.jsonl: there is no prompt"):
        main(CONFIG, seed=1, stage="evaluate", **{**inputs, "prompts": tmp_path / "empty"}, **outputs(tmp_path))


def test_unknown_policy_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, policies=("sft", "grpo"))
    with pytest.raises(BadInput, match="grpo"):
        main(config, seed=1, stage="evaluate", **inputs, **outputs(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policies", ("ppo", "sft")), ("temperature", 0.0), ("max_new_tokens", 0), ("best_of", (4, 2)),
        ("win_tolerance", 1.5), ("tie_tolerance", -1.0), ("resamples", 10), ("precision", "float16"), ("matmul", "mkl"),
        ("unlike_prompts", -1), ("kl_band", (2.0, 0.5)), ("kl_band", (0.5,)), ("preference_accuracy_mark", 75.0),
    ],
)  # fmt: skip
def test_settings_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(CONFIG, **{field: value})  # type: ignore[arg-type]
