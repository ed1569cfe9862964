"""Checking all settings before anything runs, once for each state of `params.yaml`.

A stage that finds a wrong value itself costs more: the stages before it have run by then, and DVC has taken its old
outputs away. The check loads the recipes, which takes seconds, so a file that has passed is remembered.
"""

import contextlib
import hashlib
from pathlib import Path

import rlhf
from rlhf.config import read_params
from rlhf.outputs import atomic_writer
from tasks.profiles import check
from tasks.settings import GRAPH_FILE, tmp_dir

LAUNCHER = "rlhf.launch"
PASSED = "params-passed"
"""Below .ratchet/tmp: the digest of what passed last."""


def require_valid(root: Path) -> None:
    """Refuse settings that a stage would refuse.

    A project with stages that are not recipes of `rlhf` is left to its own stages.

    Args:
        root: the project.

    Raises:
        BadInput: `params.yaml` cannot be read, or a section or key is unknown, missing, or of the wrong type or range.
    """
    stages = read_params(root / GRAPH_FILE).get("stages")
    blocks = list(stages.values()) if isinstance(stages, dict) else []
    if not blocks or not all(isinstance(block, dict) and LAUNCHER in str(block.get("cmd")) for block in blocks):
        return
    params = read_params(root / "params.yaml")
    passed, digest = tmp_dir(root) / PASSED, _digest(root)
    if passed.is_file() and passed.read_text(encoding="utf-8") == digest:
        return
    check(root, params)
    with contextlib.suppress(OSError), atomic_writer(passed) as stream:  # on a full disk it is checked again
        stream.write(digest)


def _digest(root: Path) -> str:
    """Digest of the settings, of the graph, and of the code that says what is allowed."""
    code = sorted(Path(rlhf.__file__).parent.rglob("*.py"))
    parts = [hashlib.sha256(path.read_bytes()).digest() for path in (root / "params.yaml", root / GRAPH_FILE, *code)]
    return hashlib.sha256(b"".join(parts)).hexdigest()
