"""A project to break things in, and a folder beside it that nothing may touch."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.fuzz.watch import Fault, fingerprint

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("dvc.yaml", "params.yaml", "profiles", "mlflow")
DEEP = "a/b/c/d"
"""The project lies so deep that the few steps up in the paths of command lines end inside the workspace."""


class Workspace:
    """The folder of one family of cases."""

    def __init__(self, folder: Path) -> None:
        """Make a project from this repository's settings, with DVC but without git and data.

        Args:
            folder: a place of its own; what is there is removed.
        """
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder.resolve()
        self.project = self.folder / DEEP / "project"
        self.precious = self.folder / "precious"
        for path in (self.project, self.precious / "inside"):
            path.mkdir(parents=True)
        (self.precious / "inside" / "weights.bin").write_bytes(bytes(range(256)))
        (self.precious / "notes.txt").write_text("nobody may touch this\n")
        line = [sys.executable, "-P", "-m", "dvc", "init", "--no-scm", "--quiet"]
        subprocess.run(line, cwd=self.project, check=True, capture_output=True)
        with (self.project / ".dvc" / "config").open("a") as stream:
            stream.write("    analytics = false\n    site_cache_dir = .ratchet/tmp/dvc\n")
        for name in COPIED:
            source, target = ROOT / name, self.project / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
        self._kept = self.folder / "kept"
        self._guarded = fingerprint(self.precious)

    def keep(self) -> None:
        """Remember the project as it is now, for `restore`."""
        shutil.copytree(
            self.project, self._kept, symlinks=True, ignore=shutil.ignore_patterns(".ratchet", "dvc.lock.d")
        )

    def restore(self) -> None:
        """Take away what a case has left, and put back what it has changed; run-time state stays."""
        _mirror(self._kept, self.project)
        if fingerprint(self.precious) != self._guarded:
            raise Fault("files outside the project were changed")

    def remove(self) -> None:
        """Take the whole folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _mirror(good: Path, place: Path) -> None:
    wanted = {path.name: path for path in good.iterdir()}
    for path in list(place.iterdir()):
        if path.name in wanted or path.name in (".ratchet", ".dvc"):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name, source in wanted.items():
        target = place / name
        if source.is_dir():
            if target.is_symlink() or target.is_file():
                target.unlink()
            target.mkdir(exist_ok=True)
            if name != ".dvc":
                _mirror(source, target)
        elif not target.is_file() or target.is_symlink() or target.read_bytes() != source.read_bytes():
            shutil.rmtree(target, ignore_errors=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(source, target)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one, for the length of the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
