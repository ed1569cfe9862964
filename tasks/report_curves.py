"""Which curves of which stage the report draws, and reading them from the CSV files that the stages wrote."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.report_charts import Line


@dataclass(frozen=True, slots=True)
class CurveSpec:
    """One chart of one stage."""

    stage: str
    title: str
    y_label: str
    columns: Mapping[str, str]
    """Name in the legend by column; columns that the file does not have are left out."""
    note: str = ""


CURVES = (
    CurveSpec("sft", "Loss", "nats per token", {"loss": "train", "dev_loss": "held out"}),
    CurveSpec("reward", "Accuracy", "share of pairs", {"accuracy": "train", "dev_accuracy": "held out"}),
    CurveSpec("reward", "Loss", "nats per pair", {"loss": "train", "dev_loss": "held out"}),
    CurveSpec("judge", "Accuracy", "share of pairs", {"accuracy": "train", "dev_accuracy": "held out"}),
    CurveSpec("judge", "Loss", "nats per pair", {"loss": "train", "dev_loss": "held out"}),
    CurveSpec("ppo", "Reward", "standard deviations", {"score": "reward model", "reward": "after KL penalty"}),
    CurveSpec("ppo", "KL from SFT", "nats per response", {"kl": "KL"}),
    CurveSpec("ppo", "Entropy", "nats per token", {"entropy": "entropy"}),
    CurveSpec("ppo", "Explained variance of the value model", "share", {"explained_variance": "explained variance"}),
    CurveSpec("ppo", "Response length", "tokens", {"length_tokens": "length"}),
    CurveSpec("ppo", "Share of responses that end", "share", {"end_rate": "end rate"}),
    CurveSpec("dpo", "Accuracy", "share of pairs", {"accuracy": "train", "dev_accuracy": "held out"}),
    CurveSpec("dpo", "Reward margin", "nats times beta", {"margin": "train", "dev_margin": "held out"}),
    CurveSpec("dpo", "Loss", "nats per pair", {"loss": "train", "dev_loss": "held out"}),
)

STAGES = {
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "judge": "Judge",
    "ppo": "PPO",
    "dpo": "DPO",
}
"""Trained stages in reading order, with the names that people read."""


def read_curve(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read a curve file.

    Args:
        path: a CSV whose first column is `step`; empty cells have no value.

    Returns:
        Steps and values by column; empty when there is no such file.
    """
    if not path.is_file():
        return {}
    columns: dict[str, tuple[list[float], list[float]]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            for name, cell in row.items():
                if name != "step" and cell:
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(cell))
    return columns


def lines_of(spec: CurveSpec, curve: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> list[Line]:
    """The lines of one chart, as far as the file has them."""
    return [Line(label, *curve[column]) for column, label in spec.columns.items() if column in curve]
