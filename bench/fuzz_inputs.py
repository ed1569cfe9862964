"""Thousands of broken inputs through the real entry points: the right thing comes of each, or one sentence.

    make fuzz
    python -m bench.fuzz_inputs [--cases 20000] [--seed 1] [--families data settings models commands] [--jobs 2]
    python -m bench.fuzz_inputs --seed 1 --family data --case 4711      one case again, with all that it says

Families: data files through `ratchet ingest` and the stage `validate`; `params.yaml`, profiles, registry, graph and
lock through what `ratchet run`, `plan`, `status`, `use` and others check; checkpoints and model folders through what
loads them; and command lines. A case is accepted, and then held against what must be true of it, or refused by one
clear sentence with the right exit code. All else is a failure: another exception, a hang, several lines, a sentence
that does not say what to do, or a change to files that nobody named. Everything runs in this process, in a workspace
below .ratchet/tmp; only the pointers of most accepted data files are written without DVC, to save a second each.
"""

import argparse
import contextlib
import importlib
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.fuzz.watch import Outcome, judged

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {"data": "data_files", "settings": "settings_files", "models": "model_files", "commands": "command_lines"}
SHARES = {"data": 0.44, "settings": 0.12, "models": 0.2, "commands": 0.24}
PART = 800
"""Cases of one process; a fresh one takes the next."""
MEMORY = 16 << 30
"""Bytes of address space of a process: a number in a broken file must not become an allocation of that size."""
SHOWN = 12


class Case(NamedTuple):
    """One case and what came of it."""

    family: str
    number: int
    kind: str
    outcome: Outcome


def main() -> int:
    """Run the cases, print the table; 1 when there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="in all; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes; the cases do not depend on it")
    parser.add_argument("--family", choices=FAMILIES, help="with --case")
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--work", type=Path, default=ROOT / ".ratchet/tmp/fuzz", help="folder of the workspaces")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every case that failed, and the sentences"
    )
    asked = parser.parse_args()
    if asked.case is not None:
        found = list(run(asked.family or asked.families[0], [asked.case], asked.seed, asked.work))
    else:
        found = run_all(asked.cases, asked.families, asked.seed, asked.work, asked.jobs)
    report(found, asked.seed)
    if asked.json:
        asked.json.write_text(json.dumps([[*case[:3], case.outcome.verdict, case.outcome.text] for case in found]))
    return 1 if any(case.outcome.verdict == "failed" for case in found) else 0


def run_all(cases: int, families: Sequence[str], seed: int, work: Path, jobs: int) -> list[Case]:
    """Run cases of several families in several processes, and say of each failure at once how to repeat it."""
    whole = sum(SHARES[family] for family in families)
    parts = []
    for family in families:
        number = round(cases * SHARES[family] / whole)
        parts += [(family, list(range(at, min(at + PART, number))), seed, work) for at in range(0, number, PART)]
    parts.sort(key=lambda part: part[1][0])  # a little of everything first
    found: list[Case] = []
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for some in pool.imap_unordered(_run_part, parts, chunksize=1):
            found += some
            for case in some:
                if case.outcome.verdict == "failed":
                    sys.stderr.write(f"--family {case.family} --case {case.number}: {case.outcome.text[:300]}\n")
            sys.stderr.write(f"{len(found)} of {cases} cases\n")
    return found


def _run_part(job: tuple[str, list[int], int, Path]) -> list[Case]:
    logging.disable(logging.CRITICAL)  # libraries talk about what they are given
    return list(run(*job))


def run(family: str, numbers: Sequence[int], seed: int, work: Path) -> Iterator[Case]:
    """Run cases of one family, in a workspace of this process.

    Args:
        family: a key of `FAMILIES`.
        numbers: of the cases.
        seed: of all cases; a case depends on it, the family and its number alone.
        work: folder below which the workspace is made.
    """
    from bench.fuzz.projects import Workspace

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    warnings.simplefilter("ignore")
    module: Any = importlib.import_module(f"bench.fuzz.{FAMILIES[family]}")
    space = Workspace(work / f"{family}-{os.getpid()}")
    os.environ["RATCHET_ROOT"] = str(space.project)
    os.chdir(space.project)
    module.prepare(space)
    space.keep()
    kinds = module.kinds()
    for number, kind in enumerate(kinds):  # what has to be imported is, before anything is timed or cut off
        with contextlib.suppress(Exception):
            module.run(space, kind, random.Random(number))
    for number in numbers:
        rng = random.Random(f"{seed}:{family}:{number}")
        kind = kinds[number % len(kinds)]
        yield Case(family, number, kind, judged(lambda kind=kind, rng=rng: module.run(space, kind, rng)))  # type: ignore[misc]
    os.chdir(ROOT)
    space.remove()


def report(found: Sequence[Case], seed: int) -> None:
    """Print the table, the commonest sentences, and the failures with the command that repeats each."""
    table = Counter((case.family, case.kind, case.outcome.verdict) for case in found)
    lines = [f"{'family':<10}{'of':<24}{'cases':>8}{'accepted':>10}{'refused':>9}{'failed':>8}"]
    groups = sorted({(case.family, case.kind) for case in found})
    for family, kind in [*groups, *((family, "") for family in dict.fromkeys(name for name, _ in groups)), ("", "")]:
        counts = [
            sum(n for (f, k, v), n in table.items() if family in (f, "") and kind in (k, "") and v == verdict)
            for verdict in ("accepted", "refused", "failed")
        ]
        label = f"{family or 'all':<10}{kind or 'all':<24}"
        lines.append(label + f"{sum(counts):>8}{counts[0]:>10}{counts[1]:>9}{counts[2]:>8}")
    said = Counter(_pattern(case.outcome.text) for case in found if case.outcome.verdict == "refused")
    lines += ["", f"{len(said)} kinds of refusals, the commonest:"]
    lines += [f"{count:>7}  {sentence}" for sentence, count in said.most_common(SHOWN)]
    failed = [case for case in found if case.outcome.verdict == "failed"]
    groups_failed: dict[str, list[Case]] = {}
    for case in failed:
        groups_failed.setdefault(_group(case.outcome.text), []).append(case)
    for some in sorted(groups_failed.values(), key=len, reverse=True):
        first = some[0]
        lines.append(f"\nFAILED {len(some)} time(s), first --seed {seed} --family {first.family} --case {first.number}")
        lines.append(f"  {first.kind}: {first.outcome.text[:1200]}")
    sys.stdout.write("\n".join(lines) + "\n")


def _group(failure: str) -> str:
    """What failures of one cause have in common."""
    short = re.sub(r"/[^ :;,'\"]*/|\d+", "", failure)
    last = re.findall(r"\b\w*(?:Error|Exception)\b:.{0,40}", short)
    return last[-1] if last else short[:70]


def _pattern(sentence: str) -> str:
    """A sentence without what differs from case to case."""
    short = re.sub(r"/[^ :;,'\"]*/", "", sentence)
    short = re.sub(r"'[^']*'|\"[^\"]*\"|\([^()]{30,}\)", "'...'", short)
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "N", short)[:230]


if __name__ == "__main__":
    sys.exit(main())
