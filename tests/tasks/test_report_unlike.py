"""The table and the chart about prompts that are unlike those of training."""

from tasks.report_unlike import unlike
from tests.tasks.report_project import EVALUATION, FULL

DASH = "\N{EN DASH}"


def test_each_measure_has_a_row_for_each_kind_of_prompt() -> None:
    found = unlike(FULL)
    assert found is not None
    assert found["policies"] == ["sft", "ppo", "dpo", "sft_again"]
    blocks = {block["measure"]: block["rows"] for block in found["blocks"]}
    judge = {row["prompts"]: row["cells"] for row in blocks["Win rate against SFT, judge"]}
    assert list(judge) == ["usual test prompts", "unlike: all", "unlike: wording and facts", "unlike: new language"]
    assert judge["usual test prompts"][1] == "0.800 (0.700 to 0.900)"
    assert judge["unlike: all"] == [DASH, "0.650 (0.550 to 0.750)", "0.550 (0.450 to 0.650)", "0.500 (0.400 to 0.600)"]
    assert judge["unlike: new language"] == [DASH, "0.375 (0.275 to 0.475)", DASH, DASH]


def test_a_measure_that_a_kind_of_prompt_does_not_have_gives_no_row() -> None:
    found = unlike(FULL)
    assert found is not None
    blocks = {block["measure"]: [row["prompts"] for row in block["rows"]] for block in found["blocks"]}
    assert blocks["Gold rubric, points"] == ["usual test prompts", "unlike: all"]
    without = {name: {"kl": 1.0} for name in ("sft", "ppo")}
    bare = unlike({"test": without, "unlike": without})
    assert bare is not None
    assert [block["measure"] for block in bare["blocks"]] == ["KL from SFT, nats per response"]
    assert bare["charts"] == []
    assert bare["note"] == "One sample each."


def test_the_chart_is_another_one_than_that_of_the_test_prompts() -> None:
    found = unlike(FULL)
    assert found is not None
    (chart,) = found["charts"]
    assert chart["title"] == "Win rate against SFT, unlike prompts"
    assert 'id="unlike-wins-' in chart["svg"]
    assert ">0.65<" in chart["svg"]
    assert ">0.80<" not in chart["svg"]


def test_nothing_without_such_prompts() -> None:
    assert unlike(EVALUATION) is None
    assert unlike({}) is None
