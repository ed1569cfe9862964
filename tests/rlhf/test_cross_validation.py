from pathlib import Path

import pytest
import torch

from rlhf import cross_validation
from rlhf.cross_validation import out_of_fold_margins
from rlhf.engine import Engine
from rlhf.errors import BadInput
from rlhf.reward_model import RewardModel
from rlhf.reward_training import Work
from tests.noisy_pairs import tiny_settings, write_noisy_pairs


def test_each_fold_is_scored_by_a_model_that_never_saw_it(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = write_noisy_pairs(tmp_path, count=16)
    fold_of = [number % 2 for number in range(16)]
    seen: list[set[tuple[int, ...]]] = []
    real = cross_validation.train_member

    def watched(work: Work, member: int, state: None) -> tuple[Engine, RewardModel]:
        seen.append({tuple(pair.prompt) for pair in work.train})
        return real(work, member, state)

    monkeypatch.setattr(cross_validation, "train_member", watched)
    config = tiny_settings(project / "params.yaml", epochs=1.0)
    found = out_of_fold_margins(records, fold_of, config=config, sft=tmp_path / "data/models/sft", seed=1)
    assert found.margins.shape == (16,)
    assert found.skipped == 0
    assert len(seen) == 2
    assert not seen[0] & seen[1]  # the training prompts of fold 0 are those of fold 1's exam, and the reverse
    assert [len(prompts) for prompts in seen] == [8, 8]


def test_unseen_right_labels_have_positive_margins_and_one_seed_gives_the_same_bits(
    tmp_path: Path, project: Path
) -> None:
    records = write_noisy_pairs(tmp_path, count=32, every=100)
    fold_of = [number % 2 for number in range(32)]
    settings = {"config": tiny_settings(project / "params.yaml"), "sft": tmp_path / "data/models/sft"}
    first, second = (out_of_fold_margins(records, fold_of, **settings, seed=1) for _ in range(2))
    right = torch.tensor([record["annotator"] == "careful" for record in records])
    assert float((first.margins[right] > 0).double().mean()) > 0.9
    assert torch.equal(first.margins, second.margins)
    other = out_of_fold_margins(records, fold_of, **settings, seed=7)
    assert not torch.equal(first.margins, other.margins)


def test_replaced_tokens_and_micro_batches_are_those_of_the_recipe(tmp_path: Path, project: Path) -> None:
    records = write_noisy_pairs(tmp_path, count=16, every=100)
    margins = []
    for micro_batch in (None, 4):
        config = tiny_settings(project / "params.yaml", epochs=1.0, swap_weight=1.0, micro_batch=micro_batch)
        settings = {"config": config, "sft": tmp_path / "data/models/sft", "seed": 1}
        margins.append(out_of_fold_margins(records, [number % 2 for number in range(16)], **settings).margins)
    torch.testing.assert_close(margins[0], margins[1], atol=1e-4, rtol=1e-4)


def test_pairs_that_do_not_fit_are_no_training_data(tmp_path: Path, project: Path) -> None:
    records = write_noisy_pairs(tmp_path, count=4)
    config = tiny_settings(project / "params.yaml", max_tokens=2)
    with pytest.raises(BadInput, match="fold 0: none of the 2 other pairs fits 2 tokens"):
        out_of_fold_margins(records, [0, 0, 1, 1], config=config, sft=tmp_path / "data/models/sft", seed=1)
