"""One round: what is drawn from the seed, when it strikes, and what came of it."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.chaos.arena import Arena, Attempt
from bench.chaos.checks import faults_of, left_behind
from bench.chaos.faults import FAULTS, NEEDS_DISK, REPEATABLE
from bench.chaos.tracking_server import MlflowServer

AGAIN = 0.25
"""How often the second run of a round is struck, too."""
BEGIN_SECONDS = 5.0
FINISH_SECONDS = 8.0
COLUMNS = ("seed", "round", "commit", "ranks", "fault", "state", "moment", "told", "runs", "seconds", "verdict")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """An instant of a run."""

    stage: str
    """A stage, whose start counts; "begin", that of the command; "finish", the end of the last stage."""
    delay: float
    """Seconds."""

    def __str__(self) -> str:
        """For people."""
        return f"{self.stage}+{self.delay:.2f}s"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a round is to do."""

    seed: int
    number: int
    state: str
    blows: tuple[tuple[str, Moment], ...]
    rng: random.Random


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What a round did."""

    seed: int
    round: int
    commit: str
    ranks: int
    fault: str
    state: str
    moment: str
    told: str
    runs: int
    seconds: float
    verdict: str
    """"well", or everything that was not."""


def draw(seed: int, number: int, arena: Arena, *, only: Sequence[str] | None = None) -> Case:
    """Draw a round from its seed and number, independent of all other rounds.

    Args:
        seed: of the whole series.
        number: of the round.
        arena: where it will be played: how long its stages take, and what it can do.
        only: faults to draw from.
    """
    rng = random.Random(f"{seed}:{number}")
    names = list(only or FAULTS)
    names = [name for name in names if arena.own_disk or name not in NEEDS_DISK]
    names = [name for name in names if arena.ranks > 1 or name != "kill_rank"]
    fault, state = rng.choice(names), rng.choice(list(arena.depths))
    if fault == "kill_rank":  # nothing else runs on several
        state = rng.choice(("nothing", "data", "sft"))
    blows = [(fault, _moment(rng, state, arena, stage="reward" if fault == "kill_rank" else None))]
    if rng.random() < AGAIN:
        blows.append((rng.choice(REPEATABLE), _moment(rng, state, arena)))
    return Case(seed=seed, number=number, state=state, blows=tuple(blows), rng=rng)


def _moment(rng: random.Random, state: str, arena: Arena, stage: str | None = None) -> Moment:
    stage = stage or rng.choice(("begin", *arena.missing(state), *arena.missing(state), "finish"))
    longest = {"begin": BEGIN_SECONDS, "finish": FINISH_SECONDS}.get(stage, arena.seconds.get(stage, 1.0))
    return Moment(stage=stage, delay=rng.uniform(0.0, longest))


def play(arena: Arena, case: Case, commit: str) -> Row:
    """Play a round."""
    started, wrong, told = time.monotonic(), [], []
    arena.restore(case.state)
    server = MlflowServer(arena) if case.blows[0][0] == "kill_mlflow_server" else None
    if server:
        server.start()
    arena.server, arena.variables = server, dict(server.variables) if server else {}
    try:
        for name, moment in case.blows:
            struck, found = _blow(arena, name, moment, case.rng)
            told.append(struck)
            wrong += found
        last = arena.run()
        if last.wait() != 0:
            wrong.append(f"the run after the fault ended with {last.code}: {last.said()[-600:]}")
        wrong += left_behind(arena) or []
        wrong += faults_of(arena) if last.code == 0 else []
    except Exception as error:  # whatever went wrong is the round's result, and the next is played
        wrong.append(f"{type(error).__name__}: {error}")
    finally:
        arena.kill_everything()
        if server:
            server.kill()
    return Row(
        seed=case.seed, round=case.number, commit=commit, ranks=arena.ranks,
        fault=case.blows[0][0], state=case.state, moment=", ".join(str(moment) for _, moment in case.blows),
        told="; ".join(told), runs=len(case.blows) + 1, seconds=round(time.monotonic() - started, 1),
        verdict=" | ".join(_without_place(one, arena) for one in wrong) or "well",
    )  # fmt: skip


def _without_place(text: str, arena: Arena) -> str:
    """One line without the folder of this machine that the arena lies in."""
    return " ".join(text.split()).replace(str(arena.root), "PROJECT").replace(str(arena.folder), "FOLDER")


def _blow(arena: Arena, name: str, moment: Moment, rng: random.Random) -> tuple[str, list[str]]:
    """Start a run, strike it, wait for its end, take the fault away; returns what happened and what was wrong."""
    attempt = arena.run()
    if not reached(arena, attempt, moment):
        code = attempt.wait()
        return f"{name} came too late", [] if code == 0 else [f"undisturbed, it ended with {code}: {attempt.said()}"]
    struck = FAULTS[name](arena, attempt, rng)
    wrong = list(struck.wrong)
    try:
        if attempt.wait() is None:
            wrong.append(f"{struck.told}: the run hangs: {attempt.said()[-300:]}")
            attempt.process.kill()
            attempt.process.wait()
        elif "Traceback" in attempt.said():
            wrong.append(f"{struck.told}: a traceback: {attempt.said()[-500:]}")
    finally:
        struck.undo()
    return struck.told, wrong + left_behind(arena)


def reached(arena: Arena, attempt: Attempt, moment: Moment) -> bool:
    """Wait for an instant of a run; False when the run ends before it."""
    begun: float | None = attempt.started
    if moment.stage != "begin":
        begun = _stage_begun(arena, attempt, arena.steps[-1] if moment.stage == "finish" else moment.stage)
        if moment.stage == "finish" and begun is not None:
            begun = _stage_over(arena, attempt, arena.steps[-1])
    while begun is not None and time.monotonic() < begun + moment.delay and not attempt.over():
        time.sleep(0.005)
    return begun is not None and not attempt.over()


def _stage_begun(arena: Arena, attempt: Attempt, stage: str) -> float | None:
    while not attempt.over():
        if arena.find(lambda words, _: "rlhf.launch" in words and stage in words and "dvc" not in words):
            return time.monotonic()
        time.sleep(0.03)
    return None


def _stage_over(arena: Arena, attempt: Attempt, stage: str) -> float | None:
    while not attempt.over():
        if not arena.find(lambda words, _: "rlhf.launch" in words and stage in words):
            return time.monotonic()
        time.sleep(0.03)
    return None
