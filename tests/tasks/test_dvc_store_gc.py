"""`dvc gc` is really run: what was promoted, and what a tag names, has to be there afterwards."""

import shutil
from pathlib import Path

from tasks.dvc_store import dvc_places, is_here, object_path, output_files
from tasks.lock_file import output_hash
from tasks.publish import publish
from tasks.registry import champion, promote
from tasks.weights import resolve_weights
from tests.registry_project import retrain
from tests.tiny_project import dvc

pytest_plugins = ["tests.registry_fixtures"]


def test_gc_leaves_the_champion_and_with_all_tags_every_version(published: Path) -> None:
    from transformers import AutoModelForCausalLM

    places = dvc_places(published)
    old, sft = output_hash(published, "ppo"), output_hash(published, "sft")
    assert old is not None
    assert sft is not None
    files = {old, sft, *output_files(places, old, "x").values(), *output_files(places, sft, "x").values()}
    promote(published, 2, reason="a test")
    retrain(published, seed=21)
    assert publish(published).published == ["ppo", "evaluate"]
    assert output_hash(published, "ppo") != old
    dvc(published, "gc", "-w", "--all-tags", "-f", "-q")
    assert all(object_path(places.cache, name).is_file() for name in files)
    dvc(published, "gc", "-w", "-f", "-q")
    assert not is_here(places, old)  # so it is the kept weights that help now
    assert is_here(places, sft)
    shutil.rmtree(published / ".ratchet/tmp/weights", ignore_errors=True)
    found = champion(published)
    assert found is not None
    assert (found.version, found.output_md5) == ("2", old)
    model = AutoModelForCausalLM.from_pretrained(resolve_weights("policy@champion", published))
    assert sum(weight.numel() for weight in model.parameters()) > 0
