"""The price of divergence: reward model, judge and rubric against KL, with best-of-n as the reference curve.

    python -m bench.kl_price --out .ratchet/tmp/bench/kl_price

One PPO run for each price, on the project's SFT and reward model. Best-of-n is what `evaluate` measured; its KL is the
bound log n - (n - 1) / n.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contest import Entry, Outcome, compete, failures
from bench.harness import ROOT, in_parallel, markdown, say

PRICES = (0.0, 0.02, 0.05, 0.1, 0.2)
SCORES = ("reward", "judge", "gold")


def main() -> int:
    """Train, evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results; runs that lie there are kept")
    parser.add_argument("--project", type=Path, default=ROOT, help="finished project whose models and data are read")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--updates", type=int, help="of PPO; the project's when left out")
    asked = parser.parse_args()
    more = {} if asked.updates is None else {"updates": asked.updates}
    entries = [Entry(method="ppo", settings={"kl_coef": price, **more}) for price in PRICES]

    def one(entry: Entry) -> Outcome:
        return compete(entry, asked.out / f"price-{entry.settings['kl_coef']:g}", project=asked.project)

    outcomes = in_parallel(one, entries, workers=asked.jobs)
    rows = [
        {"name": f"PPO, price {found.entry.settings['kl_coef']:g}", **block, "win": block["gold_win_vs_sft"]}
        for found in outcomes
        if (block := found.block("test"))
    ]
    best = [{"name": name, **values} for name, values in outcomes[-1].evaluation["frontier"].items()]
    text = "\n\n".join([table([*rows, *best]), *failures(outcomes)])
    (asked.out / "kl_price.md").write_text(text + "\n", encoding="utf-8")
    (asked.out / "kl_price.json").write_text(json.dumps({"ppo": rows, "best_of": best}, indent=1), encoding="utf-8")
    draw(asked.out / "kl_price.svg", rows, best)
    say(text)
    return 0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Scores against KL, and how PPO's answers look."""
    lines = [
        [
            row["name"].replace("_", "-"), f"{row['kl']:.2f}", *(f"{row[score]:.2f}" for score in SCORES),
            f"{row['win']:.3f}" if "win" in row else "", f"{row['end_rate']:.2f}" if "end_rate" in row else "",
            "yes" if row.get("over_optimised") else "",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown(["policy", "KL", *SCORES, "gold win", "end rate", "alarm"], lines)


def draw(path: Path, ppo: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]) -> None:
    """One panel for each score; equal numbers give equal bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "kl_price", "font.size": 9}):
        figure, panels = plt.subplots(1, len(SCORES), figsize=(11, 3.4), layout="constrained")
        for panel, score in zip(panels, SCORES, strict=True):
            for rows, label in ((ppo, "PPO"), (best, "best of n")):
                ordered = sorted(rows, key=lambda row: float(row["kl"]))
                panel.plot([row["kl"] for row in ordered], [row[score] for row in ordered], marker="o", label=label)
            for row in ppo:
                panel.annotate(row["name"].rsplit(" ", 1)[-1], (row["kl"], row[score]), fontsize=7)
            panel.set(xlabel="KL to SFT, nats per response", title=score, xscale="symlog")
            panel.grid(alpha=0.3)
        panels[0].legend()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
