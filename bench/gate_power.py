"""How often the gate promotes a challenger that is no better, and how often one that is: simulated with its own code.

    python -m bench.gate_power --out .ratchet/tmp/bench/gate --trials 2000

Exit code 1 when, of trials in which challenger and champion are equal, more are promoted than the upper end of the 95%
interval may say (6.5%), in any of the settings that the gate is made for. With the answers of a finished run at hand,
the whole gate is tried on them too: two samples of one policy, swapped at random, are equal by construction.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.gate_world import World, always, few_prompts, quality_of, run_of_challengers, spending, win_rule
from bench.harness import ROOT, markdown, say
from rlhf.evaluation.paired_tests import clopper_pearson
from rlhf.evaluation.sample_size import power, prompts_for
from rlhf.evaluation.text_metrics import repetition
from rlhf.outputs import read_jsonl
from tasks.gate import compare
from tasks.gate_config import Gate
from tasks.gate_looks import allowance
from tasks.gate_measure import Answer
from tasks.gate_rules import outcome_of
from tasks.registry_config import load_registry_config

MOST_FALSE = 0.065
"""Upper end of the 95% interval of false promotions."""
LOOKS = 20
RATES = (0.525, 0.55, 0.575, 0.6, 0.65, 0.7)
SIZES = (50, 100, 200, 400, 800, 1600)
TOLERANCE = 1e-4


def main() -> int:
    """Simulate, tell, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of gate_power.json and gate_power.md")
    parser.add_argument("--project", type=Path, default=ROOT, help="whose gate, and whose answers where there are any")
    parser.add_argument(
        "--trials", type=int, default=2000, help="of each setting; half of them for power and real answers"
    )
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    gate = load_registry_config(asked.project).gate
    guarded = false_promotions(gate, asked.trials, asked.seed)
    answers = asked.project / "data/evaluation/answers.jsonl"
    real = real_answers(answers, gate, max(asked.trials // 2, 10), asked.seed) if answers.is_file() else []
    without = ablations(gate, asked.trials, asked.seed)
    found = {
        "guarded": guarded, "without": without, "few": few(gate, asked.trials, asked.seed), "real": real,
        "power": power_table(gate, max(asked.trials // 2, 10), asked.seed),
    }  # fmt: skip
    text = told(found, gate)
    say(text)
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "gate_power.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        (asked.out / "gate_power.md").write_text(text + "\n", encoding="utf-8")
    return int(any(row["high"] > MOST_FALSE for row in [*guarded, *real] if row["equal"]))


def counted(name: str, promoted: Sequence[bool], *, equal: bool = True) -> dict[str, Any]:
    """Share of promotions with its exact 95% interval."""
    hits, trials = int(sum(promoted)), len(promoted)
    low, high = clopper_pearson(hits, trials, tail=0.025)
    return {"what": name, "trials": trials, "promoted": hits, "low": low, "high": high, "equal": equal}


def false_promotions(gate: Gate, trials: int, seed: int) -> list[dict[str, Any]]:
    """Challengers as good as the champion, under the gate as it is."""
    first = World()
    settings: dict[str, tuple[World, int]] = {
        "one challenger, better of 2 on dev": (first, 1),
        "one challenger, best of 8 on dev": (replace(first, methods=8), 1),
        "the same, 30% ties": (replace(first, methods=8, ties=0.3), 1),
        "the same, 50 test prompts": (replace(first, methods=8, prompts=50), 1),
        f"any of {LOOKS} challengers in a row, better of 2 on dev": (first, LOOKS),
        f"any of {LOOKS}, best of 8 on dev": (replace(first, methods=8), LOOKS),
        f"any of {LOOKS}, better of 2, 30% ties": (replace(first, ties=0.3), LOOKS),
    }
    rule, spend = win_rule(gate), spending(gate)
    rows = []
    for number, (name, (world, looks)) in enumerate(settings.items()):
        rng = np.random.default_rng([seed, number])
        rows.append(
            counted(name, [run_of_challengers(world, rule, spend, rng, looks=looks) > 0 for _ in range(trials)])
        )
    return rows


def ablations(gate: Gate, trials: int, seed: int) -> list[dict[str, Any]]:
    """The same with one safeguard taken away."""
    first, rule = World(), win_rule(gate)
    spend, fixed = spending(gate), always(allowance(gate.false_promotions, 1))
    on_test = replace(first, choose_on="test")
    settings = {
        "better of 2 chosen on test, one look": (on_test, spend, 1),
        "best of 8 chosen on test, one look": (replace(on_test, methods=8), spend, 1),
        f"no spending, any of {LOOKS}": (first, fixed, LOOKS),
        f"no spending, 5% each, any of {LOOKS}": (first, always(0.05), LOOKS),
        f"best of 8 on test and no spending, any of {LOOKS}": (replace(on_test, methods=8), fixed, LOOKS),
        "win rate above one half, no interval": (first, spend, 1),
    }
    rows = []
    for number, (name, (world, spent, looks)) in enumerate(settings.items()):
        rng = np.random.default_rng([seed, 100 + number])
        asked = replace(rule, bound="value") if "no interval" in name else rule
        rows.append(
            counted(name, [run_of_challengers(world, asked, spent, rng, looks=looks) > 0 for _ in range(trials)])
        )
    return rows


def few(gate: Gate, trials: int, seed: int) -> list[dict[str, Any]]:
    """One look at equal models on few prompts, by the bootstrap alone, the exact test alone and both."""
    rows = []
    for prompts in (3, 4, 5, 6, 10, 20):
        rng = np.random.default_rng([seed, 200 + prompts])
        error = allowance(gate.false_promotions, 1)
        kinds = zip(*(few_prompts(rng, win_rule(gate), prompts, error) for _ in range(trials)), strict=True)
        for name, promoted in zip(("bootstrap", "exact", "both"), kinds, strict=True):
            rows.append({**counted(name, promoted), "prompts": prompts})
    return rows


def power_table(gate: Gate, trials: int, seed: int) -> list[dict[str, Any]]:
    """Share of promotions of a challenger that is better, by prompts and true win rate, at the first look."""
    rule, spend, rows = win_rule(gate), spending(gate), []
    for prompts in SIZES:
        for rate in RATES:
            rng = np.random.default_rng([seed, prompts, round(rate * 1000)])
            world, quality = World(prompts=prompts, dev_prompts=20), quality_of(rate)
            hits = [run_of_challengers(world, rule, spend, rng, looks=1, quality=quality) > 0 for _ in range(trials)]
            foreseen = power(prompts, rate, ties=0.0, tail=spend(1))
            rows.append({**counted("power", hits, equal=False), "prompts": prompts, "rate": rate, "foreseen": foreseen})
    return rows


def real_answers(path: Path, gate: Gate, trials: int, seed: int) -> list[dict[str, Any]]:
    """The whole gate, every rule and slice, on resampled prompts of a finished evaluation."""
    policies = read_answers(path)
    quick = replace(gate, resamples=200, confidence=0.95)
    error = allowance(gate.false_promotions, 1)
    rows = []

    def promotes(name: str, pair: tuple[str, str], prompts: int, count: int, *, swap: bool) -> None:
        rng = np.random.default_rng([seed, prompts, *pair[0].encode(), *pair[1].encode(), swap])
        ours, theirs = (policies[one] for one in pair)
        hits = []
        for _ in range(count):
            drawn = rng.integers(0, len(ours), prompts)
            turned = (rng.random(prompts) < 0.5) & swap
            sides = [(theirs[row], ours[row]) if turn else (ours[row], theirs[row])
                     for row, turn in zip(drawn, turned, strict=True)]  # fmt: skip
            found = compare([a for a, _ in sides], [b for _, b in sides], quick, error=error, tolerance=TOLERANCE)
            hits.append(outcome_of(found.rules) == "promote")
        rows.append(counted(name, hits, equal=swap))

    size = len(next(iter(policies.values())))
    for pair in (("sft", "sft_again"), ("ppo", "dpo")):
        if set(pair) <= set(policies):
            promotes(f"{pair[0]} and {pair[1]}, sides swapped at random, {size} prompts", pair, size, trials, swap=True)
    for pair in (("ppo", "dpo"), ("dpo", "ppo"), ("ppo", "sft")):
        for prompts in (50, 100, 200, 400) if set(pair) <= set(policies) else ():
            name = f"{pair[0]} against {pair[1]}, {prompts} prompts"
            promotes(name, pair, prompts, max(trials // 20, 5), swap=False)
    return rows


def read_answers(path: Path) -> dict[str, list[Answer]]:
    """Test answers by policy, in one order of prompts."""
    found: dict[str, dict[str, Answer]] = {}
    for row in read_jsonl(path):
        if row["split"] == "test":
            found.setdefault(row["policy"], {})[str(row["id"])] = Answer(
                judge=row["judge"], tokens=row["tokens"], ended=row["ended"], kl=row["kl"], gold=row["gold"],
                repetition=repetition(row["response"]), meta=row["meta"],
            )  # fmt: skip
    return {name: [rows[key] for key in sorted(rows)] for name, rows in found.items()}


def told(found: dict[str, list[dict[str, Any]]], gate: Gate) -> str:
    """Lay everything out."""
    head = ["setting", "promoted", "of", "share", "95% interval"]
    shown: Callable[[dict[str, Any]], list[str]] = lambda row: [  # noqa: E731
        row["what"], str(row["promoted"]), str(row["trials"]), f"{row['promoted'] / row['trials']:.1%}",
        f"{row['low']:.1%} to {row['high']:.1%}",
    ]  # fmt: skip
    parts = [
        f"Challenger as good as the champion (allowed: {gate.false_promotions:.0%} over all looks):",
        markdown(head, [shown(row) for row in found["guarded"]]),
        "With a safeguard taken away, challenger as good as the champion:",
        markdown(head, [shown(row) for row in found["without"]]),
        "Equal models on few prompts, one look: share promoted by each test alone and by both:",
        markdown(["prompts", "bootstrap", "exact", "both"], _few_rows(found["few"])),
        "Power at the first look, simulated (and computed, where it differs by more than 0.02):",
        markdown(["prompts", *(f"win rate {rate:g}" for rate in RATES)], _power_rows(found["power"])),
        f"Prompts for {gate.power:.0%} power:",
        markdown(["look", "its error", *(f"win rate {rate:g}" for rate in RATES)], _sizes(gate)),
    ]
    if found["real"]:
        parts += [
            "The whole gate on answers of a finished run, prompts drawn with replacement:",
            markdown(head, [shown(row) for row in found["real"]]),
        ]
    return "\n\n".join(parts)


def _few_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    sizes = dict.fromkeys(row["prompts"] for row in rows)
    return [
        [str(size), *(f"{row['promoted'] / row['trials']:.1%}" for row in rows if row["prompts"] == size)]
        for size in sizes
    ]


def _power_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    def cell(row: dict[str, Any]) -> str:
        share = row["promoted"] / row["trials"]
        return f"{share:.2f}" + (f" ({row['foreseen']:.2f})" if abs(share - row["foreseen"]) > 0.02 else "")

    return [[str(size), *(cell(row) for row in rows if row["prompts"] == size)] for size in SIZES]


def _sizes(gate: Gate) -> list[list[str]]:
    table = []
    for look in (1, 2, 5, 10, 20):
        error = allowance(gate.false_promotions, look)
        needed = [prompts_for(rate, ties=0.0, tail=error, wanted=gate.power) for rate in RATES]
        table.append([str(look), f"{error:.2%}", *(f"{n:,}" if n else "-" for n in needed)])
    return table


if __name__ == "__main__":
    sys.exit(main())
