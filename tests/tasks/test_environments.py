import hashlib
import json
import shutil
from importlib import metadata
from pathlib import Path

from rlhf.environment_record import write_record
from tasks.dvc_store import object_path
from tasks.environments import (
    FOLDER,
    differing,
    environment_tags,
    environments,
    pins_that_differ,
    stage_environment,
)
from tasks.lock_file import LockedStage

METRICS = "data/metrics/sft.json"


def locked(root: Path, weights: str = "w", **outs: str) -> LockedStage:
    """A lock entry, and the listing of its model in the cache."""
    listing = json.dumps([{"md5": md5(weights), "relpath": "model.safetensors"}])
    name = f"{md5(listing)}.dir"
    place = object_path(root / ".dvc" / "cache", name)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(listing)
    return LockedStage(name="sft", cmd="x", outs={METRICS: md5("m"), "data/models/sft": name, **outs})


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def test_a_record_belongs_to_the_output_that_it_names(tmp_path: Path) -> None:
    for path, text in ((METRICS, "m"), ("data/models/sft/model.safetensors", "w"), ("input.csv", "i")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    wrote = [Path(METRICS), Path("data/models/sft"), Path("input.csv")]
    path = write_record("sft", wrote, key="ab", root=tmp_path)
    assert path is not None
    assert path.parent == tmp_path / FOLDER / "sft"
    found = stage_environment(tmp_path, locked(tmp_path))
    assert found is not None
    assert found["key"] == "ab"
    # The same metrics of other weights, as another processor may give them, are another output.
    assert stage_environment(tmp_path, locked(tmp_path, weights="v")) is None
    assert stage_environment(tmp_path, locked(tmp_path, **{METRICS: "0" * 32})) is None
    lineage = {"sft": locked(tmp_path), "reward": LockedStage(name="reward", cmd="x")}
    assert environments(tmp_path, lineage) == {"sft": found, "reward": None}
    # Without the listing the small files have to do.
    shutil.rmtree(tmp_path / ".dvc")
    entry = LockedStage(name="sft", cmd="x", outs={METRICS: md5("m"), "data/models/sft": f"{'0' * 32}.dir"})
    assert stage_environment(tmp_path, entry) == found
    path.write_text("{")
    assert stage_environment(tmp_path, entry) is None
    path.write_text(json.dumps({"outputs": {"input.csv": md5("i")}}))
    assert stage_environment(tmp_path, entry) is None


def test_what_differs_is_named_on_both_sides_and_ties_do_not_count() -> None:
    old = {
        "key": "a",
        "cpu": "X",
        "torch": "1",
        "threads": 1,
        "settings": {"OMP_A": "1"},
        "instructions": ["avx", "fma"],
    }
    new = {"key": "b", "cpu": "X", "torch": "2", "settings": {"OMP_B": "2"}, "instructions": ["avx", "avx2"]}
    assert differing(old, new) == {
        "threads": (1, None),
        "torch": ("1", "2"),
        "OMP_A": ("1", None),
        "OMP_B": (None, "2"),
        "instructions": ("fma", "avx2"),
    }
    assert differing(old, {**old, "key": "b"}) == {}
    assert differing(None, new) == {} == differing(old, None)


def test_tags_hold_the_main_facts() -> None:
    found = environment_tags({"cpu": "X", "threads": 2, "gpus": ["A", "A"], "cuda": None, "libc": "glibc"})
    assert found == {"ratchet.env.cpu": "X", "ratchet.env.threads": "2", "ratchet.env.gpus": "A, A"}
    assert environment_tags(None) == {}


def test_pins_are_compared_with_what_is_installed() -> None:
    numpy, torch = metadata.version("numpy"), metadata.version("torch").partition("+")[0]
    lines = ("# pins", f"numpy=={numpy}", f"torch=={torch}  # cpu", "pandas==0.1", "nobody-has-this==1.0")
    text = "\n".join((*lines, "x==1; sys_platform == 'win32'", "loose>=1"))
    assert pins_that_differ(text) == {"pandas": ("0.1", metadata.version("pandas")), "nobody-has-this": ("1.0", None)}
