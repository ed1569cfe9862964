"""Broken checkpoints: what is loaded is a state that was saved, or nothing."""

import hashlib
import random
import shutil
from typing import Any

from bench.fuzz.model_damage import PICKLE, break_file, break_weights
from bench.fuzz.projects import Workspace, inside
from bench.fuzz.watch import Fault


def state(step: int) -> dict[str, Any]:
    """What a stage saves."""
    import torch

    numbers = torch.arange(600, dtype=torch.float32) * step
    return {
        "step": step, "weights": {"a.b": numbers.view(20, 30), "c": numbers[:3].to(torch.bfloat16)},
        "rng": numbers.to(torch.uint8),
        "rows": [step, 0.5, "text", None, True], "recent": {"loss": 0.25 * step}, "none": None, "empty": {},
    }  # fmt: skip


def checkpoint(space: Workspace, rng: random.Random) -> str | None:
    """One case; see `watch.judged`."""
    from rlhf.checkpoint import Checkpoints

    folder = space.project / ".ratchet/tmp/checkpoints/sft/key"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(space.folder / "good" / "checkpoints", folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    forged = False
    for path in rng.sample(files, rng.randint(1, len(files))):
        break_weights(path, rng) if path.suffix == ".safetensors" and rng.random() < 0.5 else break_file(path, rng)
        if rng.random() < 0.4 and path.is_file() and "-" in path.stem:  # under a name that says that it is whole
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
            forged = True  # whoever can do that can write any state
            path.rename(path.with_name(f"{path.stem.partition('-')[0]}-{digest}{path.suffix}"))
    if rng.random() < 0.2:
        name = rng.choice(
            (
                "000000009-.pt",
                "9.safetensors",
                "x-y.safetensors",
                "ranks-2/0/000000001-x.pt",
                "ranks-0/0/1",
                ".000000003.tmp",
            )
        )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(rng.choice((PICKLE, b"", b"{}")))
    with inside(space.project):
        found = Checkpoints("sft").load()
    if found is not None and not forged and not any(_equal(found, state(step)) for step in (1, 2)):
        raise Fault(f"a state that nobody has saved: {str(found)[:300]}")
    return None


def _equal(found: Any, wanted: Any) -> bool:
    import torch

    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and set(found) == set(wanted)
            and all(_equal(found[key], wanted[key]) for key in wanted)
        )
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    if isinstance(wanted, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.dtype == wanted.dtype and torch.equal(found, wanted)
    return bool(found == wanted) and type(found) is type(wanted)
