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
    (root / "data/metrics/evaluate.json").write_text(json.dumps(EVALUATION))
    validation = {"rows": {"read": 12345, "refused": 1}, "kept": {"pairs": {"train": 3, "test": 1}}, "leaks": 0}
    (root / "data/metrics/validate.json").write_text(json.dumps(validation))
    (root / "data/curves/sft.csv").write_text("step,loss,dev_loss\n1,2.5,\n2,1.5,1.75\n")
    (root / "data/curves/ppo.csv").write_text("step,score,kl\n1,0.1,0.5\n2,0.2,1.5\n3,0.3,2.0\n")
    frontier = "policy,kl,gold,judge,reward\nsft,0,,0,0\nppo,2,,0.5,1.5\nbest-of-1,0,,0,0\nbest-of-4,0.636,,0.4,1\n"
    (root / "data/curves/frontier.csv").write_text(frontier)
    rows = [
        answer(name, which, judge, f"{which} answers {name} {EVIL}")
        for name in ("a", "b", "c")
        for which, judge in (("sft", 0.0), ("sft_again", 0.1), ("ppo", 1.0), ("dpo", 0.5))
    ]
    write_jsonl(root / "data/evaluation/answers.jsonl", rows)
    return root
