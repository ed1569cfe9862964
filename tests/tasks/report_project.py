"""Files of a small finished project, as the stages write them, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

from rlhf.outputs import write_jsonl

EVIL = "<script>alert('x')</script>"


def policy(win: float, **more: float) -> dict[str, float]:
    return {
        "judge_win_vs_sft": win, "judge_win_low": win - 0.1, "judge_win_high": win + 0.1,
        "judge": 0.5, "reward": 1.5, "kl": 2.0, "length_tokens": 30.0, **more,
    }  # fmt: skip


EVALUATION: dict[str, Any] = {
    "selected": "ppo",
    "dev": {"sft": {"kl": 0.0}, "ppo": policy(0.7), "dpo": policy(0.6)},
    "test": {
        "sft": {"judge": 0.0, "reward": 0.0, "kl": 0.0, "length_tokens": 20.0},
        "sft_again": policy(0.5, kl=0.0),
        "ppo": policy(0.8, gold_win_vs_sft=0.75, gold_win_low=0.7, gold_win_high=0.8, gold=7.25, over_optimised=0.0),
        "dpo": policy(0.6, over_optimised=0.0),
    },
    "duels": {"ppo_vs_dpo": {"judge_win": 0.55, "judge_win_low": 0.5, "judge_win_high": 0.6}},
    "reward_model": {"pairs": 40, "accuracy": 0.775, "probes": {"action": 0.9, "order": 0.5}},
    "judge": {"pairs": 40, "accuracy": 0.75, "probes": {"action": 0.8}},
    "frontier": {},
    "prompts": {"dev": 2, "test": 2},
}
"""An evaluation without the blocks that later ones have."""

FULL: dict[str, Any] = {
    **EVALUATION,
    "unlike": {
        "sft": {"kl": 0.0, "gold": 2.0}, "sft_again": policy(0.5, kl=0.0, gold=2.0),
        "ppo": policy(0.65, gold_win_vs_sft=0.55, gold_win_low=0.45, gold_win_high=0.65, gold=3.0, kl=4.5),
        "dpo": policy(0.55, kl=3.5, gold=2.5),
    },
    "unlike_shifts": {
        "both": {"sft": {"kl": 0.0}, "ppo": policy(0.5)}, "new_language": {"sft": {"kl": 0.0}, "ppo": policy(0.375)},
    },
    "tax": {
        "sft": {"perplexity": 1.5, "token_accuracy": 0.875, "regression": 0.75, "regression_margin": 2.0},
        "dpo": {"perplexity": 1.5, "perplexity_change": 0.0},
        "ppo": {
            "perplexity": 1.75, "perplexity_change": 0.25, "token_accuracy": 0.75, "token_accuracy_change": -0.125,
            "regression": 0.5, "regression_change": -0.25, "regression_margin": 1.5, "regression_margin_change": -0.5,
        },
    },
    "regression": {
        "sft": {"records": 40, "share": 0.75, "margin": 2.0, "facts": {"order": 0.5, "sla": 1.0}},
        "dpo": {}, "ppo": {"records": 40, "share": 0.5, "margin": 1.5, "facts": {"order": 0.75, "sla": 0.25}},
    },
    "marks": {
        "ppo": {"kl": 2.0, "kl_low": 0.5, "kl_high": 3.5, "kl_inside_band": True, "over_optimised": False},
        "dpo": {"kl": 4.0, "kl_low": 0.5, "kl_high": 3.5, "kl_inside_band": False, "over_optimised": True},
        "reward_model": {"accuracy": 0.775, "mark": 0.75, "passed": True},
    },
    "prompts": {"dev": 2, "test": 2, "unlike": 300},
}  # fmt: skip


def answer(name: str, which: str, judge: float, text: str) -> dict[str, Any]:
    return {
        "split": "test", "policy": which, "id": name, "prompt": [{"role": "user", "content": f"Where is {name}?"}],
        "response": text, "ended": which != "dpo", "tokens": 5, "kl": 1.25, "judge": judge, "reward": judge,
        "gold": None, "meta": {},
    }  # fmt: skip


def write_project(root: Path) -> Path:
    """Write everything that the report reads but a registry; the folder is made."""
    for folder in ("metrics", "curves", "evaluation"):
        (root / "data" / folder).mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages:\n  sft:\n    desc: learns from <demonstrations>\n    cmd: 'true'\n")
    (root / "params.yaml").write_text("seed: 1\nppo: {kl_coef: 0.15, nested: {clip_range: 0.2}}\n")
    (root / "data/metrics/evaluate.json").write_text(json.dumps(FULL))
    validation = {"rows": {"read": 12345, "refused": 1}, "kept": {"pairs": {"train": 3, "test": 1}}, "leaks": 0}
    (root / "data/metrics/validate.json").write_text(json.dumps(validation))
    (root / "data/curves/sft.csv").write_text("step,loss,dev_loss\n1,2.5,\n2,1.5,1.75\n")
    (root / "data/curves/ppo.csv").write_text("step,score,kl,ess_tokens_epoch_1\n1,0.1,0.5,1\n2,0.2,1.5,0.75\n")
    frontier = "policy,kl,gold,judge,reward\nsft,0,,0,0\nppo,2,,0.5,1.5\nbest-of-1,0,,0,0\nbest-of-4,0.636,,0.4,1\n"
    (root / "data/curves/frontier.csv").write_text(frontier)
    rows = [
        answer(name, which, judge, f"{which} answers {name} {EVIL}")
        for name in ("a", "b", "c")
        for which, judge in (("sft", 0.0), ("sft_again", 0.1), ("ppo", 1.0), ("dpo", 0.5))
    ]
    write_jsonl(root / "data/evaluation/answers.jsonl", rows)
    return root
