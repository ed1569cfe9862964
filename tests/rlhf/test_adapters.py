"""LoRA: off it is the base model to the last bit, on it learns, merged it is a plain model that says the same."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from rlhf.adapters import AdapterOff, Lora, adapter_off, adapter_parameters, add_adapter, has_adapter, merged
from rlhf.batches import collate
from rlhf.engine import prepare
from rlhf.errors import BadInput
from rlhf.generation import generate
from rlhf.lm_head import runs_head_alone
from rlhf.logprobs import response_logits, response_logprobs
from rlhf.models import build_policy, load_policy, remove_dropout, save_policy
from rlhf.reference import compare_with_reference
from rlhf.tokenizer import train_tokenizer

VOCABULARY = 24
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
# Dropout in the base config, as a downloaded model may have it.
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_dropout=0.5),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3,
        resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5,
    ),
    "neox": GPTNeoXConfig(**SIZES, hidden_dropout=0.5, attention_dropout=0.5),
}  # fmt: skip
# Matrices in a block, and what their inputs and outputs add up to: attention and feed-forward.
WIDTHS = {
    "llama": 4 * (16 + 16) + 3 * (16 + 24),
    "gpt2": (16 + 48) + (16 + 16) + 2 * (16 + 64),
    "neox": (16 + 48) + (16 + 16) + 2 * (16 + 24),
}
LORA = Lora(rank=2, alpha=4.0)
FORBIDDEN = torch.arange(VOCABULARY) == 0


def make(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32)
    remove_dropout(model)
    return model.eval()


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture
def batch():
    return collate([[10, 11], [12, 13, 14]], [[5, 6, 7], [8, 9]], pad_id=0)


def train(model, batch, steps=3):
    engine = prepare(model, learning_rate=0.05, schedule=lambda _: 1.0, max_grad_norm=1.0, precision="float32")
    for _ in range(steps):
        engine.backward(-logprobs(model, batch).sum() / 5)
        engine.step()


def logprobs(model, batch):
    return response_logprobs(model, batch, temperature=0.7, forbidden=FORBIDDEN).logprobs


@pytest.mark.parametrize("half", [False, True])
def test_with_the_adapter_off_logits_are_those_of_the_base_model_bit_for_bit(family, batch, half):
    base = make(family)
    model = add_adapter(copy.deepcopy(base), LORA, seed=1)
    for steps in (0, 3):
        train(model, batch, steps)
        model.train(steps > 0)  # dropout was removed, so even training mode changes nothing
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half), adapter_off(model):
            assert torch.equal(response_logits(model, batch), response_logits(base, batch))
            whole, wanted = (each(input_ids=batch.input_ids).logits for each in (model, base))
            assert torch.equal(whole, wanted)
    assert not torch.equal(logprobs(model, batch), logprobs(base, batch))


def test_the_reference_of_a_comparison_is_the_base_model(family, batch):
    base = make(family)
    model = add_adapter(copy.deepcopy(base), LORA, seed=1)
    settings = {"temperature": 0.7, "rows": 1}
    first = compare_with_reference(model, AdapterOff(model), batch, FORBIDDEN, **settings)
    # B is 0, so an adapter that has learnt nothing adds exactly nothing.
    assert torch.equal(first.logprobs, first.ref_logprobs)
    train(model, batch)
    off = compare_with_reference(model, AdapterOff(model), batch, FORBIDDEN, **settings)
    held = compare_with_reference(model, base, batch, FORBIDDEN, **settings)
    for one, other in zip(off, held, strict=True):
        assert torch.equal(one, other)
    assert float(off.kl.sum()) > 0.01
    assert torch.equal(off.ref_logprobs, first.ref_logprobs)


def test_only_the_adapter_learns_and_it_learns(family, batch):
    model = add_adapter(make(family), LORA, seed=1)
    before = copy.deepcopy(model.state_dict())
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trainable)
    # Two blocks, rank 2: A has 2 * inputs weights and B 2 * outputs.
    assert adapter_parameters(model) == 2 * 2 * WIDTHS[family]
    first = logprobs(model, batch).detach().sum()
    train(model, batch)
    assert logprobs(model, batch).detach().sum() > first + 0.1
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) == (name not in trainable)


def test_switching_leaves_what_is_trainable_as_it_was(batch):
    model = add_adapter(make("llama"), LORA, seed=1)
    frozen = next(weight for name, weight in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    before = [(name, weight.requires_grad) for name, weight in model.named_parameters()]
    with pytest.raises(KeyError), adapter_off(model):
        raise KeyError
    assert [(name, weight.requires_grad) for name, weight in model.named_parameters()] == before
    assert not frozen.requires_grad


def test_gradients_are_the_same_when_the_reference_ran_in_between(batch):
    found = []
    for between in (False, True):
        model = add_adapter(make("neox"), LORA, seed=1)
        loss = logprobs(model, batch).sum()
        if between:
            with torch.no_grad(), adapter_off(model):
                logprobs(model, batch)
        loss.backward()
        found.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert len(found[0]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_first_weights_belong_to_the_seed_and_take_nothing_from_the_global_generator():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = (add_adapter(make("llama"), LORA, seed=seed).state_dict() for seed in (1, 1, 2))
    make("llama")  # it seeds the global generator with 0
    wanted = torch.get_rng_state()
    add_adapter(make("llama"), LORA, seed=1)
    assert torch.equal(torch.get_rng_state(), wanted)
    assert not torch.equal(state, wanted)
    name = "model.layers.0.mlp.down_proj.lora_A.default.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    # Within +- 1 / sqrt(24 inputs), and filling that range.
    assert 0.8 / 24**0.5 < float(one[name].abs().max()) <= 1 / 24**0.5


def test_the_head_still_runs_at_response_positions_only(family, batch):
    model = add_adapter(make(family), LORA, seed=1)
    train(model, batch)
    assert runs_head_alone(model)
    with torch.no_grad():
        whole = model(input_ids=batch.input_ids).logits[:, :-1][batch.response_mask[:, 1:]]
        assert torch.allclose(response_logits(model, batch), whole, atol=1e-5)


def test_merged_is_a_plain_model_that_says_the_same(family, batch):
    model = add_adapter(make(family), LORA, seed=1)
    train(model, batch)
    before = copy.deepcopy(model.state_dict())
    plain = merged(model)
    assert not has_adapter(plain)
    assert set(plain.state_dict()) == set(make(family).state_dict())
    assert torch.allclose(logprobs(plain, batch), logprobs(model, batch), atol=1e-5)
    assert has_adapter(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert merged(plain) is plain


def test_merging_by_hand():
    model = add_adapter(make("llama"), LORA, seed=1)
    layer = model.model.layers[0].self_attn.q_proj
    a = layer.lora_A["default"].weight.detach()
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.5)
    # alpha / rank is 2 and each entry of B is 1/2, so each row of the product is the sum of A's two rows.
    wanted = layer.base_layer.weight + (a[0] + a[1])
    assert torch.allclose(merged(model).model.layers[0].self_attn.q_proj.weight, wanted, atol=1e-6)


def test_a_saved_policy_is_an_ordinary_folder(tmp_path):
    tokenizer = train_tokenizer(["see the tree"], vocab_size=262)
    torch.manual_seed(0)
    base = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=24, context=32)
    model = add_adapter(copy.deepcopy(base), LORA, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    save_policy(merged(model), tokenizer, tmp_path / "adapted")
    save_policy(base, tokenizer, tmp_path / "base")
    files = [{file.name for file in (tmp_path / name).iterdir()} for name in ("adapted", "base")]
    assert files[0] == files[1]
    again, ids = load_policy(tmp_path / "adapted", device="cpu"), torch.tensor([[5, 6, 7]])
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)
    assert not torch.allclose(again(ids).logits, base(ids).logits, atol=1e-3)


def test_generation_works_on_an_adapted_model(family, batch):
    model = add_adapter(make(family), LORA, seed=1)
    train(model, batch)
    prompts = [[10, 11], [12, 13, 14]]
    settings = {"max_new_tokens": 5, "temperature": 0.7, "stop_ids": [3], "forbidden": FORBIDDEN, "pad_id": 0}
    drawn = generate(model, prompts, generator=torch.Generator().manual_seed(0), **settings)
    again = logprobs(model, collate(prompts, drawn.responses, pad_id=0))
    assert sum(map(sum, drawn.logprobs)) == pytest.approx(again.sum().item(), abs=1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="rank is 0"):
        Lora(rank=0, alpha=1.0)
    with pytest.raises(ValueError, match=r"alpha -1\.0"):
        Lora(rank=1, alpha=-1.0)
    plain = make("llama")
    with pytest.raises(ValueError, match="no adapter of its own"), adapter_off(plain):
        pass
    model = add_adapter(plain, LORA, seed=0)
    with pytest.raises(ValueError, match="adapter already"):
        add_adapter(model, LORA, seed=0)
    # W + B A - B A differs from W in the last bits, so a merged layer cannot serve as the reference.
    model.model.layers[0].self_attn.q_proj.merge()
    with pytest.raises(ValueError, match="no adapter of its own"), adapter_off(model):
        pass


def test_a_model_without_linear_layers_is_refused():
    model = make("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(BadInput, match="set lora_rank: 0"):
        add_adapter(model, LORA, seed=0)
