"""What is exported loads as a plain model, and its adapter alone loads on top of the base by peft."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForTokenClassification

from rlhf.adapters import Lora, add_adapter
from rlhf.export import export_policy
from rlhf.models import load_policy
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny

# Of a name that peft uses and transformers would like to be another.
RENAMED = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture
def sft(tmp_path):
    return tiny.write_sft(tmp_path / "sft")


def learn(model):
    """Weights that are not what they were at the start."""
    source = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=source)


def test_a_policy_without_adapter_is_a_plain_folder(sft, tmp_path):
    export_policy(load_policy(sft, device="cpu"), load_tokenizer(sft), tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()
    assert (tmp_path / "out" / "model.safetensors").is_file()


@RENAMED
@torch.no_grad()
def test_a_policy_with_adapter_is_exported_both_ways(sft, tmp_path):
    policy = add_adapter(load_policy(sft, device="cpu"), Lora(2, 8.0), seed=1)
    learn(policy)
    wanted = policy(input_ids=IDS).logits
    for name in ("out", "again"):
        export_policy(policy, load_tokenizer(sft), tmp_path / name)
    merged = load_policy(tmp_path / "out", device="cpu")
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(merged(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)

    based = peft.PeftModel.from_pretrained(load_policy(sft, device="cpu"), tmp_path / "out" / "adapter")
    torch.testing.assert_close(based(input_ids=IDS).logits, wanted, rtol=0, atol=1e-6)
    assert (based.merge_and_unload()(input_ids=IDS).logits - load_policy(sft, device="cpu")(input_ids=IDS).logits).any()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out/adapter" / file).read_bytes() == (tmp_path / "again/adapter" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "out/adapter/adapter_config.json").read_text()


@RENAMED
@torch.no_grad()
def test_a_reward_model_takes_its_head_along(sft, tmp_path):
    torch.manual_seed(0)
    model = RewardModel.from_policy(sft, pooling="last", device="cpu")
    model.adapt(Lora(2, 8.0), seed=1)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name or name.startswith("trunk.score.") for name in trained)
    learn(model)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    wanted = model(IDS, mask)
    model.save(tmp_path / "out", load_tokenizer(sft))
    torch.testing.assert_close(RewardModel.load(tmp_path / "out", device="cpu")(IDS, mask), wanted, rtol=0, atol=1e-5)

    base = AutoModelForTokenClassification.from_pretrained(sft, num_labels=1)
    based = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    torch.testing.assert_close(based(input_ids=IDS).logits.squeeze(-1), wanted, rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["modules_to_save"] == ["score"]
