"""Where DVC keeps the bytes of an output, and how promoted weights outlive `dvc gc`."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from tasks.settings import state_dir

FOLDER_SUFFIX = ".dir"


@dataclass(frozen=True, kw_only=True, slots=True)
class DvcPlaces:
    """The stores of one project."""

    cache: Path
    remote: str | None
    """Address of the default remote without any password, None when there is none."""


def dvc_places(root: Path) -> DvcPlaces:
    """Ask DVC's own configuration, all its levels included.

    Raises:
        BadInput: the configuration cannot be read.
    """
    from dvc.config import Config, ConfigError

    dvc_folder = root / ".dvc"
    try:
        config: dict[str, Any] = Config(str(dvc_folder))
    except ConfigError as error:
        raise BadInput(f"{dvc_folder / 'config'}: {' '.join(str(error).split())}; mend it or restore it") from error
    named = config.get("cache", {}).get("dir")
    default = config.get("core", {}).get("remote")
    url = config.get("remote", {}).get(default, {}).get("url") if default else None
    return DvcPlaces(
        cache=(dvc_folder / named).resolve() if named else dvc_folder / "cache",
        remote=None if url is None else re.sub(r"(://[^/@:]*):[^/@]*@", r"\1@", str(url)),
    )


def object_path(cache: Path, md5: str) -> Path:
    """Return where the cache keeps the object of that hash."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def is_here(places: DvcPlaces, md5: str) -> bool:
    """Tell whether the cache holds an output, or at least the listing of a folder."""
    return object_path(places.cache, md5).is_file()


def output_files(places: DvcPlaces, md5: str, path: str) -> dict[str, str]:
    """List the files of an output with their hashes.

    Args:
        places: the project's stores.
        md5: hash of the output as in dvc.lock.
        path: the output's path; gives the name of a single file.

    Returns:
        md5 by path relative to the output folder.

    Raises:
        BadInput: the cache has no listing of that folder.
    """
    if not md5.endswith(FOLDER_SUFFIX):
        return {Path(path).name: md5}
    listing = object_path(places.cache, md5)
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))
        return {str(entry["relpath"]): str(entry["md5"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: the DVC cache {places.cache} has no readable listing {md5}; `dvc fetch` it or run its stage again"
        ) from error


def remote_has(root: Path, hashes: Iterable[str]) -> bool:
    """Tell whether the default remote holds every one of these objects; False when there is no remote to ask."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_objects.fs.errors import AuthError, ConfigError, RemoteMissingDepsError

    wanted = set(hashes)
    try:
        with Repo(str(root)) as repo:
            store = repo.cloud.get_remote_odb(None, "status", hash_name="md5")
            return wanted <= set(store.oids_exist(sorted(wanted)))
    except (DvcException, OSError, AuthError, ConfigError, RemoteMissingDepsError):
        return False


def keep_weights(root: Path, md5: str, path: str) -> str:
    """Make sure that `dvc gc` cannot take the weights of a version.

    Args:
        root: the project's root.
        md5: hash of the weights' folder.
        path: its path, for messages.

    Returns:
        Where they are safe: "remote", or the folder of hard links.

    Raises:
        BadInput: they are neither in the remote nor whole in the cache.
    """
    places = dvc_places(root)
    kept = state_dir(root) / "keep" / md5.removesuffix(FOLDER_SUFFIX)
    if is_kept(kept, md5):
        return str(kept)
    hashes = [md5, *output_files(places, md5, path).values()]
    if places.remote is not None and remote_has(root, hashes):
        return "remote"
    missing = [name for name in hashes if not object_path(places.cache, name).is_file()]
    if missing:
        raise BadInput(
            f"{path} {md5}: {len(missing)} of {len(hashes)} files are neither in the DVC cache {places.cache} nor "
            "confirmed in the remote; `dvc fetch` them or reproduce the version before it is promoted"
        )
    for name in hashes:
        target = object_path(kept, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _link(object_path(places.cache, name), target)
    (kept / "complete").write_text(md5 + "\n", encoding="utf-8")
    return str(kept)


def is_kept(kept: Path, md5: str) -> bool:
    """Tell whether a folder of kept weights was finished."""
    marker = kept / "complete"
    return marker.is_file() and marker.read_text(encoding="utf-8").strip() == md5


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        temporary = target.with_suffix(".part")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
