"""From what a person types to the commit, the stage and the recorded hashes of a registered version."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from tasks.commit_sources import source_differences
from tasks.environments import Environment
from tasks.git import commit_of, git, inside_git, read_blobs, remote_of
from tasks.live_run import OUTPUT, STAGE
from tasks.lock_file import LOCK_FILE, LockedStage, lineage, parse_lock
from tasks.mlflow_store import StoreUnreachable, connect, sqlite_file, translated
from tasks.registry_config import RegistryConfig, load_registry_config
from tasks.settings import tracking_uri
from tasks.snapshot import TAGS
from tasks.stage_outputs import MODELS
from tasks.version_commit import COMMIT, version_record

REFERENCE = re.compile(r"(?:refs/tags/)?(?:ratchet/)?(?P<name>[^/@]+)(?:@(?P<alias>[\w-]+)|/[vV]?(?P<number>\d+))")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One version, and all that its commit says about it."""

    name: str
    number: str
    commit: str
    stage: str
    output_md5: str
    lock: Mapping[str, LockedStage]
    """Entries of the stage and of all before it."""
    environments: Mapping[str, Environment | None]
    notes: tuple[str, ...] = field(default=())
    """What a person should know before believing a comparison."""

    @property
    def reference(self) -> str:
        """How one names it to a command."""
        return f"{self.name}/{self.number}"


def find_target(root: Path, reference: str) -> Target:
    """Find a version: by the registry where it can be reached, else by its git tag alone.

    Args:
        root: the project's root.
        reference: policy@champion, policy/3, policy/v3, reward-model/2, or a tag such as ratchet/policy/v3.

    Raises:
        BadInput: there is no such version, its commit is nowhere, or the commit does not tell of it.
    """
    config = load_registry_config(root)
    match = REFERENCE.fullmatch(reference)
    named = (match["name"], config.prefix + match["name"]) if match else ()
    name = next((one for one in named if one in config.names), None)
    if match is None or name is None:
        raise BadInput(
            f"{reference!r} is no version: wanted {config.policy}@champion, {config.policy}/3, or a tag such as "
            f"ratchet/{config.policy}/v3; registered names are {', '.join(config.names)}"
        )
    if not inside_git(root):
        raise BadInput(f"{root}: is no git repository, so no version has a commit; versions made in one can be rebuilt")
    notes: list[str] = []
    number, tags = _registered(root, name, match["number"], match["alias"], notes)
    commit = _commit(root, name, number, tags, notes)
    return _described(root, name, number, commit, tags, notes)


def tagged_versions(root: Path, config: RegistryConfig) -> dict[tuple[str, str], str]:
    """List the versions that have a tag here, as (name, number) -> commit."""
    found = {}
    for line in git(root, "for-each-ref", "--format=%(refname) %(objectname)", TAGS).splitlines():
        ref, commit = line.split()
        name, _, number = ref.removeprefix(f"{TAGS}/").rpartition("/v")
        if name in config.names and number.isdecimal():
            found[name, number] = commit
    return found


def version_lock(root: Path, commit: str) -> dict[str, LockedStage]:
    """Read the lock file of a commit; empty when it has none."""
    blob = read_blobs(root, commit, [LOCK_FILE]).get(LOCK_FILE)
    return parse_lock(blob, f"{LOCK_FILE} of commit {commit[:12]}") if blob else {}


def _registered(
    root: Path, name: str, number: str | None, alias: str | None, notes: list[str]
) -> tuple[str, Mapping[str, str]]:
    """Ask the registry for number and tags; without one the number has to do."""
    local = sqlite_file(tracking_uri(root))
    try:
        if local is not None and not local.is_file():  # connecting would make an empty store
            raise StoreUnreachable("this copy of the project has no MLflow store")
        client = connect(root)
        with translated(client.tracking_uri):
            found = _ask(client, name, number, alias)
    except StoreUnreachable as error:
        if number is None:
            tagged = tagged_versions(root, load_registry_config(root))
            known = ", ".join(sorted(f"{name}/{other}" for model, other in tagged if model == name))
            raise BadInput(
                f"{name}@{alias}: only the registry knows which version that is, and {error}; name a version by its "
                f"number ({f'tagged here are {known}' if known else 'none is tagged here yet'})"
            ) from error
        notes.append(f"the registry was not asked ({error}): the git tag is believed")
        return number, {}
    if found is None and number is None:
        raise BadInput(f"{name}@{alias}: the registry has no version of that alias; `ratchet status` shows what it has")
    return (str(found.version), found.tags) if found is not None else (str(number), {})


def _ask(client: Any, name: str, number: str | None, alias: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _commit(root: Path, name: str, number: str, tags: Mapping[str, str], notes: list[str]) -> str:
    """Find the commit here, or on the git remote."""
    ref = f"{TAGS}/{name}/v{number}"
    tagged, recorded = commit_of(root, ref), tags.get(COMMIT)
    if tagged is None and (recorded is None or commit_of(root, recorded) is None):
        tagged = _fetched(root, ref)
    if recorded is not None and commit_of(root, recorded) is not None:
        if tagged is not None and tagged != recorded:
            notes.append(
                f"the tag {ref.removeprefix('refs/tags/')} names commit {tagged[:12]} and the registry {recorded[:12]} "
                "(an older registry gave out that number too): the registry is believed"
            )
        return recorded
    if tagged is None:
        raise BadInput(
            f"{name}/{number}: neither this repository nor its git remote has the tag {ref.removeprefix('refs/tags/')}"
            f"{f' or the commit {recorded[:12]}' if recorded else ''}; run this where the version was published, or "
            "push its tag from there with `ratchet publish`"
        )
    if recorded is not None and recorded != tagged:
        raise BadInput(
            f"{name}/{number}: the registry names commit {recorded[:12]}, which is not here, and the tag another one, "
            f"{tagged[:12]}; fetch the former from where the version was published"
        )
    return tagged


def _fetched(root: Path, ref: str) -> str | None:
    """Fetch a tag from the git remote; None where there is none or it has not got it."""
    remote = remote_of(root)
    if remote is None:
        return None
    try:
        git(root, "fetch", "--no-tags", "--quiet", remote, f"{ref}:{ref}")
    except BadInput:  # the sentence that follows names the tag and says what to do
        return None
    return commit_of(root, ref)


def _described(root: Path, name: str, number: str, commit: str, tags: Mapping[str, str], notes: list[str]) -> Target:
    record = version_record(root, commit)
    stage = tags.get(STAGE) or (record.stage if record else None)
    md5 = tags.get(OUTPUT) or (record.output_md5 if record else None)
    lock = version_lock(root, commit)
    if stage is None or md5 is None or stage not in lock or lock[stage].outs.get(MODELS + stage) != md5:
        raise BadInput(
            f"{name}/{number}: commit {commit[:12]} has no record of how it was made, as versions have that were "
            "published by an older Ratchet; there is nothing to compare with"
        )
    before = lineage(lock, stage)
    differing = source_differences(root, commit, before)
    if differing:
        notes.append(
            f"the tagged tree is not what the lock file says it was made from ({len(differing)} difference(s)), so "
            f"another result would prove nothing: {'; '.join(differing[:5])}"
        )
    known = record.environments if record else {}
    return Target(
        name=name, number=number, commit=commit, stage=stage, output_md5=md5, lock=before,
        environments=known, notes=tuple(notes),
    )  # fmt: skip
