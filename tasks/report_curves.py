"""Which curves of which stage the report draws, and reading them from the CSV files that the stages wrote."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.report_charts import SERIES, Line, line_chart
from tasks.report_tables import Tables


@dataclass(frozen=True, slots=True)
class CurveSpec:
    """One chart of one stage."""

    stage: str
    title: str
    y_label: str
    columns: Mapping[str, str]
    """Name in the legend by column; columns that the file does not have are left out."""
    note: str = ""
    prefix: str = ""
    """Every column that begins so is a line too, named by what follows; none when empty."""
    word: str = ""
    """What stands before that name in the legend."""
    without: tuple[str, ...] = ()
    """Columns with the prefix that are something else."""
    least: int = 1
    """The chart is left out with fewer lines."""


CURVES = (
    CurveSpec("sft", "Loss", "nats per token", {"loss": "train", "dev_loss": "held out"}),
    CurveSpec("reward", "Accuracy", "share of pairs", {"accuracy": "train", "dev_accuracy": "held out"}),
    CurveSpec("reward", "Loss", "nats per pair", {"loss": "train", "dev_loss": "held out"}),
    CurveSpec("judge", "Accuracy", "share of pairs", {"accuracy": "train", "dev_accuracy": "held out"}),
    CurveSpec("judge", "Loss", "nats per pair", {"loss": "train", "dev_loss": "held out"}),
    CurveSpec("ppo", "Reward", "standard deviations", {"score": "score", "reward": "after KL penalty"}),
    CurveSpec(
        "ppo", "Signals of the reward", "unit of the signal", {},
        prefix="reward_", without=("reward_disagreement",), least=2,
        note="Mean of each signal before its weight; one that rises while another falls is being traded for it.",
    ),
    CurveSpec(
        "ppo", "Disagreement of the reward models", "standard deviations", {"reward_disagreement": "disagreement"},
        note="Spread of the ensemble on the same answer; where it rises, the policy goes where no member knows.",
    ),
    CurveSpec("ppo", "KL from SFT", "nats per response", {"kl": "KL"}),
    CurveSpec("ppo", "Entropy", "nats per token", {"entropy": "entropy"}),
    CurveSpec("ppo", "Explained variance of the value model", "share", {"explained_variance": "explained variance"}),
    CurveSpec("ppo", "Response length", "tokens", {"length_tokens": "length"}),
    CurveSpec("ppo", "Share of responses that end", "share", {"end_rate": "end rate"}),
    CurveSpec(
        "ppo", "Samples that still count", "effective share of tokens", {}, prefix="ess_tokens_epoch_", word="epoch ",
        note="Effective sample size of the importance weights: below one half, half of an update's samples are lost.",
    ),
    CurveSpec(
        "ppo", "Clipped tokens", "share of tokens", {}, prefix="clip_fraction_epoch_", word="epoch ",
        note="Tokens whose ratio a bound replaced: 0.05 to 0.3 is usual, 0 means that the steps are too small.",
    ),
    CurveSpec(
        "ppo", "Size of an update", "nats per token", {"approx_kl": "KL"},
        note="KL between the policy that sampled and the one that learns from it, mean over the update's steps.",
    ),
    CurveSpec("dpo", "Accuracy", "share of pairs", {"accuracy": "train", "dev_accuracy": "held out"}),
    CurveSpec("dpo", "Reward margin", "nats times beta", {"margin": "train", "dev_margin": "held out"}),
    CurveSpec("dpo", "Loss", "nats per pair", {"loss": "train", "dev_loss": "held out"}),
    CurveSpec(
        "dpo", "Change of log-probability since SFT", "nats per response",
        {
            "chosen_change": "chosen", "rejected_change": "rejected",
            "dev_chosen_change": "chosen, held out", "dev_rejected_change": "rejected, held out",
        },
        note="When both fall, probability goes to answers that nobody judged.",
    ),
    CurveSpec(
        "dpo", "Change of log-probability since SFT, by verdict", "nats per response",
        {
            "desirable_change": "good", "undesirable_change": "bad",
            "dev_desirable_change": "good, held out", "dev_undesirable_change": "bad, held out",
        },
        note="KTO: answers judged good should become likelier and bad ones less likely.",
    ),
)  # fmt: skip

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
    """The lines of one chart, as far as the file has them; none when they are too few to be worth one."""
    lines = [Line(label, *curve[column]) for column, label in spec.columns.items() if column in curve]
    if spec.prefix:
        rests = [
            name.removeprefix(spec.prefix)
            for name in curve
            if name.startswith(spec.prefix) and name not in (*spec.columns, *spec.without)
        ]
        # Numbers in their order, other names in that of the file.
        ordered = sorted(rests, key=lambda rest: int(rest) if rest.isdecimal() else 0)
        lines += [Line(f"{spec.word}{rest}", *curve[spec.prefix + rest]) for rest in ordered]
    return lines if len(lines) >= spec.least else []


def charts_of(name: str, spec: CurveSpec, curve: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Tables:
    """Draw one chart of a stage, in as many pictures as its lines need.

    Args:
        name: letters, digits and dashes; begins the ids of these pictures.
        spec: which lines.
        curve: what `read_curve` found.

    Returns:
        Pictures with title, "svg" and note; empty when the curve has none of the lines.
    """
    lines, charts = lines_of(spec, curve), []
    for number, start in enumerate(range(0, len(lines), len(SERIES)), start=1):
        title, own = (spec.title, name) if number == 1 else (f"{spec.title} ({number})", f"{name}-{number}")
        part = lines[start : start + len(SERIES)]
        svg = line_chart(own, f"{spec.stage}: {title}", part, x_label="step", y_label=spec.y_label)
        charts.append({"title": title, "svg": svg, "note": spec.note})
    return charts
