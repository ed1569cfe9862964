from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.mlflow_store import connect
from tasks.weights import resolve_weights

pytest_plugins = ["tests.registry_fixtures"]


def test_every_way_to_name_a_model(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a folder is looked for here first, and this repository may hold trained models
    connect(published).set_registered_model_alias("policy", "champion", "2")
    ppo = published / "data/models/ppo"
    assert resolve_weights("ppo", published) == ppo
    assert resolve_weights("data/models/ppo", published) == ppo
    assert resolve_weights(str(ppo), published) == ppo
    for reference in ("policy@champion", "policy/2", "policy/v2"):
        folder = resolve_weights(reference, published)
        assert folder.parent == published / ".ratchet/tmp/weights"
        assert (folder / "model.safetensors").read_bytes() == (ppo / "model.safetensors").read_bytes()
    assert (resolve_weights("judge/1", published) / "reward.json").is_file()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("policy/77", "policy/77: not in the registry"),
        ("policy@nobody", "policy@nobody: not in the registry"),
        ("dpo", "data/models/dpo: there is no model"),
        ("polcy@champion", "'polcy@champion' is no model: wanted policy@champion"),
    ],
)
def test_what_is_not_there_is_one_sentence(published: Path, reference: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        resolve_weights(reference, published)
