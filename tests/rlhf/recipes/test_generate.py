import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.rubric import applies, judge
from rlhf.data.support_desk import FLIPS
from rlhf.recipes.generate import Config, is_wanted, main

CONFIG = Config(
    files=("support_desk/",),
    seed=1,
    demonstrations=120,
    pairs=400,
    prompts=60,
    unlike_prompts=30,
    probes_per_fact=3,
    minimal_share=0.2,
    second_opinion_share=0.25,
    duplicate_share=0.05,
    contradiction_share=0.05,
    broken_share=0.08,
)
CLEAN = replace(CONFIG, duplicate_share=0.0, contradiction_share=0.0, broken_share=0.0)


def generate(config: Config, folder: Path) -> tuple[Path, dict[str, Any]]:
    raw, metrics = folder / "support_desk", folder / "generate.json"
    main(config, seed=9, stage="generate", raw=raw, metrics=metrics)
    return raw, json.loads(metrics.read_text())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_are_complete_and_hold_no_gold(tmp_path: Path) -> None:
    raw, metrics = generate(CLEAN, tmp_path)
    assert sorted(path.name for path in raw.iterdir()) == [
        "demonstrations.jsonl",
        "pairs.jsonl",
        "probes.jsonl",
        "prompts.jsonl",
        "unlike_prompts.jsonl",
    ]
    facts = {"intent", "plus", "days", "name", "item", "order", "action"}
    demonstrations, pairs = read(raw / "demonstrations.jsonl"), read(raw / "pairs.jsonl")
    assert set(demonstrations[0]) == {"id", "prompt", "response", "tier", *facts}
    assert set(pairs[0]) == {"id", "prompt", "response_a", "response_b", "label", "annotator", *facts}
    assert set(read(raw / "prompts.jsonl")[0]) == {"id", "prompt", *facts}
    assert len(demonstrations) == metrics["demonstrations"]["rows"] == 120
    assert len(pairs) == metrics["pairs"]["rows"] == 400 + metrics["pairs"]["rated_twice"]
    assert {row["label"] for row in pairs} == {0, 1, 0.5}
    assert len({row["id"] for row in pairs}) == len(pairs)


def test_second_opinions_are_of_other_people_on_the_same_replies(tmp_path: Path) -> None:
    raw, metrics = generate(CLEAN, tmp_path)
    pairs = {row["id"]: row for row in read(raw / "pairs.jsonl")}
    seconds = [row for name, row in pairs.items() if name.endswith("b")]
    # a quarter of 400, standard deviation 9
    assert len(seconds) == pytest.approx(100, abs=30)
    for row in seconds:
        first = pairs[row["id"].removesuffix("b")]
        assert row["annotator"] != first["annotator"]
        assert (row["response_a"], row["response_b"]) == (first["response_a"], first["response_b"])
    assert -1 <= metrics["pairs"]["kappa"] <= 1


def test_minimal_pairs_differ_in_one_sentence_only(tmp_path: Path) -> None:
    raw, _ = generate(replace(CLEAN, minimal_share=1.0, pairs=80), tmp_path)
    differing = set()
    for row in read(raw / "pairs.jsonl"):
        first, second = (
            row[name].replace("!", ".").replace("?", ".").split(". ") for name in ("response_a", "response_b")
        )
        assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
        points = [judge(row, row[name]) for name in ("response_a", "response_b")]
        differing |= {fact for fact in points[0].parts if points[0].parts[fact] != points[1].parts[fact]}
    assert {"order", "name", "item", "action", "sla"} <= differing


def test_probes_are_right_against_wrong_on_tickets_of_their_own(tmp_path: Path) -> None:
    raw, _ = generate(CONFIG, tmp_path)
    probes = read(raw / "probes.jsonl")
    assert len(probes) == 3 * len(FLIPS)
    for probe in probes:
        assert judge(probe, probe["chosen"]).points == 10.0
        assert judge(probe, probe["rejected"]).points < 10.0
    texts = {probe["prompt"][-1]["content"] for probe in probes}
    assert len(texts) == len(probes)
    for name in ("demonstrations", "pairs", "prompts"):
        assert not any(text in (raw / f"{name}.jsonl").read_text() for text in texts)


