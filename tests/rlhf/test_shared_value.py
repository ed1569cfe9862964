"""A value head on the policy's trunk: the same log-probabilities, values of the right state, a warm-up of its own."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, GraniteConfig, LlamaConfig

from rlhf.adapters import Lora, add_adapter
from rlhf.batches import collate
from rlhf.engine import prepare
from rlhf.logprobs import response_logprobs
from rlhf.models import remove_dropout
from rlhf.rollout import state_values
from rlhf.shared_value import HEAD, PolicyWithValue, policy_and_values, policy_of

SIZES = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3),
    "neox": GPTNeoXConfig(**SIZES),
    # A divisor after the head: no fast path, so the states come another way.
    "granite": GraniteConfig(**SIZES, logits_scaling=8.0),
}
FORBIDDEN = torch.arange(24) == 0
SAMPLING = {"temperature": 0.7, "forbidden": FORBIDDEN}


def make(family="llama"):
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32)
    remove_dropout(policy)
    return PolicyWithValue(policy.eval())


def with_head(family="llama"):
    model = make(family)
    with torch.no_grad():
        model.value_head.weight.copy_(torch.linspace(-1, 1, 16))
        model.value_head.bias.fill_(0.25)
    return model


@pytest.fixture
def batch():
    return collate([[10, 11], [12, 13, 14]], [[5, 6, 7], [8, 9]], pad_id=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_log_probabilities_are_those_of_the_policy_bit_for_bit(family, batch):
    model = with_head(family)
    found, _ = policy_and_values(model, batch, **SAMPLING, with_entropy=True)
    wanted = response_logprobs(model.policy, batch, **SAMPLING, with_entropy=True)
    assert torch.equal(found.logprobs, wanted.logprobs)
    assert torch.equal(found.entropy, wanted.entropy)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_value_of_a_token_is_read_where_it_was_chosen(family, batch):
    model = with_head(family)
    with torch.no_grad():
        _, values = policy_and_values(model, batch, **SAMPLING)

        def token_scores(input_ids, attention_mask):
            states = model.policy.base_model(input_ids=input_ids).last_hidden_state
            return states @ torch.linspace(-1, 1, 16) + 0.25

        wanted = state_values(token_scores, batch)
    assert torch.allclose(values, wanted, atol=1e-5)
    # Three response tokens after a prompt of two, and two after three: nothing elsewhere.
    assert (values != 0).tolist() == batch.response_mask.tolist()


def test_the_first_values_are_zero_and_the_global_generator_is_untouched(batch):
    policy = make().policy
    state = torch.get_rng_state()
    model = PolicyWithValue(policy)
    assert torch.equal(torch.get_rng_state(), state)
    values = policy_and_values(model, batch, **SAMPLING)[1]
    assert torch.equal(values, torch.zeros(2, 5))
    # A zero head also pulls the trunk nowhere in the first step.
    values.sum().backward()
    assert float(model.value_head.weight.grad.abs().sum()) > 0
    assert all(weight.grad is None or not weight.grad.any() for weight in policy.parameters())


def test_one_forward_pass_for_both(batch):
    model, calls = with_head(), []
    model.policy.base_model.register_forward_hook(lambda *_: calls.append(1))
    policy_and_values(model, batch, **SAMPLING)
    # The first call also finds out once whether the head may run alone.
    calls.clear()
    policy_and_values(model, batch, **SAMPLING)
    assert len(calls) == 1


def test_gradient_flows_into_trunk_and_head(batch):
    model = with_head()
    found, values = policy_and_values(model, batch, **SAMPLING)
    (values**2).sum().backward()
    assert float(model.value_head.weight.grad.abs().sum()) > 0
    assert float(model.policy.model.layers[0].mlp.down_proj.weight.grad.abs().sum()) > 0
    assert found.logprobs.requires_grad


def test_gradients_are_those_of_finite_differences(batch):
    model = with_head("gpt2").double()  # a Llama computes its norms in float32 even then

    def loss():
        return (policy_and_values(model, batch, **SAMPLING)[1] ** 2).sum()

    loss().backward()
    step = 1e-6
    for weight in (model.value_head.weight, model.policy.transformer.h[0].mlp.c_fc.weight):
        with torch.no_grad():
            weight[0, 3] += step
            above = float(loss())
            weight[0, 3] -= 2 * step
            below = float(loss())
            weight[0, 3] += step
        assert float(weight.grad[0, 3]) == pytest.approx((above - below) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0)])
def test_in_warm_up_only_the_head_learns(batch, lora):
    model = with_head()
    if lora is not None:
        add_adapter(model.policy, lora, seed=0)
    before = copy.deepcopy(model.state_dict())
    engine = prepare(model, learning_rate=0.01, schedule=lambda _: 1.0, max_grad_norm=1.0, precision="float32")
    losses = []
    for _ in range(5):
        found, values = policy_and_values(model, batch, **SAMPLING, train_trunk=False)
        loss = ((values - 1.0)[batch.response_mask] ** 2).mean()
        losses.append(float(loss.detach()))
        assert not found.logprobs.requires_grad
        engine.backward(loss)
        assert engine.step()["skipped"] == 0
    assert losses[-1] < losses[0]
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"value_head.weight", "value_head.bias"}
    # Then all of it learns.
    engine.backward((policy_and_values(model, batch, **SAMPLING)[1] ** 2).sum())
    engine.step()
    now = model.state_dict()
    assert any(not torch.equal(now[name], before[name]) for name in now if name.startswith("policy."))


def test_the_head_may_have_a_rate_of_its_own(batch):
    moved = {}
    for rate in (0.001, 0.1):
        model = with_head()
        before = copy.deepcopy(model.state_dict())
        settings = {"learning_rate": 0.001, "schedule": lambda _: 1.0, "max_grad_norm": 1.0, "precision": "float32"}
        engine = prepare(model, **settings, rates={HEAD: rate})
        engine.backward((policy_and_values(model, batch, **SAMPLING)[1] ** 2).sum())
        assert engine.step()["lr"] == 0.001
        for name in ("value_head.bias", "policy.model.norm.weight"):
            moved[name, rate] = float((model.state_dict()[name] - before[name]).abs().max())
    # Adam's first step is as long as its rate.
    assert moved["value_head.bias", 0.1] == pytest.approx(0.1, rel=1e-2)
    assert moved["value_head.bias", 0.001] == pytest.approx(0.001, rel=1e-2)
    assert moved["policy.model.norm.weight", 0.1] == moved["policy.model.norm.weight", 0.001]


def test_bfloat16_leaves_the_head_in_fp32(batch):
    model = with_head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = policy_and_values(model, batch, **SAMPLING)[1]
    assert values.dtype == torch.float32


def test_what_is_under_the_padding_changes_nothing():
    model = with_head()
    batch = collate([[10, 11], [12]], [[5, 6, 7], [8]], pad_id=0)
    with torch.no_grad():
        before = policy_and_values(model, batch, **SAMPLING)[1]
        batch.input_ids[~batch.attention_mask] = 17
        assert torch.equal(policy_and_values(model, batch, **SAMPLING)[1], before)


def test_micro_batches_add_up_to_the_batch(batch):
    def gradients(parts):
        model = with_head()
        for part in parts:
            (policy_and_values(model, part, **SAMPLING)[1] ** 2).sum().backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    whole, cut = gradients([batch]), gradients([batch.rows(0, 1), batch.rows(1, 2)])
    assert len(whole) > 10
    for one, other in zip(whole, cut, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_policy_is_the_causal_language_model_inside():
    model = make()
    assert policy_of(model) is model.policy
    assert policy_of(model.policy) is model.policy
    ids = torch.tensor([[5, 6]])
    assert torch.equal(model(input_ids=ids).logits, model.policy(input_ids=ids).logits)


def test_a_batch_without_a_response_is_refused(batch):
    empty = type(batch)(batch.input_ids, batch.attention_mask, torch.zeros_like(batch.response_mask))
    with pytest.raises(ValueError, match="no response token"):
        policy_and_values(make(), empty, **SAMPLING)
