"""Equal search budgets: so many settings of PPO as of DPO, each trained once and compared on the dev prompts.

    python -m bench.search --out .ratchet/tmp/bench/search

The judge's win rate against SFT on dev chooses, as it does in `evaluate`; the rubric is shown beside it and decides
nothing. The settings tried are the lists in this file.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.contest import Entry, Outcome, compete, failures
from bench.harness import ROOT, in_parallel, markdown, say

TRIED: dict[str, list[dict[str, Any]]] = {
    "ppo": [
        {"kl_coef": 0.15, "learning_rate": 3e-4, "updates": 80},
        {"kl_coef": 0.05, "learning_rate": 3e-4, "updates": 160},
        {"kl_coef": 0.08, "learning_rate": 6e-4, "updates": 160},
        {"kl_coef": 0.12, "learning_rate": 6e-4, "updates": 160},
    ],
    "dpo": [
        {"beta": 0.1, "learning_rate": 2e-4},
        {"beta": 0.05, "learning_rate": 2e-4},
        {"beta": 0.1, "learning_rate": 4e-4},
        {"beta": 0.3, "learning_rate": 2e-4},
    ],
}
"""Changes to the project's settings, by method; as many for one as for the other."""
ON_DEV = {"best_of": [], "unlike_prompts": 0, "test_prompts": 1}
"""Settings of `evaluate` that leave out what is not looked at."""
SHOWN = ("judge_win_vs_sft", "gold_win_vs_sft", "kl", "malformed")


def main() -> int:
    """Train, compare on dev, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results; runs that lie there are kept")
    parser.add_argument("--project", type=Path, default=ROOT, help="finished project whose models and data are read")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    entries = [
        Entry(method=method, settings=TRIED[method][number], seed=1)
        for number in range(len(TRIED["ppo"]))
        for method in TRIED
    ]

    def one(entry: Entry) -> Outcome:
        name = f"{entry.method}-{TRIED[entry.method].index(dict(entry.settings))}"
        return compete(entry, asked.out / name, project=asked.project, evaluation=ON_DEV)

    outcomes = in_parallel(one, entries, workers=asked.jobs)
    lines = []
    for outcome in sorted(outcomes, key=lambda found: found.entry.method, reverse=True):
        dev = outcome.block("dev")
        tried = ", ".join(f"{name} {value:g}" for name, value in outcome.entry.settings.items()) or "as in params.yaml"
        lines.append(
            [f"{outcome.entry.method.upper()}: {tried}", *(f"{dev.get(name, float('nan')):.3f}" for name in SHOWN)]
        )
    text = "\n\n".join(
        [markdown(["dev prompts", *(name.replace("_", " ") for name in SHOWN)], lines), *failures(outcomes)]
    )
    (asked.out / "search.md").write_text(text + "\n", encoding="utf-8")
    (asked.out / "search.json").write_text(json.dumps([found.evaluation for found in outcomes]), encoding="utf-8")
    say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
