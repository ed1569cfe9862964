"""What happens when a rank is lost: killed or hung, with every ZeRO stage, then resumed on as many ranks and on others.

    python -m bench.ranks [--zero 0 1 2 3] [--out .ratchet/tmp/bench/ranks]

Prints a table and fails when a rank that is lost is not named, when a resume on as many ranks does not give the bits of
an uninterrupted run, or when one on another number of ranks differs by more than rounding.
"""

import argparse
import json
import shutil
import signal
import time
from pathlib import Path

from bench.harness import markdown, say
from bench.rank_trial import Ended, Trial, distance

ONE, TWO, DEEPSPEED = "python", "torchrun --nproc-per-node=2", "deepspeed --num_gpus 2"
STEP = 20
"""The blow falls when so many of the 48 steps are saved."""
TOLERANCE = 1e-5
TIMEOUT_S = 10.0
HEAD = ("what", "exit code", "s from blow to end", "s of the resumed run", "largest difference of a weight")
LOST = {signal.SIGKILL: "rank 1 of 2 ended without a word", signal.SIGSTOP: "rank 1 of 2 did not answer within"}


def check(ended: Ended, *, code: int = 0, words: str = "") -> Ended:
    """Fail when a stage did not end as it should."""
    if ended.code != code or words not in ended.last_line:
        raise SystemExit(f"ended with {ended.code} ({ended.last_line!r}), wanted {code} and {words!r}")
    return ended


def strike(trial: Trial, number: signal.Signals) -> Ended:
    """Start the stage, hit its second rank, and wait for the end."""
    process = trial.start()
    since = trial.hit(process, rank=1, step=STEP, signal=number)
    return check(trial.wait(process, since), code=1, words=LOST[number])


def resumed(trial: Trial, name: str, *, launch: str, whole: Path, zero: int, exact: bool = False) -> list[str]:
    """Go on from a copy of what a stage left, under the same launch line (then exactly) or another."""
    folder = trial.folder.with_name(f"{trial.folder.name}-{name}")
    shutil.copytree(trial.folder, folder)
    copy = Trial(folder, launch=launch, settings={"engine": {"zero_stage": zero, "timeout_s": TIMEOUT_S}})
    ended = check(copy.run())
    if "resuming from the checkpoint" not in copy.log() or ("to rounding only" in copy.log()) == exact:
        raise SystemExit(f"{folder}: the log does not say that it resumed, or how exactly")
    far = distance(whole, folder)
    if far > (0.0 if exact else TOLERANCE):
        raise SystemExit(f"{folder}: a weight differs by {far:.1e} from the uninterrupted run")
    return ["0", "-", f"{ended.seconds:.0f}", f"{far:.1e}" if far else "0"]


def lost(out: Path, zero: int) -> list[list[str]]:
    """A killed rank and a stopped one under torchrun, and the resumes of the former."""
    settings = {"engine": {"zero_stage": zero, "timeout_s": TIMEOUT_S}}
    whole = Trial(out / f"whole-{zero}", launch=TWO, settings=settings)
    rows = [[f"ZeRO-{zero}, undisturbed", "0", "-", f"{check(whole.run()).seconds:.0f}", "-"]]
    killed = Trial(out / f"killed-{zero}", launch=TWO, settings=settings)
    ended = strike(killed, signal.SIGKILL)
    rows.append([f"ZeRO-{zero}, killed", str(ended.code), f"{ended.seconds:.1f}", "-", "-"])
    found = resumed(killed, "two", launch=TWO, whole=whole.folder, zero=zero, exact=True)
    rows.append([f"ZeRO-{zero}, resumed on two ranks", *found])
    found = resumed(killed, "one", launch=ONE, whole=whole.folder, zero=zero)
    rows.append([f"ZeRO-{zero}, resumed on one process", *found])
    ended = strike(Trial(out / f"hung-{zero}", launch=TWO, settings=settings), signal.SIGSTOP)
    rows.append([f"ZeRO-{zero}, hung (timeout_s {TIMEOUT_S:g})", str(ended.code), f"{ended.seconds:.1f}", "-", "-"])
    return rows


def grown(out: Path, zeros: list[int]) -> list[list[str]]:
    """One process is killed, and two ranks go on."""
    whole, killed = Trial(out / "whole-alone", launch=ONE), Trial(out / "killed-alone", launch=ONE)
    rows = [["one process, undisturbed", "0", "-", f"{check(whole.run()).seconds:.0f}", "-"]]
    process = killed.start()
    while killed.saved(0, world=1) < STEP:
        time.sleep(0.005)
    process.kill()
    process.wait()
    for zero in zeros:
        found = resumed(killed, f"z{zero}", launch=TWO, whole=whole.folder, zero=zero)
        rows.append([f"one process, resumed on two ranks of ZeRO-{zero}", *found])
    return rows


def by_deepspeed(out: Path) -> list[str]:
    """The deepspeed launcher loses a rank."""
    ended = strike(Trial(out / "killed-deepspeed", launch=DEEPSPEED), signal.SIGKILL)
    return ["ZeRO-2 under the deepspeed launcher, killed", str(ended.code), f"{ended.seconds:.1f}", "-", "-"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path(".ratchet/tmp/bench/ranks"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    rows = []
    for zero in arguments.zero:
        rows += lost(arguments.out, zero)
        say(markdown(HEAD, rows[-5:]))
    rows += grown(arguments.out, arguments.zero)
    rows.append(by_deepspeed(arguments.out))
    (arguments.out / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    say(markdown(HEAD, rows))


if __name__ == "__main__":
    main()
