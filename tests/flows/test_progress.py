import json
import time
from pathlib import Path

import pytest

from flows.progress import LiveDisplay, LogDisplay, Standing, choose_display, standing, telling
from tests.tiny_project import wait_for


def write_rows(root: Path, rows: list[dict[str, float]]) -> None:
    path = root / ".ratchet" / "tmp" / "live" / "ppo" / "key.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_rest_is_estimated_from_the_pace_of_this_attempt() -> None:
    now = time.time()
    first, row = {"step": 40, "total": 100, "time": now - 20}, {"step": 50, "total": 100, "time": now}
    found = standing(row, first, elapsed=25.0, usual=None)
    # 10 steps in 20 s, 50 to go: 100 s.
    assert found.left == pytest.approx(100, abs=1)
    assert (found.step, found.total) == (50, 100)


def test_without_rows_the_last_duration_is_the_estimate() -> None:
    assert standing(None, None, elapsed=4.0, usual=10.0).left == 6.0
    assert standing(None, None, elapsed=14.0, usual=10.0).left == 0.0
    assert standing(None, None, elapsed=4.0, usual=None).left is None


def test_the_first_row_alone_gives_no_pace() -> None:
    row = {"step": 1, "total": 10, "time": time.time()}
    assert standing(row, row, elapsed=1.0, usual=None).left is None


def test_the_telling_metrics_come_first() -> None:
    row = {"step": 1, "time": 2.0, "total": 3, "lr": 0.1, "other": 1.0, "loss": 0.5, "kl": 2.0, "name": "x"}
    assert telling(row) == {"kl": 2.0, "loss": 0.5, "lr": 0.1}


def test_a_line_of_the_log() -> None:
    state = Standing(step=3, total=9, elapsed=61.0, left=120.0, metrics={"kl": 2.71828})
    assert state.line("ppo") == "ppo: 1 min 01 s step 3/9, about 2 min 00 s left  kl 2.718"


def test_a_log_gets_lines_while_a_stage_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def says(text: str) -> bool:
        captured = capsys.readouterr()
        assert captured.out == ""  # which belongs to the result
        said.append(captured.err)
        return text in "".join(said)

    with LogDisplay(tmp_path, every=0.02) as display:
        display.begin("ppo")
        write_rows(tmp_path, [{"step": 1, "total": 4, "time": time.time(), "reward": 0.25}])
        wait_for(lambda: says("step 1/4"))
        assert says("reward 0.25")
        display.note("something else")
        display.end("ppo", "run", 3.0)
    assert says("ppo: run in 3.0 s")
    assert says("something else")


def test_the_live_display_draws_and_clears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with LiveDisplay(tmp_path) as display:
        display.begin("ppo")
        display.show({"ppo": Standing(step=2, total=4, elapsed=3.0, left=3.0, metrics={"kl": 1.5})})
        display.show({"ppo": Standing(step=None, total=None, elapsed=3.0, left=None, metrics={})})
        display.end("ppo", "run", 3.0)
        display.end("dpo", "cached", 0.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ppo" in captured.err
    assert "done" in captured.err
    assert "cached" in captured.err


def test_lines_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert isinstance(choose_display(tmp_path), LogDisplay)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(choose_display(tmp_path), LiveDisplay)
