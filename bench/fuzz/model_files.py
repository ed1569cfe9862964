"""Broken checkpoints and model folders through what loads them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.fuzz.checkpoint_states import checkpoint, state
from bench.fuzz.model_damage import PICKLE, WEIGHTS, break_file, break_weights
from bench.fuzz.projects import Workspace, inside
from bench.fuzz.watch import Fault, said, sentence_of

SIZES = (0, 1, -1, 3, 7, 17, 10**9, 2**40, 0.5, "16", None, [16])


def kinds() -> list[str]:
    """What is broken."""
    return [
        "checkpoint",
        "checkpoint",
        "weights",
        "config",
        "tokenizer",
        "reward model",
        "model folder",
        "ingested model",
    ]


def prepare(space: Workspace) -> None:
    """A very small policy, a reward model of it, and the checkpoints of two steps."""
    import torch

    from rlhf.checkpoint import KEY_VARIABLE, Checkpoints
    from rlhf.models import build_policy, save_policy
    from rlhf.reward_model import RewardModel
    from rlhf.tokenizer import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["where is order 202"] * 3, vocab_size=270)
    policy = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=16, context=32)
    save_policy(policy, tokenizer, space.folder / "good" / "policy")
    RewardModel.from_policy(space.folder / "good" / "policy", **_reward_settings()).save(
        space.folder / "good" / "reward", tokenizer
    )
    os.environ[KEY_VARIABLE] = "key"
    with inside(space.project):
        checkpoints = Checkpoints("sft", every_seconds=0.0)
        for step in (1, 2):
            checkpoints.save(step, state(step))
        if checkpoints.folder is None:
            raise Fault("no folder of checkpoints")
        shutil.move(checkpoints.folder, space.folder / "good" / "checkpoints")


def _reward_settings() -> dict[str, Any]:
    return {"pooling": "last", "scale": 1.0, "device": "cpu"}


def run(space: Workspace, kind: str, rng: random.Random) -> str | None:
    """One case; see `watch.judged`."""
    try:
        return BREAK[kind](space, rng)
    finally:
        if any(path.name == "pwned" for path in (*space.project.iterdir(), *space.folder.iterdir())):
            (space.project / "pwned").unlink(missing_ok=True)
            raise Fault("a pickle was executed")
        shutil.rmtree(space.folder / "case", ignore_errors=True)
        space.restore()


def _copy(space: Workspace, name: str) -> Path:
    target = space.folder / "case" / name
    shutil.copytree(space.folder / "good" / name, target)
    return target


def _use_policy(folder: Path) -> None:
    """Load a policy as `sft`, `ppo` and `chat` do, and take one step with it."""
    import torch

    from rlhf.models import fit_vocabulary, forbidden_ids, load_policy
    from rlhf.tokenizer import encode_prompt, load_tokenizer, stop_ids

    tokenizer = load_tokenizer(folder)
    policy = load_policy(folder, device="cpu")
    fit_vocabulary(policy, tokenizer)
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "where is order 202"}])
    stop_ids(tokenizer, policy), forbidden_ids(tokenizer, policy)
    with torch.no_grad():
        logits = policy(torch.tensor([ids[:8] or [0]])).logits
    if logits.dtype != torch.float32:
        raise Fault(f"weights of {logits.dtype}")


def _weights(space: Workspace, rng: random.Random) -> str | None:
    folder = _copy(space, "policy")
    break_weights(folder / WEIGHTS, rng)
    _use_policy(folder)
    return None


def _config(space: Workspace, rng: random.Random) -> str | None:
    folder = _copy(space, "policy")
    path = folder / rng.choice(("config.json", "config.json", "generation_config.json"))
    config = json.loads(path.read_text())
    if rng.random() < 0.5:
        name = rng.choice([key for key, value in config.items() if isinstance(value, (int, float, str))] or ["x"])
        config[name] = rng.choice((*SIZES, "nothing-known", "gpt2", "bert"))
        path.write_text(json.dumps(config))
    else:
        break_file(path, rng)
    if rng.random() < 0.2:
        auto = {"auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}, "model_type": "evil"}
        shutil.rmtree(folder / "config.json", ignore_errors=True)  # a folder, where it was broken so
        (folder / "evil.py").write_text("import os\nos.system('touch pwned')\n")
        (folder / "config.json").write_text(
            json.dumps({**json.loads((space.folder / "good/policy/config.json").read_text()), **auto})
        )
    _use_policy(folder)
    return None


def _tokenizer(space: Workspace, rng: random.Random) -> str | None:
    folder = _copy(space, "policy")
    names = [path.name for path in sorted(folder.iterdir()) if "token" in path.name or path.suffix == ".jinja"]
    path = folder / rng.choice(names)
    if path.suffix == ".jinja" and rng.random() < 0.8:
        path.write_text(rng.choice(TEMPLATES))
    else:
        break_file(path, rng)
    _use_policy(folder)
    return None


TEMPLATES = (
    "{{", "{% for x in messages %}", "{{ 1 / 0 }}", "{{ messages.__class__.__mro__ }}",
    "{{ raise_exception('no system') }}", "",
    "{{ ''.__class__.__base__.__subclasses__() }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ gone.field }}",
    "\x00", "{{ messages[9] }}",
    "{% include '/etc/passwd' %}", "{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}", "x" * 10_000,
    "{{ messages | gone }}",
)  # fmt: skip


def _reward(space: Workspace, rng: random.Random) -> str | None:
    from rlhf.reward_model import RewardModel

    folder = _copy(space, "reward")
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    break_weights(path, rng) if path.name == WEIGHTS else break_file(path, rng)
    if rng.random() < 0.3:
        break_file(folder / "reward.json", rng)
    RewardModel.load(folder, device="cpu")
    return None


def _folder(space: Workspace, rng: random.Random) -> str | None:
    folder = _copy(space, "policy")
    what = rng.choice(("gone", "pickle", "shard", "index", "link", "empty", "names", "mixed"))
    if what == "gone":
        rng.choice(sorted(folder.iterdir())).unlink()
    elif what == "pickle":
        (folder / WEIGHTS).unlink()
        (folder / rng.choice(("pytorch_model.bin", "model.pt", "model.safetensors"))).write_bytes(PICKLE)
    elif what == "shard":
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    elif what == "index":
        weights = rng.choice(
            (
                {},
                {"lm_head.weight": "../../good/policy/model.safetensors"},
                {"x": "/etc/passwd"},
                [],
                {"x": 3},
                {"x": "gone"},
            )
        )
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        text = json.dumps(rng.choice(({"weight_map": weights, "metadata": {}}, weights, {"weight_map": weights})))
        (folder / "model.safetensors.index.json").write_text(text)
    elif what == "link":
        path = folder / rng.choice((WEIGHTS, "config.json", "tokenizer.json"))
        path.unlink()
        path.symlink_to(rng.choice(("gone", "/etc/passwd", ".", path.name)))
    elif what == "empty":
        rng.choice(sorted(folder.iterdir())).write_bytes(b"")
    elif what == "names":
        break_weights(folder / WEIGHTS, rng)
    else:
        shutil.copyfile(space.folder / "good/reward" / WEIGHTS, folder / WEIGHTS)
    _use_policy(folder)
    return None


def _ingested(space: Workspace, rng: random.Random) -> str | None:
    from bench.fuzz.data_files import quick_pointer
    from flows.cli import main

    folder = _copy(space, "policy")
    path = rng.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    break_weights(path, rng) if path.name == WEIGHTS else break_file(path, rng)
    with quick_pointer(real=False):
        words = ["--root", str(space.project), "ingest", "--model", str(folder), "--as", "case"]
        refusal = sentence_of(said(lambda: main(words)))
    there = space.project / "data" / "base" / "case"
    if (refusal is None) != there.is_dir():
        raise Fault("refused and there, or accepted and not there")
    return refusal


BREAK: dict[str, Callable[[Workspace, random.Random], str | None]] = {
    "checkpoint": checkpoint, "weights": _weights, "config": _config, "tokenizer": _tokenizer, "reward model": _reward,
    "model folder": _folder, "ingested model": _ingested,
}  # fmt: skip
