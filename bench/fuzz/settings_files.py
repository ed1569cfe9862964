"""Broken settings: params.yaml, profiles, the registry's rules, the graph, its lock and the pointers of data."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import yaml

from bench.fuzz import damage
from bench.fuzz.projects import Workspace
from bench.fuzz.watch import Fault, said, sentence_of

Loader, Dumper = getattr(yaml, "CSafeLoader", yaml.SafeLoader), getattr(yaml, "CSafeDumper", yaml.SafeDumper)
SNIPPETS = (
    "a: &a [*a]", "a: &a {b: *a}", "x: !!python/object/apply:os.system ['touch pwned']", "x: !!binary 'aGk='",
    "<<: *gone",
    "? [a, b]\n: c", "? {a: b}\n: c", "\tx: 1", "seed: 1", "seed: 0x10", "seed: 1_000", "seed: 010", "seed: 1:30",
    "seed: .nan",
    "seed: 2001-01-01", "seed: !!set {a, b}", "---", "...", "--- !!map", "%YAML 9.9", "- item", "'", '"', "|", ">",
    "@x", "`", "x: [",
    "x: {", "x: *", "&", "!", "!!int x", "x: !!float nope", "x: \x07", "\x00", "\u2028", "\ufeff", "ppo:", "ppo: {}",
    "ppo: []",
    "ppo: null", "1: 2", "null: 1", "true: 1", "[]: 1", "x: " + "[" * 3000, "x: " + "{a: " * 3000, "x: 9" + "9" * 5000,
    "x: !!timestamp '99999-99-99'", "sft: &s {a: 1}\nreward: *s", "x: !!omap [a: 1]", "? |\n  long\n: 1",
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
    ),
)  # fmt: skip
"""Lines of YAML that are wrong, sly or bombs."""
LAUNCHERS = ("python", "torchrun", "deepspeed", "bash", "", "python3", "exec", "mpirun")
LAUNCH_WORDS = (
    "-m", "-c", "evil.py", "--nproc-per-node=2", "--nproc-per-node", "0", "-1", "x", "$GONE", "${HOME",
    "--num_gpus=8", "--run-path",
    "'", '"', ";", "&& touch pwned", "$(touch pwned)", "|", "--max-restarts=3", "--nnodes=1:2", "--", "-X", "dev",
    "--module",
    "--hostfile=../x", "\n", "\x1b[31m", "--standalone", "--=", "--nproc_per_node=999999999999999999999", "-u",
    "--no-python", "é",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *(word for word in damage.WORDS if not str(word).startswith("@RAW")), float("nan"), float("inf"), -float("inf"),
    1e-300, -5, 3.7,
    "3e-6", "1e", "yes", "off", "scratch", "../../../precious", "/etc/passwd", "owner/model", "hf_" + "a" * 34,
    [1] * 50,
)  # fmt: skip
ENTRIES = (
    ["plan"], ["plan"], ["plan", "--json"], ["run"], ["run", "--json"], ["status"], ["size"], ["use", "tiny",
    "--dry-run"], ["doctor"],
    ["use", "algorithms/grpo", "--yes"], ["plan", "--until", "sft"], ["plan", "--force", "ppo"], ["accept", "sft",
    "--reason", "x"],
)  # fmt: skip


def _read(text: str) -> Any:
    return yaml.load(text, Loader)


def _written(document: Any, **settings: Any) -> str:
    return str(yaml.dump(document, Dumper=Dumper, **settings))


def kinds() -> list[str]:
    """What is broken."""
    return [
        "params",
        "params",
        "params",
        "params text",
        "launch line",
        "profile",
        "registry",
        "graph",
        "lock",
        "pointer",
    ]


def prepare(space: Workspace) -> None:
    """A project with a lock and tracked data, as after a run on another machine."""
    import os

    # `run` goes as far as the server, which nobody has: all checks before anything starts.
    os.environ["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    raw = space.project / "data" / "raw"
    raw.mkdir(parents=True)
    (raw / "mine.jsonl").write_text('{"prompt": "Q", "chosen": "A", "rejected": "B"}\n')
    (raw / "mine.jsonl.dvc").write_text(_written({"outs": [_item("mine.jsonl")]}))
    stages = _read((space.project / "dvc.yaml").read_text())["stages"]
    params = _read((space.project / "params.yaml").read_text())
    locked = {
        name: {
            "cmd": block["cmd"].strip(),
            "deps": [_item(path) for path in block["deps"]],
            "params": {"params.yaml": {key: params[key] for key in block["params"] if key in params}},
            "outs": [_item(out if isinstance(out, str) else next(iter(out))) for out in block["outs"]],
        }
        for name, block in stages.items()
    }
    (space.project / "dvc.lock").write_text(_written({"schema": "2.0", "stages": locked}, sort_keys=False))


def _item(path: str) -> dict[str, Any]:
    return {"path": path, "hash": "md5", "md5": "d41d8cd98f00b204e9800998ecf8427e", "size": 48}


def run(space: Workspace, kind: str, rng: random.Random) -> str | None:
    """One case; see `watch.judged`."""
    try:
        words = BREAK[kind](space, rng)
        from flows.cli import main

        before = (space.project / "params.yaml").read_bytes()
        refusal = sentence_of(said(lambda: main(["--root", str(space.project), *words])))
        if refusal and (space.project / "params.yaml").read_bytes() != before:
            raise Fault("refused, and params.yaml was changed")
        if (space.project / "pwned").exists():
            raise Fault("a setting was executed")
        if refusal is None:
            _check_accepted(space, words)
        if refusal and refusal.startswith("PREFECT_API_URL"):
            return None  # it went as far as can be
        return refusal
    finally:
        space.restore()


def _check_accepted(space: Workspace, words: list[str]) -> None:
    """What `plan` lets through has the same values for DVC, which records them, and for the stages, which use them."""
    if words[0] not in ("plan", "run"):
        return
    from ruamel.yaml import YAML

    from rlhf.config import read_params

    ours = read_params(space.project / "params.yaml")
    theirs = YAML(typ="safe").load((space.project / "params.yaml").read_text(encoding="utf-8"))
    if json.dumps(ours, sort_keys=True, default=str) != json.dumps(theirs, sort_keys=True, default=str):
        different = [key for key in ours if ours[key] != theirs.get(key)]
        raise Fault(
            f"DVC reads other values than the stages: {[(ours[key], theirs.get(key)) for key in different]}"[:600]
        )


def _params(space: Workspace, rng: random.Random) -> list[str]:
    path = space.project / "params.yaml"
    params = _read(path.read_text())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        what = rng.random()
        section = params.get(rng.choice(list(params)))
        if what < 0.5 and isinstance(section, dict) and section:
            section[rng.choice(list(section))] = copy.deepcopy(rng.choice(VALUES))
        else:
            params, _ = damage.tree(params, rng)
            if not isinstance(params, dict):
                break
    path.write_text(_written(params, allow_unicode=rng.random() < 0.5, sort_keys=False))
    return rng.choice(ENTRIES)


def _params_text(space: Workspace, rng: random.Random) -> list[str]:
    _break_text(space, "params.yaml", rng)
    return rng.choice(ENTRIES)


def _break_text(space: Workspace, name: str, rng: random.Random) -> None:
    path = space.project / name
    data = path.read_bytes()
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.5:
            data, _ = damage.some_bytes(data, rng)
        else:
            lines = data.split(b"\n")
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(SNIPPETS).encode("utf-8", "surrogatepass"))
            data = b"\n".join(lines)
    path.write_bytes(data)


def _break_tree(space: Workspace, name: str, rng: random.Random) -> None:
    if rng.random() < 0.3:
        return _break_text(space, name, rng)
    path = space.project / name
    document = _read(path.read_text())
    for _ in range(rng.choice((1, 1, 2, 4))):
        document, _ = damage.tree(document, rng)
    path.write_text(_written(document, sort_keys=False))
    return None


def _launch(space: Workspace, rng: random.Random) -> list[str]:
    path = space.project / "params.yaml"
    line = " ".join([rng.choice(LAUNCHERS), *rng.choices(LAUNCH_WORDS, k=rng.randint(0, 4))])
    stage = rng.choice(("sft", "ppo", "evaluate", "validate"))
    params = _read(path.read_text())
    params[stage]["launch"] = line
    path.write_text(_written(params, sort_keys=False))
    return rng.choice((["plan"], ["run"], ["size"], ["use", "tiny", "--yes"]))


def _profile(space: Workspace, rng: random.Random) -> list[str]:
    name = rng.choice(("tiny", "algorithms/grpo", "hh-stories", "default", "eight-gpu-8b"))
    if rng.random() < 0.3:
        (space.project / f"profiles/{name}.yaml").write_text(
            f"from: {rng.choice(('tiny', name, '../x', '', '[1]', '3'))}\n"
        )
    else:
        _break_tree(space, f"profiles/{name}.yaml", rng)
    return [
        "use",
        name,
        *rng.choice(([], ["tiny"], ["algorithms/ppo1"])),
        *rng.choice((["--yes"], ["--dry-run"], ["--json"])),
    ]


def _registry(space: Workspace, rng: random.Random) -> list[str]:
    _break_tree(space, "mlflow/registry.yaml", rng)
    return rng.choice(
        (["gate"], ["status"], ["history"], ["promote", "3", "--reason", "x"], ["rollback"], ["publish"], ["report"])
    )


def _graph(space: Workspace, rng: random.Random) -> list[str]:
    _break_tree(space, "dvc.yaml", rng)
    return rng.choice((*ENTRIES, ["report"], ["clean", "--dry-run"]))


def _lock(space: Workspace, rng: random.Random) -> list[str]:
    _break_tree(space, "dvc.lock", rng)
    return rng.choice(
        (
            ["plan"],
            ["status"],
            ["run"],
            ["report"],
            ["publish"],
            ["accept", "sft", "--reason", "x"],
            ["clean", "--dry-run"],
        )
    )


def _pointer(space: Workspace, rng: random.Random) -> list[str]:
    path = space.project / "data/raw/mine.jsonl.dvc"
    if rng.random() < 0.4:
        item = _item(
            rng.choice(
                ("../../x", "/etc/passwd", "../../../../../../../precious/notes.txt", "", ".", "-rf", "a\x1b[2Jb")
            )
        )
        path.write_text(_written({"outs": [item], **rng.choice(({}, {"wdir": "../../.."}, {"wdir": "/"}))}))
    else:
        _break_tree(space, "data/raw/mine.jsonl.dvc", rng)
    return rng.choice((["plan"], ["status"], ["run"], ["doctor"]))


BREAK: dict[str, Callable[[Workspace, random.Random], list[str]]] = {
    "params": _params, "params text": _params_text, "launch line": _launch, "profile": _profile, "registry": _registry,
    "graph": _graph, "lock": _lock, "pointer": _pointer,
}  # fmt: skip
