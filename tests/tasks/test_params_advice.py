import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf.config import read_params
from rlhf.models import build_policy
from rlhf.tokenizer import train_tokenizer
from tasks.params_advice import advise, model_size
from tasks.profiles import merge, names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("dvc.yaml", "params.yaml", "profiles"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


def test_a_model_from_scratch_is_counted_by_its_widths() -> None:
    tokenizer = train_tokenizer(["a cat sat on a mat"] * 3, vocab_size=300)
    shape = {"hidden": 32, "layers": 3, "intermediate": 48}
    policy = build_policy(tokenizer, heads=4, context=16, **shape)
    sft = {"base_model": "scratch", "vocab_size": len(tokenizer), **shape}
    assert model_size(ROOT, {"sft": sft}) == sum(weight.numel() for weight in policy.parameters())


def test_the_default_model_has_the_size_that_training_reports() -> None:
    assert model_size(ROOT, read_params(ROOT / "profiles" / "default.yaml")) == 459_392


def test_a_local_model_is_counted_by_its_weights(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "base" / "mine-7b"
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(3, 5)}, folder / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(4), "c": torch.zeros(())}, folder / "model-2.safetensors")
    assert model_size(tmp_path, {"sft": {"base_model": "mine-7b"}}) == 20


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 500_000_000), ("Qwen/Qwen2.5-7B-Instruct", 7_000_000_000),
        ("EleutherAI/pythia-160m", 160_000_000), ("stories260k", 260_000), ("meta/Llama-3.2-1B", 1_000_000_000),
        ("openai-community/gpt2", None), ("microsoft/phi-4bit", None),
    ],
)  # fmt: skip
def test_any_other_is_known_by_its_name_or_not_at_all(tmp_path: Path, name: str, size: int | None) -> None:
    assert model_size(tmp_path, {"sft": {"base_model": name}}) == size


def test_a_project_without_these_stages_has_no_size(tmp_path: Path) -> None:
    assert model_size(tmp_path, {"first": {}}) is None


def test_the_active_settings_are_inside_every_range(project: Path) -> None:
    shutil.copy(project / "profiles" / "default.yaml", project / "params.yaml")
    assert advise(project) == []


@pytest.mark.parametrize("profile", names(ROOT))
def test_no_shipped_profile_lies_outside_a_range(project: Path, profile: str) -> None:
    shutil.copy(project / "profiles" / "default.yaml", project / "params.yaml")
    (project / "params.yaml").write_text(merge(project, profile).text)
    assert [advice.sentence for advice in advise(project)] == []


def test_the_embedded_rates_are_far_too_high_for_a_large_model(project: Path) -> None:
    params = project / "params.yaml"
    text = (project / "profiles" / "default.yaml").read_text()
    params.write_text(text.replace("base_model: scratch", "base_model: Qwen/Qwen2.5-7B-Instruct"))
    keys = {advice.key for advice in advise(project)}
    assert {"sft.learning_rate", "reward.epochs", "reward.learning_rate", "judge.epochs", "ppo.kl_coef"} <= keys
    assert {"ppo.learning_rate", "ppo.epochs", "dpo.learning_rate"} <= keys
