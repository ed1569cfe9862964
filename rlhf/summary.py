"""Two views of a training curve: where it ended, and where it was best."""

from collections.abc import Mapping, Sequence

SHARE = 0.1
"""Both views are means over a stretch of this share of the rows; single rows are too noisy to be compared."""


def final_and_best(rows: Sequence[Mapping[str, float]], *, best: str) -> dict[str, dict[str, float]]:
    """Means over the last stretch of a curve, and over the stretch where one column was highest.

    Args:
        rows: of a monitor, each with `step`; a column may be missing in some.
        best: name of the column whose highest stretch is wanted; every row has it.

    Returns:
        `final`: every column but `step`; `best`: that column's mean and the last `step` of its stretch. Empty when
        there are no rows.
    """
    if not rows:
        return {}
    width = max(1, round(SHARE * len(rows)))
    last = rows[-width:]
    names = [name for name in rows[-1] if name != "step"]
    final = {name: _mean([row[name] for row in last if name in row]) for name in names}
    stretches = [rows[end - width : end] for end in range(width, len(rows) + 1)]
    highest = max(stretches, key=lambda stretch: _mean([row[best] for row in stretch]))
    top = {best: _mean([row[best] for row in highest]), "step": highest[-1]["step"]}
    return {"final": final, "best": top}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
