"""Reading curves, and which lines a chart gets."""

from pathlib import Path

from tasks.report_curves import CURVES, STAGES, CurveSpec, lines_of, read_curve


def test_empty_cells_are_no_points(tmp_path: Path) -> None:
    path = tmp_path / "sft.csv"
    path.write_text("step,loss,dev_loss\n1,2.5,\n2,1.5,1.75\n")
    assert read_curve(path) == {"loss": ([1.0, 2.0], [2.5, 1.5]), "dev_loss": ([2.0], [1.75])}


def test_no_file_is_no_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "none.csv") == {}


def test_lines_are_those_that_the_file_has() -> None:
    spec = CurveSpec("sft", "Loss", "nats", {"loss": "train", "dev_loss": "held out"})
    (line,) = lines_of(spec, {"loss": ([1.0], [2.0]), "lr": ([1.0], [0.1])})
    assert (line.name, line.xs, line.ys) == ("train", [1.0], [2.0])


def test_every_trained_stage_has_a_chart() -> None:
    assert {spec.stage for spec in CURVES} == set(STAGES)
    assert len({(spec.stage, spec.title) for spec in CURVES}) == len(CURVES)
