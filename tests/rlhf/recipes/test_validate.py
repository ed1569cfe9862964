import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.rubric import applies
from rlhf.errors import BadInput
from rlhf.recipes import generate
from rlhf.recipes.validate import Config
from tests.rlhf.recipes.validation import CONFIG, FOLDERS, pairs, read, validate, write


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Raw support-desk data with dirt, and what was planted."""
    folder = tmp_path_factory.mktemp("embedded")
    config = generate.Config(
        files=("support_desk/",),
        seed=1,
        demonstrations=300,
        pairs=400,
        prompts=200,
        unlike_prompts=25,
        probes_per_fact=4,
        minimal_share=0.2,
        second_opinion_share=0.2,
        duplicate_share=0.02,
        contradiction_share=0.02,
        broken_share=0.03,
    )
    generate.main(
        config, seed=1, stage="generate", raw=folder / "raw" / "support_desk", metrics=folder / "generate.json"
    )
    return folder / "raw", json.loads((folder / "generate.json").read_text())


def test_the_embedded_data_come_out_clean(embedded: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    raw, planted = embedded
    found = validate(replace(CONFIG, files=("support_desk/",)), raw, tmp_path)
    rows = found.metrics["rows"]
    assert rows["refused"] == sum(kind["planted"]["broken"] for kind in planted.values())
    assert rows["duplicates"] == sum(kind["planted"]["duplicates"] for kind in planted.values())
    assert rows["contradictory"] == 2 * planted["pairs"]["planted"]["contradictions"]
    assert found.metrics["prompts_in_two_splits"] == 0
    assert {row["reason"] for row in found.quarantine} == {
        "empty text", "missing field", "broken JSON", "chosen equals rejected", "not a finite number",
        "lost characters", "a key stands twice", "longer than 1000 characters", "contradicted by the same annotator",
    }  # fmt: skip
    assert all(row["line"] >= 1 and row["file"].startswith("support_desk/") for row in found.quarantine)
    assert len(found.every("demonstrations")) == 300
    assert len(found.every("prompts")) == 200
    assert len(found.records("probes", "test")) == 32
    assert len(found.records("prompts", "unlike")) == 25
    assert found.metrics["kept"]["prompts"]["unlike"] == 25
    assert found.metrics["pairs"]["rated_twice"] > 40
    assert set(found.metrics["pairs"]["annotators"]) == {"careful", "skimmer", "hurried"}
    for folder in FOLDERS:
        assert all(applies(record["meta"]) for record in found.every(folder))
        assert not any("gold" in json.dumps(record) for record in found.every(folder))


def test_the_same_input_gives_the_same_bytes(embedded: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    config = replace(CONFIG, files=("support_desk/",))
    first, second = (validate(config, embedded[0], tmp_path / name).bytes() for name in ("one", "two"))
    assert first == second


def test_no_prompt_is_in_two_splits_or_with_reward_and_judge(
    embedded: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    found = validate(replace(CONFIG, files=("support_desk/",)), embedded[0], tmp_path)

    def prompts(split: str, folders: tuple[str, ...] = FOLDERS) -> set[str]:
        return {json.dumps(record["prompt"]) for folder in folders for record in found.records(folder, split)}

    assert not prompts("train") & prompts("dev")
    assert not prompts("train") & prompts("test")
    assert not prompts("dev") & prompts("test")
    assert not prompts("train", ("pairs",)) & prompts("train", ("judge_pairs",))
    assert found.records("judge_pairs", "test") == found.records("pairs", "test")


def test_no_prompt_of_any_other_file_is_among_the_unlike(embedded: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    found = validate(replace(CONFIG, files=("support_desk/",)), embedded[0], tmp_path)
    unlike = {json.dumps(record["prompt"]) for record in found.records("prompts", "unlike")}
    others = {json.dumps(record["prompt"]) for folder in FOLDERS for record in found.every(folder)}
    assert len(unlike) == 25
    assert not unlike & others


def test_a_prompt_keeps_its_split_when_data_are_added(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "data.jsonl", pairs(60))
    before = validate(CONFIG, tmp_path / "raw", tmp_path / "before")
    write(tmp_path / "raw" / "more.jsonl", [*pairs(90)[60:], *pairs(60)])
    after = validate(replace(CONFIG, files=("more.jsonl", "data.jsonl")), tmp_path / "raw", tmp_path / "after")
    for folder in ("pairs", "judge_pairs", "prompts"):
        for split in ("train", "dev", "test"):
            old = {record["id"] for record in before.records(folder, split)}
            new = {record["id"] for record in after.records(folder, split)}
            assert old <= new


def test_chosen_answers_and_pair_prompts_fill_in(tmp_path: Path) -> None:
    tie = {"prompt": "question tie", "response_a": "one", "response_b": "two", "label": 0.5}
    write(tmp_path / "raw" / "data.jsonl", pairs(60))
    write(tmp_path / "raw" / "ties.jsonl", [tie])
    found = validate(replace(CONFIG, files=("*.jsonl",)), tmp_path / "raw", tmp_path)
    assert {record["response"] for record in found.every("demonstrations")} == {f"good {n}" for n in range(60)}
    asked = [record["prompt"][-1]["content"] for record in found.every("prompts")]
    assert sorted(asked) == sorted([*(f"question {n}" for n in range(60)), "question tie"])
    assert found.metrics["pairs"]["tie_share"] == pytest.approx(1 / 61, abs=1e-6)


def test_sources_can_be_chosen(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw / "data.jsonl", pairs(60))
    write(raw / "sft.jsonl", [{"prompt": f"task {n}", "response": "done"} for n in range(40)])
    write(raw / "ask.jsonl", [{"prompt": f"only {n}"} for n in range(40)])
    config = replace(CONFIG, files=("*.jsonl",))

    def first_words(config: Config, folder: str) -> set[str]:
        found = validate(config, raw, tmp_path / "out")
        return {record["prompt"][-1]["content"].split()[0] for record in found.every(folder)}

    assert first_words(config, "prompts") == {"only"}
    assert first_words(replace(config, prompts_from="pairs"), "prompts") == {"question"}
    assert first_words(replace(config, prompts_from="all"), "prompts") == {"only", "question", "task"}
    assert first_words(config, "demonstrations") == {"task"}
    assert first_words(replace(config, demonstrations_from="chosen"), "demonstrations") == {"question"}


def test_limits_keep_so_many_and_no_more(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "data.jsonl", pairs(80))
    limited = replace(CONFIG, max_pairs=5, max_demonstrations=6, max_prompts=7, max_held_out=3)
    found = validate(limited, tmp_path / "raw", tmp_path)
    kept = found.metrics["kept"]
    assert (kept["pairs"]["train"], kept["judge_pairs"]["train"]) == (5, 5)
    assert (kept["demonstrations"]["train"], kept["prompts"]["train"]) == (6, 7)
    assert kept["pairs"]["dev"] == kept["prompts"]["test"] == kept["judge_pairs"]["test"] == 3


BAD_ROWS: list[tuple[Any, str]] = [
    ('{"prompt": "x", "chosen": "a", "rejec', "broken JSON"),
    ('{"prompt": "x", "chosen": "a", "chosen": "b", "rejected": "c"}', "a key stands twice"),
    ({"prompt": "x", "chosen": "same", "rejected": "same"}, "chosen equals rejected"),
    ({"prompt": "x", "chosen": "", "rejected": "b"}, "empty text"),
    ({"prompt": "x", "chosen": "a" * 1_000_000, "rejected": "b"}, "longer than 1000 characters"),
    ('{"prompt": "x", "chosen": "a", "rejected": "b", "score_chosen": NaN}', "not a finite number"),
    ({"prompt": "x", "chosen": "a"}, "missing field"),
    ({"prompt": "caf\ufffd", "chosen": "a", "rejected": "b"}, "lost characters"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS, ids=[reason for _, reason in BAD_ROWS])
def test_one_bad_row_is_quarantined_and_many_stop_the_stage(bad: Any, reason: str, tmp_path: Path) -> None:
    write(tmp_path / "raw" / "data.jsonl", [*pairs(60)[:30], bad, *pairs(60)[30:]])
    found = validate(CONFIG, tmp_path / "raw", tmp_path / "one")
    assert [(row["file"], row["line"], row["reason"]) for row in found.quarantine] == [("data.jsonl", 31, reason)]
    assert found.metrics["refused"] == {reason: 1}

    write(tmp_path / "raw" / "data.jsonl", [*pairs(60), *[bad] * 10])
    with pytest.raises(BadInput) as caught:
        validate(CONFIG, tmp_path / "raw", tmp_path / "many")
    assert "10 of 70 raw rows (14.3%) are bad" in str(caught.value)
    assert f"{reason} in 10 rows (data.jsonl:61 " in str(caught.value)
    assert len(str(caught.value)) < 500
    assert len(read(tmp_path / "many" / "quarantine" / "rows.jsonl")) == 10
    assert not (tmp_path / "many" / "quarantine" / ".spool").exists()


def test_wrong_encoding_is_counted_line_by_line(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "data.jsonl", pairs(60))
    with (tmp_path / "raw" / "data.jsonl").open("ab") as stream:
        stream.write('{"prompt": "x", "chosen": "café", "rejected": "b"}\n'.encode("latin-1"))
    found = validate(CONFIG, tmp_path / "raw", tmp_path)
    assert [(row["line"], row["reason"]) for row in found.quarantine] == [(61, "not UTF-8")]


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ([{"prompt": "a", "response": "b"}], {}, "no record is left for"),
        ([{"prompt": "a", "response": "b", "label": True}], {}, "judgements train a policy (dpo.objective: kto)"),
        ([{"question": "a", "answer": "b"}], {}, "has the columns question, answer"),
        (pairs(60), {"formats": {"data.jsonl": "alpaca"}}, "none of its 60 rows could be read as alpaca"),
        (pairs(60), {"formats": {"other.jsonl": "alpaca"}}, "not among the files"),
        (pairs(60), {"demonstrations_from": "demonstrations"}, "no record is left for demonstrations/train"),
        (pairs(60), {"prompts_from": "prompts"}, "no record is left for prompts/train"),
        (pairs(60), {"files": ("none.jsonl",)}, "has no such file (it holds data.jsonl)"),
        (pairs(60), {"files": ("../data.jsonl",)}, "leads out of"),
    ],
)
def test_input_of_no_use_is_refused_in_one_sentence(
    rows: list[Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "raw" / "data.jsonl", rows)
    with pytest.raises(BadInput) as caught:
        validate(replace(CONFIG, **changes), tmp_path / "raw", tmp_path / "out")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "pairs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"test_fraction": 0.0},
        {"dev_fraction": 1.0},
        {"test_fraction": 0.6, "dev_fraction": 0.4},
        {"judge_fraction": 0},
        {"max_bad_fraction": 2},
        {"max_response_chars": 0},
        {"max_held_out": 0},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(CONFIG, **changes)


@pytest.mark.shared
def test_real_preferences_of_four_formats_become_one_data_set(shared: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    names = {
        "polite.jsonl": "instruction_pref/pairs.jsonl",
        "polite_sft.jsonl": "instruction_pref/sft.jsonl",
        "harmless.jsonl.gz": "hh_harmless/test.jsonl.gz",
        "trees.jsonl": "oasst_en100/pairs.jsonl",
        "sharegpt.json": "llamafactory_demo/dpo_en_demo.json",
    }
    for name, source in names.items():
        (raw / name).write_bytes((shared / "data" / source).read_bytes())
    config = replace(CONFIG, files=tuple(names), max_prompt_chars=8000, max_response_chars=8000, max_bad_fraction=0.01)
    found = validate(config, raw, tmp_path)
    # 6 rows of the first file have equal answers, 5 transcripts part early, 4 of the others have an empty answer
    assert found.metrics["refused"]["chosen equals rejected"] >= 6
    assert found.metrics["refused"]["the conversations part before the last answer"] == 5
    assert found.metrics["refused"]["empty text"] >= 4
    assert found.metrics["rows"]["read"] == 1100 + 1100 + 2312 + 754 + 300
    assert found.metrics["prompts_in_two_splits"] == 0
    assert {record["source"] for record in found.every("pairs")} == set(names) - {"polite_sft.jsonl"}
    assert {record["source"] for record in found.every("demonstrations")} == {"polite_sft.jsonl"}
