"""Seconds and memory of the data path against the number of rows: `validate`, and the token ids of what it wrote.

    python -m bench.data_scale                          1000 to 1000000 pairs, two processes
    python -m bench.data_scale --rows 1000,10000 --workers 1
    python -m bench.data_scale --folder DIR             where the pairs are kept between calls

The pairs are drawn from the grammar of the embedded task. There is nothing else in the data, so that `validate` also
makes a demonstration of every decided pair and a prompt record of every prompt: about three records for each row. Each
measurement is a process of its own; memory is the sum over it and its workers, pages that they share counted once.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.harness import ROOT, markdown, say
from rlhf.data.annotators import draw_annotator
from rlhf.data.support_desk import draw_reply, draw_ticket, render
from tasks.profiles import requests_of_stages

MOST_SECONDS, MOST_BYTES = 60.0, 2e9
"""What a million pairs may take."""
EVERY = 0.1
"""Seconds between two looks at memory."""
MAX_TOKENS = 256
ENCODING = """
import sys
from pathlib import Path
from rlhf.preferences import encode_pairs
from rlhf.record_file import RecordFile
from rlhf.tokenizer import load_tokenizer
pairs = encode_pairs(load_tokenizer(sys.argv[1]), RecordFile(Path(sys.argv[2])), max_tokens=int(sys.argv[3]))
print(len(pairs), sum(pair.longest for pair in pairs), type(pairs).__name__)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took, its children included."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds."""
    peak: int
    """Most memory at a time, bytes."""

    def cells(self) -> list[str]:
        """For a table."""
        return [f"{self.wall:.1f}", f"{self.cpu:.1f}", f"{self.peak / 1e6:.0f}"]


def main() -> None:
    """Measure every size and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ratchet-data-scale")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "data/models/sft", help="a finished project's")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    validated, encoded, missed = [], [], []
    for rows in map(int, arguments.rows.split(",")):
        project = folder / str(rows)
        write_pairs(project / "data/raw/pairs.jsonl", rows)
        cost = validate(project, arguments.workers)
        validated.append([f"{rows}", *cost.cells(), f"{1e6 * cost.cpu / rows:.0f}"])
        if rows == 1_000_000 and (cost.wall > MOST_SECONDS or cost.peak > MOST_BYTES):
            missed.append(f"{rows} pairs took {cost.wall:.0f} s and {cost.peak / 1e9:.2f} GB")
        if arguments.tokenizer.is_dir():
            costs = encode(project, arguments.tokenizer)
            encoded.append([f"{rows}", *(cell for cost in costs for cell in cost.cells())])
    say(markdown(["pairs", "wall s", "CPU s", "peak MB", "CPU us per pair"], validated) + "\n")
    head = [f"{what}, {time}" for time in ("first", "again") for what in ("wall s", "CPU s", "peak MB")]
    say(markdown(["pairs encoded", *head], encoded))
    if missed:
        sys.exit(f"wanted at most {MOST_SECONDS:.0f} s and {MOST_BYTES / 1e9:.0f} GB: {'; '.join(missed)}")


def write_pairs(path: Path, rows: int) -> None:
    """Write pairs of the embedded task one by one, unless they are there already."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(rows)
    with path.with_suffix(".part").open("w", encoding="utf-8") as stream:
        for number in range(rows):
            ticket = draw_ticket(rng)
            first, second = (render(draw_reply(ticket, rng)[0]) for _ in range(2))
            row = {
                "id": f"p{number}", "prompt": ticket.messages(), "response_a": first, "response_b": second,
                "label": rng.randrange(2), "annotator": draw_annotator(rng), **ticket.facts(),
            }  # fmt: skip
            stream.write(json.dumps(row) + "\n")
    path.with_suffix(".part").rename(path)


def validate(project: Path, workers: int) -> Cost:
    """Run the stage on a project's raw files."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    # Two random answers are now and then equal, which makes a row bad; how many does not matter here.
    params["validate"] |= {"files": ["pairs.jsonl"], "threads": workers, "max_bad_fraction": 1.0}
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    request = requests_of_stages(ROOT)["validate"]
    words = [sys.executable, "-m", "rlhf.launch", "validate"]
    for name, source in {"workers": "validate.threads", **request.borrowed}.items():
        words += ["--set", f"{name}={source}"]
    for name, path in request.paths.items():
        words += [f"--{name.replace('_', '-')}", str(path)]
    return measured(words, project)


def encode(project: Path, tokenizer: Path) -> tuple[Cost, Cost]:
    """Encode the validated training pairs, for the first time and again."""
    words = [sys.executable, "-c", ENCODING, str(tokenizer), "data/validated/pairs/train.jsonl", str(MAX_TOKENS)]
    subprocess.run(["rm", "-rf", str(project / ".ratchet/tmp/tokens")], check=True)
    return measured(words, project), measured(words, project)


def measured(words: list[str], folder: Path) -> Cost:
    """Run a command in a folder and watch what it takes.

    Raises:
        SystemExit: the command failed.
    """
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RATCHET_KEY": "bench", "HF_HUB_OFFLINE": "1"}
    started, before, peak = time.monotonic(), os.times(), 0
    process = subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, _memory(watched))
        time.sleep(EVERY)
    if process.returncode:
        sys.exit(f"{' '.join(words[:4])} failed with exit code {process.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.monotonic() - started, cpu, peak)


def _memory(process: psutil.Process) -> int:
    """Bytes of a process and its children, shared pages divided among those who share them."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended; the next look sees the others
        return total
    return total


if __name__ == "__main__":
    main()
