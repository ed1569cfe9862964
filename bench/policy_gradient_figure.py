"""The figure of `bench.policy_gradient`: the objective against samples, and against the length of the step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

LOWEST = -2.0
"""Below this the objective is drawn at this: a run that broke down would flatten all others."""


def draw(
    path: Path, curves: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> None:
    """Draw both panels.

    Args:
        path: written: SVG or PNG by its ending; equal numbers give equal bytes.
        curves: points with method, factor, seed, samples and objective.
        rows: runs with method, factor, seed and objective at their end.
        names: method -> what the legend calls it.
    """
    methods = [method for method in names if any(row["method"] == method for row in rows)]
    colours = plt.get_cmap("tab20")
    with plt.rc_context({"svg.hashsalt": "policy_gradient", "font.size": 9}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        for number, method in enumerate(methods):
            look = {"color": colours(number % 20), "label": names[method], "linewidth": 1.4}
            left.plot(*_mean_curve([point for point in curves if point["method"] == method]), **look)
            mine = [row for row in rows if row["method"] == method]
            factors = sorted({row["factor"] for row in mine})
            ends = [fmean(_clamped(row["objective"]) for row in mine if row["factor"] == factor) for factor in factors]
            right.plot(factors, ends, marker="o", markersize=3, **look)
        left.set(xlabel="responses sampled", ylabel="J = score - price x KL", title="step x1, mean over seeds")
        right.set(xlabel="step, times the preset's", xscale="log", title="J at the end, mean over seeds")
        steps = sorted({row["factor"] for row in rows})
        right.set_xticks(steps, [f"{step:.2g}" for step in steps])
        right.set_xticks([], minor=True)
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        for axes in (left, right):
            axes.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _mean_curve(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean over seeds of the curves at the step nearest to the preset's, update by update."""
    usual = min({point["factor"] for point in points}, key=lambda factor: abs(factor - 1.0))
    kept = [point for point in points if point["factor"] == usual]
    by_seed = [[point for point in kept if point["seed"] == seed] for seed in sorted({point["seed"] for point in kept})]
    columns = list(zip(*by_seed, strict=False))
    samples = [fmean(point["samples"] for point in column) for column in columns]
    return samples, [fmean(_clamped(point["objective"]) for point in column) for column in columns]


def _clamped(value: float) -> float:
    return value if value >= LOWEST else LOWEST
