"""Fine-tuning on two real ranks of ZeRO-3 that loses one goes on to the same bits, and on one process to rounding."""

import shutil
import signal
from pathlib import Path

from bench.rank_trial import Trial, distance

LAUNCH = "torchrun --nproc-per-node=2"
# Weights of 320 x 320 are large enough that ZeRO-3 splits them.
SETTINGS = {"engine": {"zero_stage": 3}, "epochs": 2.0, "hidden": 320, "layers": 1, "learning_rate": 1e-3}


def test_a_lost_rank_costs_no_bit(tmp_path: Path) -> None:
    whole = Trial(tmp_path / "whole", launch=LAUNCH, settings=SETTINGS)
    assert whole.run().code == 0, whole.last_line()

    killed = Trial(tmp_path / "killed", launch=LAUNCH, settings=SETTINGS)
    process = killed.start()
    ended = killed.wait(process, killed.hit(process, rank=1, step=5, signal=signal.SIGKILL))
    assert ended.code == 1
    assert "rank 1 of 2 ended without a word" in ended.last_line
    assert not (killed.folder / "model").exists()
    alone = tmp_path / "alone"
    shutil.copytree(killed.folder, alone)

    assert killed.run().code == 0, killed.last_line()
    assert "resuming from the checkpoint of step" in killed.log()
    assert "rounding" not in killed.log()
    assert distance(whole.folder, killed.folder) == 0.0
    # Nothing is left to resume from.
    assert not list((killed.folder / ".ratchet/tmp/checkpoints/sft").glob("*/ranks-2"))

    one = Trial(alone, launch="python", settings=SETTINGS)
    assert one.run().code == 0, one.last_line()
    assert "which 2 rank(s) wrote, on 1" in one.log()
    assert f"launch was '{LAUNCH}' and is 'python'" in one.log()
    assert 0.0 < distance(whole.folder, alone) < 1e-5
