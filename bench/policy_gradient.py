"""From policy gradient to PPO on the embedded task, every method with the same number of samples.

    python -m bench.policy_gradient --out .ratchet/tmp/bench/policy_gradient

Three questions: how noisy the gradient is (`bench.gradient_variance`), how the objective grows with samples, and how
much a method minds a step three times too long or too short. Runs whose result lies in the folder are not repeated.
The yardstick is the same for all methods, whatever each one optimises: J = score - price of a nat x KL to `sft`, with
the default profile's price; score and KL are measured on the responses that an update samples, before it learns.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gradient_variance import measure
from bench.harness import (
    ROOT,
    Result,
    Run,
    in_parallel,
    interval,
    markdown,
    run_stage,
    say,
    shown,
    spread,
    tail_mean,
    write_rows,
)
from rlhf.config import read_params

METHODS = {
    "reinforce": "REINFORCE",
    "reinforce-to-go": "+ reward to go",
    "reinforce-baseline": "+ mean baseline",
    "actor-critic": "+ value baseline",
    "gae": "+ GAE",
    "importance-sampled": "+ reuse, no clip",
    "ppo1": "PPO1",
    "ppo2": "PPO2",
    "trpo": "TRPO",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dapo": "DAPO",
}
"""Profile under profiles/algorithms -> name in tables, each step from REINFORCE adding one thing."""
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "gae": ("actor-critic", {"advantage": "gae", "baseline": "none"}),
}
"""Methods without a profile of their own: the profile and what differs."""
GREATEST_KL = 20.0
"""Nats per response beyond which a run counts as diverged."""
CURVES = ("score", "kl")


def main() -> int:
    """Measure, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--project", type=Path, default=ROOT, help="finished project whose models and prompts are read")
    parser.add_argument("--only", nargs="*", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--updates", type=int, default=25)
    parser.add_argument("--rollouts", type=int, default=64, help="responses of an update")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factors", type=float, nargs="*", default=[1 / 3, 1.0, 3.0], help="of the step size")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--batches", type=int, default=100, help="for the gradient's noise; 0: leave it out")
    parser.add_argument("--value-batches", type=int, default=40, help="that the value model is fitted to before")
    parser.add_argument("--learnt", type=int, default=10, help="updates of PPO2 behind the second policy of the noise")
    asked = parser.parse_args()
    params = read_params(asked.project / "params.yaml")
    out, kl_price = asked.out, float(params["ppo"]["kl_coef"])
    out.mkdir(parents=True, exist_ok=True)
    noises = [_noise(asked, params, learnt) for learnt in (0, asked.learnt)] if asked.batches else []
    wanted = [
        (method, factor, seed)
        for seed in range(1, asked.seeds + 1)
        for factor in asked.factors
        for method in asked.only
    ]

    def one(job: tuple[str, float, int]) -> Result:
        method, factor, seed = job
        run = plan(method, factor, seed, params, updates=asked.updates, rollouts=asked.rollouts)
        return run_stage(run, out / "runs" / f"{method}-x{factor:.3g}-seed{seed}", project=asked.project)

    results = in_parallel(one, wanted, workers=asked.jobs)
    rows = [summarise(*job, result, kl_price) for job, result in zip(wanted, results, strict=True)]
    curves = [
        {"method": method, "factor": factor, "seed": seed, **point}
        for (method, factor, seed), result in zip(wanted, results, strict=True)
        for point in curve_points(result, kl_price)
    ]
    write_rows(out / "runs.csv", rows)
    if curves:
        write_rows(out / "curves.csv", curves)
    report = {"noise": noises, "runs": rows, "kl_price": kl_price, "updates": asked.updates, "rollouts": asked.rollouts}
    (out / "policy_gradient.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    text = "\n\n".join([*(noise_table(found) for found in noises), stability_table(rows, asked.factors)])
    (out / "policy_gradient.md").write_text(text + "\n", encoding="utf-8")
    if curves:
        from bench.policy_gradient_figure import draw

        draw(out / "policy_gradient.svg", curves, rows, METHODS)
    say(text)
    return 0


def plan(method: str, factor: float, seed: int, params: Mapping[str, Any], *, updates: int, rollouts: int) -> Run:
    """A method with its step made longer or shorter, and the number of samples that all methods have.

    The step is the policy's learning rate; of a trust region it is the square root of its bound.
    """
    profile, settings = CHANGED.get(method, (method, {}))
    settings = {**settings, "updates": updates, "rollouts": rollouts, "sample_every": updates}
    settings["warmup_updates"] = min(params["ppo"]["warmup_updates"], updates - 1)
    preset = {**params["ppo"], **read_params(ROOT / "profiles/algorithms" / f"{profile}.yaml")["ppo"]}
    settings["group_size"] = preset["group_size"]
    settings["minibatch"] = rollouts if preset["epochs"] == 1 else min(preset["minibatch"], rollouts)
    if preset["objective"] == "trust_region":
        settings["trust_region_kl"] = preset["trust_region_kl"] * factor**2
    else:
        settings["learning_rate"] = preset["learning_rate"] * factor
    return Run(stage="ppo", profile=f"algorithms/{profile}", settings=settings, seed=seed)


def summarise(method: str, factor: float, seed: int, result: Result, kl_price: float) -> dict[str, Any]:
    """One row of the table of runs: means of the last three updates."""
    score, kl = (tail_mean(result.curve, name) for name in CURVES)
    numbers = [row.get(name, math.nan) for row in result.curve for name in CURVES]
    worst = max((row.get("kl", math.nan) for row in result.curve), default=math.nan)
    healthy = result.exit_code == 0 and all(map(math.isfinite, numbers)) and worst <= GREATEST_KL
    return {
        "method": method, "factor": factor, "seed": seed, "diverged": not healthy, "objective": score - kl_price * kl,
        "score": score, "kl": kl, "end_rate": tail_mean(result.curve, "end_rate"),
        "length_tokens": tail_mean(result.curve, "length_tokens"), "entropy": tail_mean(result.curve, "entropy"),
        "skipped": tail_mean(result.curve, "skipped", rows=1), "seconds": result.seconds, "message": result.message,
    }  # fmt: skip


def curve_points(result: Result, kl_price: float) -> list[dict[str, float]]:
    """The objective against samples; groups that dynamic sampling replaced were sampled, too."""
    settings, points, samples = result.run["settings"], [], 0.0
    for row in result.curve:
        objective = row["score"] - kl_price * row["kl"]
        points.append({"samples": samples, "objective": objective, "score": row["score"], "kl": row["kl"]})
        samples += settings["rollouts"] + row.get("replaced_groups", 0.0) * settings["group_size"]
    return points


def noise_table(found: Mapping[str, Any]) -> str:
    """Noise of the gradient by estimator."""
    rows = []
    for name, value in found["estimators"].items():
        rows.append([name, f"{value['noise']:.2f} ({value['low']:.2f} to {value['high']:.2f})"])
    head = f"gradient noise at {found['policy']} ({found['batches']} batches)"
    note = f"The value model explains {found['explained_variance']:.0%} of the returns' variance there."
    return f"{markdown(['estimator', head], rows)}\n\n{note}"


def stability_table(rows: Sequence[Mapping[str, Any]], factors: Sequence[float]) -> str:
    """By method: the objective at each step size, and over all of them the KL, the spread and who diverged."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [METHODS[method]]
        for factor in factors:
            cells.append(shown(interval([row["objective"] for row in mine if row["factor"] == factor])))
        usual = [row for row in mine if row["factor"] == min(factors, key=lambda one: abs(one - 1))]
        cells += [shown(interval([row[name] for row in usual])) for name in CURVES]
        finite = [row["objective"] for row in mine if math.isfinite(row["objective"])]
        cells += [shown(spread(finite)), f"{sum(row['diverged'] for row in mine)} of {len(mine)}"]
        lines.append([*cells, shown(interval([row["seconds"] for row in usual]).mean, 0)])
    head = ["method", *(f"J, step x{factor:.2g}" for factor in factors), "score, x1", "KL, x1", "spread of J"]
    return markdown([*head, "diverged", "s per run"], lines)


def _noise(asked: argparse.Namespace, params: Mapping[str, Any], learnt: int) -> dict[str, Any]:
    """Measure the gradient's noise after some updates of PPO2, or read what an earlier call measured so."""
    file = asked.out / f"noise-{learnt}.json"
    how = {"batches": asked.batches, "value_batches": asked.value_batches, "rollouts": asked.rollouts, "seed": 1}
    if file.is_file():
        old: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if old["how"] == how:
            return old
    policy, name = asked.project / "data/models/sft", "sft"
    if learnt:
        run = plan("ppo2", 1.0, 1, params, updates=learnt, rollouts=asked.rollouts)
        run_stage(run, asked.out / f"ppo2-{learnt}", project=asked.project, keep=True)
        policy, name = asked.out / f"ppo2-{learnt}" / "out/data/models/ppo", f"sft + {learnt} updates of PPO2"
    sys.stderr.write(f"gradient noise at {name}\n")
    found = {"how": how, "policy": name, **measure(asked.project, params, policy, **how)}
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


if __name__ == "__main__":
    sys.exit(main())
