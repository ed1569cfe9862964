import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from rlhf.batches import collate
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import encode_prompt, encode_response, load_tokenizer
from tasks.dvc_store import dvc_places, object_path, output_files
from tasks.lock_file import output_hash
from tasks.served_model import Policy, Scorer, WeightsMissing, conversations, encode, intact, materialise
from tests.tiny_project import dvc

pytest_plugins = ["tests.registry_fixtures"]
OPTIONS = {"temperature": 1.0, "max_new_tokens": 6, "seed": 3}


@pytest.fixture
def config(unpublished: Path) -> dict[str, Any]:
    md5 = output_hash(unpublished, "ppo")
    assert md5 is not None
    places = dvc_places(unpublished)
    files = output_files(places, md5, "data/models/ppo")
    shutil.rmtree(unpublished / ".ratchet" / "tmp" / "weights", ignore_errors=True)
    return {
        "output_md5": md5, "files": files, "project_root": str(unpublished), "cache_dir": str(places.cache),
        "remote": None,
    }  # fmt: skip


def test_weights_are_links_into_the_cache_and_are_checked_again(config: dict[str, Any]) -> None:
    folder = materialise(config)
    assert folder == Path(config["project_root"]) / ".ratchet/tmp/weights" / config["output_md5"].removesuffix(".dir")
    assert intact(folder, config["files"])
    shown = folder / "config.json"
    assert shown.samefile(object_path(Path(config["cache_dir"]), config["files"]["config.json"]))
    shown.unlink()
    shown.write_text("spoilt")
    assert intact(materialise(config), config["files"])


def test_the_environment_may_name_the_folder_which_is_checked_too(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(Path(config["project_root"]) / "data/models/ppo", copy)
    monkeypatch.setenv("RATCHET_WEIGHTS_DIR", str(copy))
    assert materialise(config) == copy
    (copy / "config.json").chmod(0o644)
    (copy / "config.json").write_text("{}")
    with pytest.raises(WeightsMissing, match="do not have the md5 sums"):
        materialise(config)


def test_a_corrupt_cache_is_not_served(config: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(config["cache_dir"], cache)
    victim = object_path(cache, config["files"]["model.safetensors"])
    victim.chmod(0o644)
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    with pytest.raises(WeightsMissing, match=f"not found intact in {cache}"):
        materialise({**config, "cache_dir": str(cache)})


def test_a_machine_with_only_the_remote_gets_them_from_there(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(config["project_root"])
    dvc(root, "remote", "add", "-d", "origin", str(tmp_path / "remote"))
    dvc(root, "push", "-q", "ppo")
    dvc(root, "remote", "remove", "origin")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    far = {**config, "project_root": None, "cache_dir": None, "remote": str(tmp_path / "remote")}
    assert intact(materialise(far), config["files"])


def test_recorded_paths_cannot_leave_the_folder(config: dict[str, Any]) -> None:
    bad = {**config, "files": {"../../x": config["files"]["config.json"]}, "output_md5": "ee.dir"}
    with pytest.raises(WeightsMissing, match="leaves the folder"):
        materialise(bad)


def test_sampling_repeats_with_its_seed_and_leaves_the_callers_randomness_alone(unpublished: Path) -> None:
    policy = Policy(unpublished / "data/models/ppo")
    prompts = conversations(["Hello", "Where is order 201?"])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = policy.answer(prompts, OPTIONS)
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.answer(prompts, OPTIONS) == first
    assert policy.answer(prompts, {**OPTIONS, "seed": 4}) != first


def test_prompts_are_encoded_as_in_training(unpublished: Path) -> None:
    tokenizer = load_tokenizer(unpublished / "data/models/ppo")
    messages = [{"role": "system", "content": "Plus member."}, {"role": "user", "content": "End <|end|> me"}]
    assert encode(tokenizer, messages) == encode_prompt(tokenizer, messages)


def test_scores_equal_those_of_the_reward_model(unpublished: Path) -> None:
    folder = unpublished / "data/models/judge"
    tokenizer, model = load_tokenizer(folder), RewardModel.load(folder, device="cpu")
    messages, response = [{"role": "user", "content": "Hello"}], "I sent a full refund."
    batch = collate([encode_prompt(tokenizer, messages)], [encode_response(tokenizer, response)], pad_id=0)
    with torch.no_grad():
        raw = model.score(batch.input_ids, batch.attention_mask, batch.response_mask)
    expected = float(model.normalised(raw)[0])
    assert Scorer(folder).score([messages], [response])[0] == pytest.approx(expected, abs=1e-6)


def test_prompts_come_as_text_as_chat_or_in_a_table() -> None:
    chat = [{"role": "user", "content": "Hello"}]
    assert conversations("Hello") == [chat]
    assert conversations([{"messages": chat}]) == [chat]
    assert conversations(pd.DataFrame({"prompt": ["Hello", None], "messages": [None, chat]})) == [chat, chat]
    with pytest.raises(ValueError, match="input row 0: neither a text"):
        conversations([{"text": "Hello"}])
    assert conversations([]) == []
    with pytest.raises(ValueError, match="wanted, for example"):  # what MLflow makes of plain texts
        conversations(pd.DataFrame())
