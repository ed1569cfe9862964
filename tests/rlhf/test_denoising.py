from pathlib import Path

import pytest

from rlhf.denoising import cleaned_files, denoise, known_to_be_wrong, sources_of_pairs
from rlhf.errors import BadInput
from rlhf.outputs import read_jsonl
from tests.noisy_pairs import pair_record, tiny_settings, write_noisy_pairs


def test_wrong_labels_lead_the_list(tmp_path: Path, project: Path) -> None:
    records = write_noisy_pairs(tmp_path)
    pairs = tmp_path / "data/validated/pairs"
    config = tiny_settings(project / "params.yaml")
    found = denoise(pairs / "train.jsonl", config=config, sft=tmp_path / "data/models/sft", folds=2, seed=1)
    assert [row["rank"] for row in found.listed] == list(range(1, 49))  # the tie has no order that could be wrong
    suspicion = [row["suspicion"] for row in found.listed]
    assert suspicion == sorted(suspicion, reverse=True)
    assert {row["annotator"] for row in found.listed[:6]} == {"hasty"}
    flagged = {row["id"] for row in found.listed if row["flagged"]}
    assert flagged == {record["id"] for record in records if record["annotator"] == "hasty"}
    assert "gold" not in str(found.listed)
    truth = found.summary["truth"]
    assert (truth["measured"], truth["wrong"], truth["base_rate"]) == (48, 6, 0.125)
    assert (truth["precision"], truth["recall"]) == (1.0, 1.0)
    assert found.summary["flagged_by_annotator"] == {
        "careful": {"pairs": 42, "share": 0.0},
        "hasty": {"pairs": 6, "share": 1.0},
    }

    again = denoise(pairs / "train.jsonl", config=config, sft=tmp_path / "data/models/sft", folds=2, seed=1)
    assert again == found


def test_what_the_rubric_knows_is_measured_and_what_it_does_not_is_not() -> None:
    assert known_to_be_wrong(pair_record(1, wrong=True)) is True
    assert known_to_be_wrong(pair_record(1, wrong=False)) is False
    assert known_to_be_wrong({**pair_record(1, wrong=False), "meta": {}}) is None
    assert known_to_be_wrong({**pair_record(1, wrong=False), "rejected": pair_record(1, wrong=False)["chosen"]}) is None


@pytest.mark.parametrize("action", ["drop", "flip"])
def test_the_cleaned_data_hold_every_other_pair_as_it_was(tmp_path: Path, action: str) -> None:
    write_noisy_pairs(tmp_path, count=8)
    folder, judge_pairs = tmp_path / "data/validated/pairs", tmp_path / "data/validated/judge_pairs"
    train = list(read_jsonl(folder / "train.jsonl"))
    listed = [{"id": row["id"], "flagged": row["annotator"] == "hasty", "suspicion": 0.9} for row in train]
    rows = list(cleaned_files(folder, judge_pairs, listed, action=action, origin={"action": action}))
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) == 9 + 3 - (action == "drop")
    others = [row for row in rows if row["annotator"] == "careful"]
    assert others == [
        *(row for row in train if row["annotator"] == "careful"), *read_jsonl(judge_pairs / "train.jsonl"),
        *read_jsonl(folder / "dev.jsonl"), *read_jsonl(folder / "test.jsonl"),
    ]  # fmt: skip
    turned = [row for row in rows if row["annotator"] == "denoise"]
    assert [known_to_be_wrong(row) for row in turned] == ([] if action == "drop" else [False])
    if turned:
        assert turned[0]["meta"]["denoised"] == {"action": "flip", "suspicion": 0.9, "annotator": "hasty"}


def test_sources_are_named_once(tmp_path: Path) -> None:
    write_noisy_pairs(tmp_path, count=4)
    folder, judge_pairs = tmp_path / "data/validated/pairs", tmp_path / "data/validated/judge_pairs"
    assert sources_of_pairs(folder, judge_pairs) == ["support_desk/pairs.jsonl"]


def test_fewer_prompts_than_folds_are_refused(tmp_path: Path, project: Path) -> None:
    write_noisy_pairs(tmp_path, count=2)
    config = tiny_settings(project / "params.yaml")
    with pytest.raises(BadInput, match=r"folds is 3 with 2 prompts.*lower --folds"):
        denoise(
            tmp_path / "data/validated/pairs/train.jsonl",
            config=config,
            sft=tmp_path / "data/models/sft",
            folds=3,
            seed=1,
        )
