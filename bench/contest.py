"""Train policies with changed settings and have the stage `evaluate` compare them: what several benches are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.harness import Result, Run, run_stage

METHODS = ("ppo", "dpo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One policy that takes part."""

    method: str
    """`ppo` or `dpo`: the stage that trains it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of that stage's section that differ from the project's params.yaml."""
    profile: str = ""
    """Name under profiles/, or "" for params.yaml as it is."""
    seed: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A trained policy and what `evaluate` says of it."""

    entry: Entry
    training: Result
    evaluation: dict[str, Any]
    """The metrics of `evaluate`; empty where training failed."""

    def block(self, split: str) -> dict[str, float]:
        """Numbers of the policy on a split; empty where training failed."""
        return dict(self.evaluation.get(split, {}).get(self.entry.method, {}))


def compete(entry: Entry, folder: Path, *, project: Path, evaluation: Mapping[str, Any] | None = None) -> Outcome:
    """Train one policy and evaluate it against the project's `sft`, with the project's judge, reward model and prompts.

    Args:
        entry: what to train.
        folder: of the results; both runs are read back when they are there already.
        project: a finished project.
        evaluation: settings of `evaluate` that differ.
    """
    training = run_stage(
        Run(stage=entry.method, profile=entry.profile, settings=entry.settings, seed=entry.seed),
        folder / "train", project=project, keep=True,
    )  # fmt: skip
    if training.exit_code:
        return Outcome(entry=entry, training=training, evaluation={})
    judged = evaluate({entry.method: folder / "train"}, folder / "evaluate", entry.seed, project, evaluation or {})
    return Outcome(entry=entry, training=training, evaluation=judged.metrics)


def evaluate(
    trained: Mapping[str, Path], folder: Path, seed: int, project: Path, settings: Mapping[str, Any]
) -> Result:
    """Run `evaluate` on policies that `run_stage` kept.

    Args:
        trained: method -> folder of its run.
        folder: of the result.
        seed: of answers and resampling.
        project: a finished project.
        settings: of `evaluate`, beside the policies.
    """
    policies = ["sft", *(method for method in METHODS if method in trained)]
    inputs = {name: str((path / f"out/data/models/{name}").resolve()) for name, path in trained.items()}
    run = Run(
        stage="evaluate", profile="", settings={"policies": policies, **settings}, seed=seed, inputs=inputs
    )  # fmt: skip
    return run_stage(run, folder, project=project)


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """One line for each run that failed."""
    return [
        f"{outcome.entry.method} seed {outcome.entry.seed} {dict(outcome.entry.settings)}: {outcome.training.message}"
        for outcome in outcomes
        if outcome.training.exit_code
    ]
