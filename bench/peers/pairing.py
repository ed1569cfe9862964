"""What the comparisons with a peer share: pairs of steps, how they are summed up, and when a comparison fails.

A pair is one step of the peer and one of ours on the same batch, one after the other in one process, measured in CPU
seconds of that process on one thread: other work on the machine then disturbs both alike, and waiting costs nothing.
The first pair warms up and is not counted.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".ratchet" / "tmp" / "bench"

LIMITS = {"float32": (2e-5, 3e-5), "bfloat16": (2e-2, 5e-2)}
"""Largest difference of losses, and of log-probabilities (nats per token) or scores, that counts as rounding.

fp32: a log-probability of 9 nats has a unit in the last place of 1e-6, and another order of sums costs a few of these;
one weight that is wrong by 1e-3 gives some 1e-4, which each run shows. bf16 has 8 bits, so a logit of 1 to 10 is wrong
by 0.004 to 0.04.
"""
CONTROL = {"float32": 1e-3, "bfloat16": 1.0}
"""What is added to one weight to show that the comparison of numbers can fail."""


@dataclass(slots=True)
class Row:
    """One line of the table: a way to run the peer against a way to run ours."""

    name: str
    peer: str
    """How the peer ran."""
    ours: str
    """How ours ran."""
    precision: str
    limits: tuple[float, float]
    """As in `LIMITS`."""
    peer_seconds: list[float] = field(default_factory=list)
    our_seconds: list[float] = field(default_factory=list)
    loss_gap: float = 0.0
    logprob_gap: float = 0.0
    control_gap: float | None = None
    """Gap of the first step when one weight of ours is wrong; None where numbers are not compared."""
    warm: int = 1
    """First pairs that are not counted."""
    loss_compared: bool = True
    """Whether the losses are of the same algorithm to the last term."""
    parts: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Peer's and our CPU seconds, or tokens, by part of a step."""
    notes: dict[str, float] = field(default_factory=dict)
    """Other numbers of the row."""

    def ratios(self) -> list[float]:
        """Peer over ours, pair by pair."""
        pairs = zip(self.peer_seconds[self.warm :], self.our_seconds[self.warm :], strict=True)
        return [peer / ours for peer, ours in pairs]

    def failures(self) -> list[str]:
        """Why the row's numbers cannot be trusted; empty when they can."""
        loss, logprob = self.limits
        found = []
        if self.loss_compared and not self.loss_gap <= loss:
            found.append(f"{self.name}: the losses differ by {self.loss_gap:.1e}, more than {loss:.0e}")
        if not self.logprob_gap <= logprob:
            found.append(f"{self.name}: log-probs or scores differ by {self.logprob_gap:.1e}, more than {logprob:.0e}")
        if self.control_gap is not None and not self.control_gap > logprob:
            found.append(f"{self.name}: a wrong weight moves them by {self.control_gap:.1e} only: nothing is shown")
        return found


def arguments(description: str, rows: Sequence[str], *, steps: int) -> argparse.Namespace:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=("M", "S", "T"), default="M", help="8.3M, 0.9M, or a toy")
    parser.add_argument("--steps", type=int, default=steps, help="pairs that are counted; one more warms up")
    parser.add_argument("--rows", nargs="+", choices=tuple(rows), default=tuple(rows), help="which lines of the table")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data")
    parser.add_argument("--profile", action="store_true", help="only: where the time of our step goes, its FLOP limit")
    parser.add_argument("--matmul", choices=("native", "onednn"), default="onednn", help="of --profile")
    return parser.parse_args()


def enter_environment(name: str) -> None:
    """Continue in the peer's own virtual environment, on one thread; `make bench` builds it."""
    python = STATE / "envs" / name / "bin" / "python"
    os.environ |= {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(STATE / "hf"), "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": str(ROOT),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    if Path(sys.prefix).resolve() == python.parents[1].resolve():
        return
    if not python.is_file():
        sys.exit(f"{python.relative_to(ROOT)} is absent, wanted the peer's environment; run `make bench-envs`")
    module = sys.modules["__main__"].__spec__
    sys.stdout.flush()
    os.execv(python, [str(python), "-m", module.name if module else sys.argv[0], *sys.argv[1:]])


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process in a call, and what it returned."""
    began = time.process_time()
    found = function()
    return time.process_time() - began, found


def finish(name: str, size: str, rows: Sequence[Row], extra: dict[str, Any]) -> int:
    """Print the table, keep everything as JSON, and say what failed; the exit code."""
    versions = {package: __import__(package).__version__ for package in ("torch", "transformers", "trl")}
    record = {
        "comparison": name, "size": size, "date": date.today().isoformat(), "cpu": _cpu(), "threads": 1,
        "versions": versions, **extra,
        "rows": [asdict(row) | _summary(row) for row in rows],
    }  # fmt: skip
    keep(f"{name}-{size}", record)
    say(f"{name}, size {size}: CPU seconds per step, {record['cpu']}, 1 thread, {versions}\n")
    say(table(rows))
    failures = [sentence for row in rows for sentence in row.failures()]
    for sentence in failures:
        sys.stderr.write(f"FAILED {sentence}\n")
    return 1 if failures else 0


def keep(name: str, record: dict[str, Any]) -> None:
    """Write what was found as JSON, under `.ratchet/tmp/bench/peers`."""
    folder = STATE / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    head = ["row", "peer", "ours", "ratio (quartiles)", "pairs", "loss differs", "log-probs differ", "wrong weight"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        found = _summary(row)
        gaps = [f"{row.loss_gap:.0e}" if row.loss_compared else "-", f"{row.logprob_gap:.0e}"]
        control = "-" if row.control_gap is None else f"{row.control_gap:.0e}"
        ratio = f"{found['ratio']:.2f} ({found['quartiles'][0]:.2f} to {found['quartiles'][1]:.2f})"
        lines.append([
            row.name, f"{found['peer']:.3f}", f"{found['ours']:.3f}", ratio, str(len(row.ratios())), *gaps, control,
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def say(text: str) -> None:
    """Print."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; the value itself where there is only one."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def _summary(row: Row) -> dict[str, Any]:
    ratios = row.ratios()
    return {
        "ratio": statistics.median(ratios), "quartiles": quartiles(ratios),
        "peer": statistics.median(row.peer_seconds[row.warm :]),
        "ours": statistics.median(row.our_seconds[row.warm :]),
    }  # fmt: skip


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in found.items()}
    return f"{fields.get('model name', 'unknown CPU')} (family {fields.get('cpu family', '?')})"
