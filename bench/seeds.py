"""PPO and DPO from the same SFT and reward model, seed after seed: how many runs are healthy, mean and spread.

    python -m bench.seeds --out .ratchet/tmp/bench/seeds --seeds 10

A run is healthy when it ended without a skipped step, its KL lies inside `evaluate.kl_band`, at least 95% of its
answers end by themselves, its gold win rate against SFT is above one half with 95% confidence, and the reward did not
rise while the judge fell. The difference between the methods is paired by seed, with a bootstrap interval over seeds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.contest import Entry, Outcome, compete, failures
from bench.harness import ROOT, in_parallel, interval, markdown, say, shown, spread, write_rows
from rlhf.config import read_params

SHORTEST_END_RATE = 0.95
ON_TEST = {"best_of": [], "dev_prompts": 1, "held_out_records": 200}
"""Settings of `evaluate` that leave out what is not looked at."""
SHOWN = ("gold_win_vs_sft", "judge_win_vs_sft", "gold", "reward", "kl", "length_tokens", "malformed")


def main() -> int:
    """Train, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results; runs that lie there are kept")
    parser.add_argument("--project", type=Path, default=ROOT, help="finished project whose models and data are read")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--dpo-seeds", type=int, help="as many seeds of DPO; as many as of PPO when left out")
    asked = parser.parse_args()
    band = read_params(asked.project / "params.yaml")["evaluate"]["kl_band"]
    counts = {"ppo": asked.seeds, "dpo": asked.seeds if asked.dpo_seeds is None else asked.dpo_seeds}
    entries = [
        Entry(method=method, seed=seed)
        for seed in range(1, max(counts.values()) + 1)
        for method, count in counts.items()
        if seed <= count
    ]

    def one(entry: Entry) -> Outcome:
        folder = asked.out / f"{entry.method}-seed{entry.seed}"
        return compete(entry, folder, project=asked.project, evaluation=ON_TEST)

    outcomes = in_parallel(one, entries, workers=asked.jobs)
    rows = [row_of(outcome, band) for outcome in outcomes]
    write_rows(asked.out / "seeds.csv", rows)
    text = "\n\n".join([table(rows), unlike_table(rows), difference(rows), *failures(outcomes)])
    (asked.out / "seeds.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (asked.out / "seeds.md").write_text(text + "\n", encoding="utf-8")
    say(text)
    return 0


def row_of(outcome: Outcome, band: Sequence[float]) -> dict[str, Any]:
    """One run in numbers, all of them on the test prompts unless the name says otherwise."""
    test, unlike = outcome.block("test"), outcome.block("unlike")
    skipped = outcome.training.curve[-1].get("skipped", 0.0) if outcome.training.curve else 0.0
    healthy = bool(test) and not skipped
    healthy = healthy and band[0] <= test["kl"] <= band[1] and test["end_rate"] >= SHORTEST_END_RATE
    healthy = healthy and test["gold_win_low"] > 0.5 and not test["over_optimised"]
    return {
        "method": outcome.entry.method, "seed": outcome.entry.seed, "healthy": healthy,
        **{name: test.get(name, float("nan")) for name in SHOWN},
        **{f"unlike_{name}": unlike.get(name, float("nan")) for name in SHOWN[:4]},
        "seconds": outcome.training.seconds,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean with interval and spread over seeds, by method."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [method.upper(), f"{sum(row['healthy'] for row in mine)} of {len(mine)}"]
        for name in SHOWN:
            values = [row[name] for row in mine]
            cells.append(f"{shown(interval(values), 3 if 'win' in name else 2)}, sd {shown(spread(values), 3)}")
        lines.append([*cells, f"{fmean(row['seconds'] for row in mine):.0f}"])
    return markdown(["method", "healthy", *(name.replace("_", " ") for name in SHOWN), "s"], lines)


def unlike_table(rows: Sequence[dict[str, Any]]) -> str:
    """The same on prompts unlike those of training."""
    names = [f"unlike_{name}" for name in SHOWN[:4]]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        lines.append([method.upper(), *(shown(interval([row[name] for row in mine]), 3) for name in names)])
    return markdown(["on unlike prompts", *(name.removeprefix("unlike_").replace("_", " ") for name in names)], lines)


def difference(rows: Sequence[dict[str, Any]]) -> str:
    """PPO minus DPO in gold win rate, paired by seed."""
    by = {(row["method"], row["seed"]): row["gold_win_vs_sft"] for row in rows}
    both = sorted(seed for method, seed in by if method == "ppo" and ("dpo", seed) in by)
    found = interval([by["ppo", seed] - by["dpo", seed] for seed in both])
    return f"PPO minus DPO, gold win rate against SFT, paired by seed: {shown(found, 3)} over {len(both)} seeds."


if __name__ == "__main__":
    sys.exit(main())
