"""Can the tests fail? Plant small errors in the formulas and the gate, one at a time, and count what the tests notice.

    make mutate
    python -m bench.mutation --only rlhf/masking.py tasks/gate_rules.py

mutmut changes one operator, number, name or argument of a copy of the source and runs the tests that reach the place.
A mutant is killed when a test fails or runs into the time limit. Not planted: the texts of error messages.
The copy lies under .ratchet/tmp/mutation and is made anew by every run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST_SCORE = 0.9
TARGETS = {
    "rlhf/losses/aggregation.py": ("tests/rlhf/losses/test_aggregation",),
    "rlhf/losses/bradley_terry.py": ("tests/rlhf/losses/test_bradley_terry",),
    "rlhf/losses/dpo.py": ("tests/rlhf/losses/test_dpo",),
    "rlhf/losses/kto.py": ("tests/rlhf/losses/test_kto",),
    "rlhf/losses/language_model.py": ("tests/rlhf/losses/test_language_model",),
    "rlhf/losses/policy_gradient.py": ("tests/rlhf/losses/test_policy_gradient",),
    "rlhf/losses/rankings.py": ("tests/rlhf/losses/test_rankings",),
    "rlhf/losses/replaced_tokens.py": ("tests/rlhf/losses/test_replaced_tokens",),
    "rlhf/losses/value.py": ("tests/rlhf/losses/test_value",),
    "rlhf/advantages.py": ("tests/rlhf/test_advantages",),
    "rlhf/kl.py": ("tests/rlhf/test_kl",),
    "rlhf/logprobs.py": ("tests/rlhf/test_logprobs",),
    "rlhf/masking.py": ("tests/rlhf/test_masking",),
    "rlhf/evaluation/paired_tests.py": ("tests/rlhf/evaluation/test_paired_tests",),
    "rlhf/evaluation/sample_size.py": ("tests/rlhf/evaluation/test_sample_size",),
    "tasks/gate_measure.py": ("tests/tasks/test_gate_measure",),
    "tasks/gate_rules.py": ("tests/tasks/test_gate_rules",),
    "tasks/gate_slices.py": ("tests/tasks/test_gate_slices",),
}
"""Source -> beginnings of the names of the test files that are about it."""
COPIED = ("rlhf", "tasks", "flows", "tests", "profiles", "params.yaml", "dvc.yaml", "pyproject.toml")
# Lines of error messages: a raise, and a line that is nothing but text.
NOT_PLANTED = (r"^\s*raise \w+\(", r'^\s*f?".*"\)?,?$')
KILLED = {1, 3, 24, 36, 152, 255, -24, -9, -11}
"""Exit codes of mutmut's children that mean a failed test, a time limit or a crash; 0 is survived, 33 not reached."""


def main() -> int:
    """Plant, test, count; the exit code says whether the score is high enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="FILE", help="sources to change; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at once")
    parser.add_argument("--show", action="store_true", help="print what the survivors changed")
    asked = parser.parse_args()
    targets = {file: tests for file, tests in TARGETS.items() if (ROOT / file).is_file()}
    if asked.only:
        targets = {file: targets[file] for file in asked.only}
    work = ROOT / ".ratchet/tmp/mutation"
    copy_tree(work)
    write_settings(work, targets)
    mutmut = [sys.executable, "-m", "mutmut"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    ended = subprocess.run([*mutmut, "run", "--max-children", str(asked.jobs)], cwd=work, env=env, check=False)
    if ended.returncode:
        say(f"mutmut ended with exit code {ended.returncode}")
        return ended.returncode
    results = {file: read_results(work, file) for file in targets}
    say(table(results))
    survivors = sorted(name for codes in results.values() for name, code in codes.items() if code not in KILLED)
    for name in survivors:
        say(f"survived: {name}")
        if asked.show:
            shown = subprocess.run([*mutmut, "show", name], cwd=work, env=env, stdout=subprocess.PIPE, check=True)
            say("\n".join(line for line in shown.stdout.decode().splitlines() if re.match(r"[-+] ", line)))
    score = share([code for codes in results.values() for code in codes.values()])
    if score < LEAST_SCORE:
        say(f"the tests notice {score:.1%} of the mutants, wanted {LEAST_SCORE:.0%}")
        return 1
    return 0


def say(text: str) -> None:
    """Print."""
    sys.stdout.write(f"{text}\n")


def copy_tree(work: Path) -> None:
    """A fresh copy: results of an earlier run say nothing about sources and tests of today."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, work / name)
    for file in TARGETS:
        if (work / file).is_file():
            (work / file).write_text(undecorated((work / file).read_text(encoding="utf-8")), encoding="utf-8")


def undecorated(text: str) -> str:
    """Source with `@torch.no_grad()` applied at its end instead, since mutmut leaves decorated functions alone."""
    names = re.findall(r"^@torch\.no_grad\(\)\ndef (\w+)\(", text, flags=re.MULTILINE)
    plain = re.sub(r"^@torch\.no_grad\(\)\n(?=def )", "", text, flags=re.MULTILINE)
    return plain + "".join(f"\n{name} = torch.no_grad()({name})\n" for name in names)


def write_settings(work: Path, targets: Mapping[str, Sequence[str]]) -> None:
    """Tell mutmut what to change and which tests to run."""
    tests = sorted(
        str(file.relative_to(ROOT))
        for beginnings in targets.values()
        for beginning in beginnings
        for file in (ROOT / beginning).parent.glob(f"{Path(beginning).name}*.py")
    )
    settings = {
        "source_paths": ["rlhf", "tasks"],
        "only_mutate": list(targets),
        "also_copy": ["flows", "profiles", "params.yaml", "dvc.yaml"],
        "do_not_mutate_patterns": list(NOT_PLANTED),
        "pytest_add_cli_args_test_selection": tests,
        "process_isolation": "forkserver",  # torch does not survive every fork of a process that has used it
        "timeout_constant": 20.0,
    }
    # A JSON value of these kinds is a TOML value, too.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (work / "pyproject.toml").write_text(text + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n", encoding="utf-8")


def read_results(work: Path, file: str) -> dict[str, int | None]:
    """Mutants of a source and the exit codes of their tests."""
    meta = work / "mutants" / f"{file}.meta"
    return dict(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]) if meta.is_file() else {}


def table(results: Mapping[str, Mapping[str, int | None]]) -> str:
    """Markdown: one row for each source and one for all."""
    rows = ["| source | mutants | killed | survived | score |", "|---|---|---|---|---|"]
    everything = [code for codes in results.values() for code in codes.values()]
    for name, codes in [*((file, list(codes.values())) for file, codes in results.items()), ("all", everything)]:
        killed = Counter(code in KILLED for code in codes)
        rows.append(f"| {name} | {len(codes)} | {killed[True]} | {killed[False]} | {share(codes):.1%} |")
    return "\n".join(rows)


def share(codes: Sequence[int | None]) -> float:
    """Share of mutants that were killed; 1 where there is none."""
    return sum(code in KILLED for code in codes) / len(codes) if codes else 1.0


if __name__ == "__main__":
    sys.exit(main())