def test_unlike_prompts_have_what_no_other_record_has(tmp_path: Path) -> None:
    raw, metrics = generate(CONFIG, tmp_path)
    unlike = read(raw / "unlike_prompts.jsonl")
    assert metrics["unlike_prompts"]["rows"] == len(unlike) == 30
    assert [row["shift"] for row in unlike[:4]] == ["wording", "facts", "both", "wording"]
    assert all(row["unlike"] is True for row in unlike)
    assert all(applies(row) for row in unlike)
    assert len({row["prompt"][-1]["content"] for row in unlike}) == 30
    others = "".join((raw / f"{name}.jsonl").read_text() for name in ("demonstrations", "pairs", "prompts", "probes"))
    for row in unlike:
        text = row["prompt"][-1]["content"]
        assert text not in others
        assert all(str(row[fact]) in text for fact in ("name", "item", "order"))
        if row["shift"] != "wording":
            assert not any(f'"{row[fact]}"' in others for fact in ("name", "item", "order"))


def test_unlike_prompts_change_no_other_file(tmp_path: Path) -> None:
    with_them, _ = generate(CONFIG, tmp_path / "with")
    without, metrics = generate(replace(CONFIG, unlike_prompts=0), tmp_path / "without")
    assert metrics["unlike_prompts"] == {"rows": 0}
    assert not (without / "unlike_prompts.jsonl").exists()
    for name in ("demonstrations", "pairs", "prompts", "probes"):
        assert (with_them / f"{name}.jsonl").read_bytes() == (without / f"{name}.jsonl").read_bytes()


def test_dirt_is_planted_as_reported(tmp_path: Path) -> None:
    raw, metrics = generate(CONFIG, tmp_path)
    assert metrics["demonstrations"]["planted"] == {"duplicates": 6, "contradictions": 0, "broken": 10}
    lines = (raw / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 120 + 6 + 10
    assert metrics["probes"]["planted"] == {"duplicates": 0, "contradictions": 0, "broken": 0}


def test_the_data_depend_on_their_own_seed_only(tmp_path: Path) -> None:
    contents = []
    for number, (config, seed) in enumerate([(CONFIG, 1), (CONFIG, 2), (replace(CONFIG, seed=2), 1)]):
        raw = tmp_path / str(number) / "support_desk"
        main(config, seed=seed, stage="generate", raw=raw, metrics=tmp_path / "metrics.json")
        contents.append({path.name: path.read_bytes() for path in sorted(raw.iterdir())})
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_more_pairs_do_not_change_the_demonstrations(tmp_path: Path) -> None:
    few, _ = generate(CONFIG, tmp_path / "few")
    many, _ = generate(replace(CONFIG, pairs=500), tmp_path / "many")
    assert (few / "demonstrations.jsonl").read_bytes() == (many / "demonstrations.jsonl").read_bytes()
    assert (few / "pairs.jsonl").read_bytes() != (many / "pairs.jsonl").read_bytes()


def test_nothing_is_generated_when_nobody_reads_it(tmp_path: Path) -> None:
    generate(CONFIG, tmp_path)
    raw, metrics = generate(replace(CONFIG, files=("mine.jsonl",)), tmp_path)
    assert list(raw.iterdir()) == []
    assert metrics["pairs"] == {"rows": 0}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (("support_desk/",), True),
        (("support_desk",), True),
        (("mine.jsonl", "support_desk/pairs.jsonl"), True),
        (("*/pairs.jsonl",), True),
        (("support_desk.jsonl", "mine/support_desk/x.jsonl"), False),
        (("",), False),
        ((), False),
    ],
)
def test_who_reads_it(files: tuple[str, ...], wanted: bool) -> None:
    assert is_wanted(files, "support_desk") is wanted


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pairs", 0), ("unlike_prompts", -1), ("minimal_share", 1.5), ("broken_share", -0.1),
        ("contradiction_share", 0.6),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        replace(CONFIG, **{field: value})
