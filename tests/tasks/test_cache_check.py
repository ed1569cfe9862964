import os
from pathlib import Path

import pytest

from tasks.cache_check import CacheCheck, all_damage, md5_of
from tasks.dvc_store import object_path
from tasks.lock_file import read_lock
from tests.tiny_project import dvc, spoil


def outputs(root: Path) -> dict[str, str]:
    return {path: md5 for stage in read_lock(root).values() for path, md5 in stage.outs.items()}


def cached(root: Path, path: str) -> Path:
    return object_path(root / ".dvc" / "cache", outputs(root)[path])


def test_an_intact_cache_is_hashed_once(finished_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [(path, md5) for path, md5 in outputs(finished_project).items() if not path.startswith("data/")]
    assert all_damage(finished_project, wanted) == []
    hashed: list[Path] = []
    monkeypatch.setattr("tasks.cache_check.md5_of", lambda file: hashed.append(file) or md5_of(file))
    assert all_damage(finished_project, wanted) == []
    assert hashed == []
    assert all_damage(finished_project, wanted, deep=True) == []
    assert len(hashed) == len(wanted) + 1  # `left` is a folder of one file: its listing and that


def test_other_bytes_of_the_same_size_and_age_are_noticed(finished_project: Path) -> None:
    wanted = [("last.txt", outputs(finished_project)["last.txt"])]
    assert all_damage(finished_project, wanted) == []
    place = cached(finished_project, "last.txt")
    before = place.stat()
    spoil(place)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (place.stat().st_size, place.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    (damage,) = all_damage(finished_project, wanted)
    assert (damage.path, damage.objects, damage.total, damage.source) == ("last.txt", (wanted[0][1],), 1, "work tree")
    assert str(damage).startswith("missing or damaged in DVC's cache (its file), `ratchet run` copies")
    dvc(finished_project, "status")  # DVC itself sees nothing


def test_the_work_tree_is_believed_by_its_bytes_only(finished_project: Path) -> None:
    path, md5 = "last.txt", outputs(finished_project)["last.txt"]
    cached(finished_project, path).unlink()
    (finished_project / path).write_text("another text\n")
    (damage,) = all_damage(finished_project, [(path, md5)])
    assert damage.source is None
    assert damage.nowhere
    assert "there is no other copy" in str(damage)


def test_a_lost_listing_of_a_folder_is_written_anew_from_its_files(finished_project: Path) -> None:
    md5 = outputs(finished_project)["left"]
    listing = cached(finished_project, "left").read_bytes()
    cached(finished_project, "left").unlink()
    (damage,) = all_damage(finished_project, [("left", md5)])
    assert (damage.objects, damage.source) == ((md5,), "work tree")
    assert CacheCheck(finished_project).in_work_tree("left", md5)[md5] == listing


def test_the_remote_is_asked_where_there_is_one(finished_project: Path, tmp_path: Path) -> None:
    dvc(finished_project, "remote", "add", "-d", "store", str(tmp_path / "remote"))
    path, md5 = "last.txt", outputs(finished_project)["last.txt"]
    cached(finished_project, path).unlink()
    (finished_project / path).unlink()
    assert [damage.source for damage in all_damage(finished_project, [(path, md5)])] == [None]
    dvc(finished_project, "repro", "-q", "last")
    dvc(finished_project, "push", "-q")
    cached(finished_project, path).unlink()
    (finished_project / path).unlink()
    assert [damage.source for damage in all_damage(finished_project, [(path, md5)])] == ["remote"]
