"""Which prompts are chosen to be read."""

from typing import Any

from tasks.report_samples import choose_samples


def row(name: str, policy: str, judge: float, gold: float | None = None) -> dict[str, Any]:
    prompt = [{"role": "user", "content": name}]
    return {
        "id": name,
        "policy": policy,
        "prompt": prompt,
        "response": f"{policy} {name}",
        "judge": judge,
        "gold": gold,
    }


def titles(rows: list[dict[str, Any]], *, each: int = 1) -> dict[str, list[str]]:
    groups = choose_samples(rows, selected="ppo", each=each)
    return {group.title: [str(item.answers[0]["id"]) for item in group.comparisons] for group in groups}


def test_each_kind_takes_what_it_says_and_none_comes_twice() -> None:
    scores = {"gain": (0.0, 5.0), "loss": (4.0, 0.5), "best": (8.0, 9.0), "worst": (-2.0, -3.0), "plain": (1.0, 1.0)}
    rows = [
        row(name, policy, score)
        for name, pair in scores.items()
        for policy, score in zip(("sft", "ppo"), pair, strict=True)
    ]
    assert titles(rows) == {
        "Largest gains": ["gain"], "Largest losses": ["loss"], "Best answers": ["best"], "Worst answers": ["worst"],
        "Random prompts": ["plain"],
    }  # fmt: skip


def test_gold_decides_where_every_answer_has_it() -> None:
    rows = [row("a", "sft", 0.0, 5.0), row("a", "ppo", 9.0, 1.0), row("b", "sft", 0.0, 1.0), row("b", "ppo", 0.0, 5.0)]
    assert titles(rows)["Largest gains"] == ["b"]
    rows[0]["gold"] = None
    assert titles(rows)["Largest gains"] == ["a"]


def test_columns_are_sft_dpo_ppo_without_the_second_sample() -> None:
    rows = [row("a", policy, 0.0) for policy in ("ppo", "sft_again", "zeta", "dpo", "sft")]
    (group,) = choose_samples(rows, selected="ppo", each=1)
    assert [answer["policy"] for answer in group.comparisons[0].answers] == ["sft", "dpo", "ppo", "zeta"]


def test_a_prompt_without_the_baseline_or_the_selected_policy_is_left_out() -> None:
    assert choose_samples([row("a", "ppo", 0.0), row("b", "sft", 0.0)], selected="ppo", each=1) == []
