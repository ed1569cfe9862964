from tasks.model_card import evaluation_lines, model_card, tax_lines


def test_the_card_says_what_from_what_how_good_and_how_again() -> None:
    tags = {
        "ratchet.stage": "ppo",
        "ratchet.output_md5": "0123456789abcdef.dir",
        "ratchet.data.data/validated/prompts": "aa.dir",
        "ratchet.parent.reward": "reward-model/3 bb.dir",
        "ratchet.git_commit": "c" * 40,
        "ratchet.env.cpu": "AMD EPYC",
    }
    card = model_card(tags, {"kl": 1.5}, {"seed": 7, "ppo": {"kl_coef": 0.05}}, {"end_rate": 0.95})
    assert "**ppo** `01234567`" in card
    assert "- `data/validated/prompts` aa.dir" in card
    assert "- reward: reward-model/3 bb.dir" in card
    assert "- seed 7\n- kl_coef 0.05\n- kl: 1.5" in card
    assert "answers that end by themselves: 0.95" in card
    assert "### Computed on\n- cpu: AMD EPYC" in card
    assert "dvc repro ppo" in card
    assert "cccccccccccc" in card


def test_sections_without_content_are_left_out() -> None:
    card = model_card({"ratchet.stage": "sft", "ratchet.output_md5": "ab.dir"}, {}, {})
    assert "### Data" not in card
    assert "### Computed on" not in card
    assert "### Evaluation" not in card


def test_win_rates_come_with_their_interval() -> None:
    lines = evaluation_lines({"judge_win_vs_sft": 0.8, "judge_win_low": 0.75, "judge_win_high": 0.85})
    assert lines == ["win rate over sft by the judge: 0.800 (95% interval 0.750 to 0.850)"]


def test_the_tax_is_told_after_and_before_and_perplexity_once() -> None:
    tags = {"ratchet.stage": "ppo", "ratchet.output_md5": "ab.dir"}
    tax = {"perplexity": 1.75, "perplexity_change": 0.25, "regression": 0.5, "regression_change": -0.25}
    card = model_card(tags, {}, {}, {"kl": 2.0, "perplexity": 1.75}, tax=tax, marks=["KL of ppo is fine"])
    assert "- perplexity on held-out demonstrations: 1.75, sft 1.5\n" in card
    assert "right answer likelier in the regression set, share: 0.5, sft 0.75" in card
    assert card.count("perplexity") == 1
    assert "### Marks\n- KL of ppo is fine" in card


def test_the_model_that_the_tax_is_measured_from_pays_none() -> None:
    tags = {"ratchet.stage": "sft", "ratchet.output_md5": "ab.dir"}
    assert tax_lines({"perplexity": 1.5, "regression": 0.75}) == []
    card = model_card(tags, {}, {}, {"perplexity": 1.5}, tax={"perplexity": 1.5})
    assert "perplexity on held-out demonstrations: 1.5" in card
    assert "### Alignment tax" not in card
    assert "### Marks" not in card
