"""Charts: CSS colours, unique ids, escaped texts, and refusal of nothing to draw."""

import re
from xml.etree import ElementTree

import pytest

from tasks.report_charts import (
    SERIES,
    VARIABLES,
    Bar,
    Line,
    Point,
    frontier_chart,
    line_chart,
    share_chart,
    win_rate_chart,
)

LINES = [Line("train", [1, 2, 3], [3.0, 2.0, 1.0]), Line("held out", [2, 3], [2.5, 2.0])]
POINTS = [Point("sft", 0.0, 1.0), Point("best-of-1", 0.0, 1.0), Point("best-of-4", 0.64, 2.0), Point("ppo", 2.0, 3.0)]


def every_chart(name: str = "x") -> list[str]:
    return [
        line_chart(name, "Loss", LINES, x_label="step", y_label="nats"),
        frontier_chart(name, "Frontier", POINTS, y_label="gold"),
        win_rate_chart(name, "Wins", [Bar("ppo", "judge", 0.8, 0.75, 0.85)]),
        share_chart(name, "Probes", {"action": 0.9, "order": 0.5}, x_label="share", chance=0.5),
    ]


@pytest.mark.parametrize("index", range(4))
def test_colours_are_variables_and_ids_are_its_own(index: int) -> None:
    svg = every_chart("mine")[index]
    ElementTree.fromstring(svg)  # well-formed
    assert not any(marker in svg for marker in VARIABLES)
    assert "var(--ink)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert all(found.startswith("mine-") for found in re.findall(r'\bid="([^"]+)"', svg))
    assert all(found.startswith("mine-") for found in re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))
    assert "<style" not in svg
    assert "font-family" not in svg


def test_texts_stay_texts_and_are_escaped() -> None:
    svg = line_chart("x", 'a "b" <c>', [Line("<train>", [1, 2], [1, 2])] * 2, x_label="step & more", y_label="y")
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in svg
    texts = [node.text for node in ElementTree.fromstring(svg).iter() if node.text and node.text.strip()]
    assert "step & more" in texts
    assert "<train>" in texts


def test_equal_data_give_equal_pictures() -> None:
    assert every_chart() == every_chart()


def test_every_point_of_the_frontier_is_named() -> None:
    svg = frontier_chart("x", "Frontier", POINTS, y_label="gold")
    for name in ("n=1", "n=4", ">sft<", ">ppo<"):
        assert name in svg


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="0 lines"):
        line_chart("x", "t", [], x_label="step", y_label="y")
    with pytest.raises(ValueError, match=f"{len(SERIES) + 1} lines"):
        line_chart("x", "t", LINES[:1] * (len(SERIES) + 1), x_label="step", y_label="y")
    with pytest.raises(ValueError, match="no points"):
        frontier_chart("x", "t", [], y_label="y")
    with pytest.raises(ValueError, match="no bars"):
        win_rate_chart("x", "t", [])
    with pytest.raises(ValueError, match="no shares"):
        share_chart("x", "t", {}, x_label="x", chance=None)
