import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf import model_settings
from rlhf.batches import collate
from rlhf.engine import prepare
from rlhf.engine_settings import EngineSettings
from rlhf.errors import BadInput
from rlhf.generation import generate
from rlhf.logprobs import response_logprobs

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def make(family="llama"):
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**SIZES, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32)).eval()


def train(settings, family="llama"):
    """Two updates; the engine and the sizes of what the first forward pass kept for the backward pass."""
    engine = prepare(
        make(family), learning_rate=0.01, schedule=lambda _: 1.0, max_grad_norm=1.0, precision="float32",
        settings=settings,
    )  # fmt: skip
    batch, kept = collate([[3, 4, 5], [6, 7]], [[8, 9], [10, 11, 12]], pad_id=0), list[int]()
    for step in range(2):
        keep = (lambda tensor: kept.append(tensor.numel()) or tensor) if step == 0 else (lambda tensor: tensor)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = -response_logprobs(engine.module, batch, temperature=1.0, forbidden=None).logprobs.sum()
        engine.backward(loss)
        engine.step()
    return engine, sum(kept)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpointing_keeps_less_and_changes_nothing(family):
    plain, kept = train(EngineSettings(), family)
    thrifty, kept_less = train(EngineSettings(activation_checkpointing=True), family)
    assert kept_less < 0.5 * kept
    for one, two in zip(plain.module.parameters(), thrifty.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_checkpointed_blocks_sample_with_their_cache():
    engine, _ = train(EngineSettings(activation_checkpointing=True))
    asked = {"max_new_tokens": 4, "temperature": 1.0, "stop_ids": (1,), "forbidden": None, "pad_id": 0}
    blocks = engine.module.model.layers
    with engine.gathered() as whole:
        assert not any(block.training for block in blocks)
        found = generate(whole, [[3, 4]], generator=torch.Generator().manual_seed(1), **asked)
    assert all(block.training for block in blocks)
    # What is inside the blocks never leaves evaluation mode: dropout stays off.
    assert not any(part.training for block in blocks for part in block.children())
    plain, _ = train(EngineSettings())
    again = generate(plain.module, [[3, 4]], generator=torch.Generator().manual_seed(1), **asked)
    assert found.responses == again.responses
    with pytest.raises(RuntimeError, match="stop"), model_settings.without_checkpointing(engine.module):
        raise RuntimeError("stop")
    assert all(block.training for block in blocks)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(BadInput, match="Linear has no blocks to compute again; set it to false"):
        model_settings.apply_settings(nn.Linear(2, 2), EngineSettings(activation_checkpointing=True))


def test_attention_is_chosen_and_changes_rounding_only():
    plain, _ = train(EngineSettings())
    eager, _ = train(EngineSettings(attention="eager"))
    assert eager.module.config._attn_implementation == "eager"
    for one, two in zip(plain.module.parameters(), eager.module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "device", "ranks", "sentence"),
    [
        ({"optimizer": "adamw_8bit"}, CPU, 1, "adamw_8bit, but there is no GPU; use adamw"),
        ({"optimizer": "adamw_8bit"}, GPU, 1, "adamw_8bit, but the package bitsandbytes is not installed"),
        ({"attention": "flash_attention_2"}, CPU, 1, "flash_attention_2, but there is no GPU; use auto"),
        ({"attention": "flash_attention_2"}, GPU, 1, "flash_attention_2, but the package flash-attn is not installed"),
        ({"compile": True}, CPU, 1, "compile is true, but there is no GPU; use false"),
        ({"compile": True, "zero_stage": 3}, GPU, 2, "compile is true with zero_stage 3, wanted .* at most 2"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_in_one_sentence(monkeypatch, settings, device, ranks, sentence):
    monkeypatch.setattr(model_settings, "_installed", lambda package: False)
    monkeypatch.setattr(model_settings.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(BadInput, match=sentence):
        model_settings.refuse_unsupported(EngineSettings(**settings), device=device, ranks=ranks)


def test_what_it_can_do_passes(monkeypatch):
    monkeypatch.setattr(model_settings, "_installed", lambda package: True)
    monkeypatch.setattr(model_settings.shutil, "which", lambda name: f"/bin/{name}")
    good = EngineSettings(optimizer="adamw_8bit", attention="flash_attention_2", compile=True)
    model_settings.refuse_unsupported(good, device=GPU, ranks=1)
    with pytest.raises(BadInput, match="adamw_8bit on 2 ranks, wanted adamw"):
        model_settings.refuse_unsupported(good, device=GPU, ranks=2)
    monkeypatch.setattr(model_settings.shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="there is no C compiler; install gcc, or use false"):
        model_settings.refuse_unsupported(EngineSettings(compile=True), device=GPU, ranks=1)


def test_the_blocks_are_compiled_where_that_is_asked_for(monkeypatch):
    # Compilation itself needs a GPU here; that each block is handed over, and nothing else, can be seen without one.
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: asked.append((self, settings)))
    model = make()
    model_settings.apply_settings(model, EngineSettings(compile=True))
    assert asked == [(block, {"dynamic": True}) for block in model.model.layers]
