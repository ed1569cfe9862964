"""Disturb the pipeline N times, each time in another way at another instant, and see whether anything is ever lost.

    python -m bench.chaos --rounds 100 --seed 1 --table docs/chaos.csv
    python -m bench.chaos --case 1:17          # one round again
    python -m bench.chaos --summary            # what the table says so far

A round puts a small project back to a known state, starts `ratchet run`, strikes at an instant drawn from the seed,
takes the fault away, runs again, and checks that the outputs are those of an undisturbed run, that each is registered
exactly once, that no process, run, lock, slot or checkpoint is left, and that `dvc status` is clean. The run after the
fault has to succeed at once. Fault, state and instant are drawn from the seed; how processes interleave is not.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from bench.chaos.arena import STEPS, Arena
from bench.chaos.faults import FAULTS
from bench.chaos.rounds import COLUMNS, Row, draw, play
from bench.harness import ROOT, markdown, say

IN_NAMESPACE = "RATCHET_CHAOS_NAMESPACE"
WORK = ROOT / ".ratchet/tmp/bench/chaos"
TABLE = ROOT / "docs/chaos.csv"


def main() -> int:
    """Play the rounds, write a row for each, tell how many were well."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", metavar="SEED:ROUND", help="this round only")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train the reward model")
    parser.add_argument("--until", choices=STEPS[1:], help="last stage of every run; nothing is promoted then")
    parser.add_argument("--faults", nargs="+", choices=sorted(FAULTS), help="draw from these only")
    parser.add_argument("--table", type=Path, help="add the rows to this CSV file")
    parser.add_argument("--work", type=Path, default=WORK, help="folder to work in")
    parser.add_argument("--summary", action="store_true", help="print what a table says, and do nothing else")
    asked = parser.parse_args()
    if asked.summary:
        say(summary(asked.table or TABLE))
        return 0
    _enter_namespace()
    seed, rounds = asked.seed, range(asked.first, asked.first + asked.rounds)
    if asked.case:
        words = asked.case.split(":")
        seed, rounds = int(words[0]), range(int(words[1]), int(words[1]) + 1)
    arena = Arena(asked.work, ranks=asked.ranks, until=asked.until)
    if not arena.own_disk:
        say("this system allows no disk of our own: full and read-only disks are left out")
    say("one undisturbed run, step by step ...")
    arena.build(ROOT)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    bad = 0
    for number in rounds:
        row = play(arena, draw(seed, number, arena, only=asked.faults), commit)
        say(f"{seed}:{number} from {row.state}, {row.moment}: {row.told}; {row.verdict} ({row.seconds:.0f} s)")
        bad += row.verdict != "well"
        if asked.table:
            write(asked.table, row)
    say(f"{len(rounds) - bad} of {len(rounds)} rounds were well")
    shutil.rmtree(arena.states, ignore_errors=True)
    return 1 if bad else 0


def write(path: Path, row: Row) -> None:
    """Add a row to the table, with the head where the table is new."""
    new = not path.is_file()
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([getattr(row, name) for name in COLUMNS])


def summary(path: Path) -> str:
    """Rounds and verdicts by fault, as a Markdown table."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    counts, well = Counter(row["fault"] for row in rows), Counter(r["fault"] for r in rows if r["verdict"] == "well")
    lines = [[name.replace("_", " "), str(counts[name]), str(well[name])] for name in FAULTS if counts[name]]
    commits = len({row["commit"] for row in rows})
    total = f"{sum(well.values())} of {len(rows)} rounds were well, over {commits} commit(s)."
    spoilt = [row for row in rows if row["verdict"] != "well"]
    bad = [f"- {row['seed']}:{row['round']} {row['fault']}: {row['verdict']}" for row in spoilt]
    return "\n".join([markdown(["fault", "rounds", "well"], lines), "", total, *bad])


def _enter_namespace() -> None:
    """Start again with a view of disks of our own, so that what is mounted is nobody else's and goes with us."""
    if os.environ.get(IN_NAMESPACE) or not shutil.which("unshare"):
        return
    words = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
        os.environ[IN_NAMESPACE] = "1"
        os.execvp("unshare", [*words, sys.executable, "-m", "bench.chaos", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
