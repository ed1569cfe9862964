"""Every training stage, killed again and again at seeded random writes, ends with the bytes of an uninterrupted run.

Among the instants are those between the writing of a checkpoint and its renaming, those of the final outputs, and that
at which the checkpoints of a finished stage are removed. Stages are real processes, killed by SIGKILL.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rlhf.interrupted_stage import KINDS, Ended, Trial, pick

TRAINING = r"^\w+ \.ratchet/tmp/(checkpoints|live)/"
RENAME = r"^rename \.ratchet/tmp/checkpoints/.*\.tmp$"
OUTPUT = r"^\w+ out/"
CLEAR = r"^(rename|rmtree) \.ratchet/tmp/checkpoints/\w+/(\w{16}|\.\w+\.gone)$"
KILLS = {
    "sft": (TRAINING, RENAME, CLEAR), "reward": (TRAINING, OUTPUT, CLEAR), "judge": (RENAME,),
    "ppo": (TRAINING, RENAME, OUTPUT), "dpo": (TRAINING, OUTPUT), "kto": (RENAME,),
}  # fmt: skip


def ordeal(folder: Path, kind: str, seed: int) -> tuple[Trial, Trial, list[Ended]]:
    """An uninterrupted run, one that is killed at each of its instants, and how the attempts of the latter ended."""
    whole, killed = (Trial(folder / f"{kind}-{name}", kind) for name in ("whole", "killed"))
    ended, draws = whole.run(), random.Random(seed)
    assert ended.code == 0, ended.said
    attempts = []
    for pattern in KILLS[kind]:
        instant = pick(draws, ended.events, pattern)
        if attempts:
            instant["count"] = 1 + instant["count"] // 4  # fewer steps are left each time
        attempts.append(killed.run(**instant))
    attempts.append(killed.run())
    return whole, killed, attempts


@pytest.fixture(scope="module")
def ordeals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trial, Trial, list[Ended]]]:
    folder = tmp_path_factory.mktemp("ordeals")
    with ThreadPoolExecutor(2) as pool:
        running = {kind: pool.submit(ordeal, folder, kind, seed) for seed, kind in enumerate(KINDS)}
        return {kind: one.result() for kind, one in running.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_that_is_killed_anywhere_ends_with_the_same_bytes(
    ordeals: dict[str, tuple[Trial, Trial, list[Ended]]], kind: str
) -> None:
    whole, killed, attempts = ordeals[kind]
    told = [f"{ended.code} {ended.events[-1] if ended.events else 'nothing written'}" for ended in attempts]
    assert [ended.code for ended in attempts[:-1]] == [-9] * (len(attempts) - 1), told
    assert attempts[-1].code == 0, attempts[-1].said
    assert any("resuming from the checkpoint of step" in ended.said for ended in attempts)
    assert killed.written() == whole.written()
    assert killed.live() == whole.live()
    assert whole.checkpoints() == killed.checkpoints() == []


def test_other_parameters_never_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "sft", "sft")
    assert trial.run(at=RENAME, count=4).code == -9
    left = trial.checkpoints()
    trial.tell(learning_rate=1e-3)
    other = trial.run(at=RENAME, count=2)
    assert other.code == -9
    assert "resuming" not in other.said
    assert {file.parent for file in trial.checkpoints()} > {file.parent for file in left}
    trial.tell()
    again = trial.run(at=RENAME)
    assert again.code == -9
    assert "resuming from the checkpoint of step 3" in again.said
