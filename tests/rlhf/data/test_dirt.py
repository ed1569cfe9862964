import json
import random
from typing import Any

from rlhf.data.dirt import DAMAGES, GIANT_CHARS, soil

ROW: dict[str, Any] = {
    "id": "p1",
    "prompt": [{"role": "user", "content": "Q"}],
    "response_a": "one answer",
    "response_b": "another answer",
    "label": 1,
}


def rows(count: int) -> list[dict[str, Any]]:
    return [{**ROW, "id": f"p{number}", "label": (1, 0, 0.5)[number % 3]} for number in range(count)]


def test_good_rows_stay_and_dirt_is_counted() -> None:
    good = rows(200)
    lines, counts = soil(good, random.Random(0), duplicate_share=0.02, contradiction_share=0.03, broken_share=0.08)
    assert counts == {"duplicates": 4, "contradictions": 6, "broken": 16}
    assert len(lines) == 200 + 4 + 6 + 16
    intact = [json.dumps(row, separators=(",", ":")) for row in good]
    assert set(intact) <= set(lines)
    assert sum(lines.count(line) - 1 for line in intact) == 4


def test_contradictions_turn_a_decided_label_round() -> None:
    lines, _ = soil(rows(30), random.Random(0), duplicate_share=0, contradiction_share=0.2, broken_share=0)
    turned = [json.loads(line) for line in lines if '"id":"p' in line and 'x"' in line]
    assert len(turned) == 6
    for row in turned:
        original = rows(30)[int(row["id"][1:-1])]
        assert row["label"] == 1 - original["label"] != 0.5


def test_every_damage_breaks_a_pair_in_a_way_of_its_own() -> None:
    broken = [damage(ROW, random.Random(0)) for damage in DAMAGES]
    assert None not in broken
    assert len(set(broken)) == len(DAMAGES)
    assert max(len(line or "") for line in broken) > GIANT_CHARS * 0.9
    assert any("\ufffd" in (line or "") for line in broken)
    assert any("NaN" in (line or "") for line in broken)


def test_prompts_have_no_answers_to_damage() -> None:
    prompt = {"id": "t1", "prompt": ROW["prompt"]}
    assert sum(damage(prompt, random.Random(0)) is not None for damage in DAMAGES) == 3
    _, counts = soil([prompt] * 100, random.Random(0), duplicate_share=0, contradiction_share=0.1, broken_share=0.1)
    assert counts == {"duplicates": 0, "contradictions": 0, "broken": 10}


def test_no_dirt_is_no_change() -> None:
    lines, _ = soil(rows(5), random.Random(0), duplicate_share=0, contradiction_share=0, broken_share=0)
    assert [json.loads(line) for line in lines] == rows(5)
