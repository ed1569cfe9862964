"""The roles: who is held, who is frozen, who starts as whom, and that they share their tokens."""

import gc

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf.adapters import AdapterOff, Lora
from rlhf.batches import collate
from rlhf.errors import BadInput
from rlhf.logprobs import response_logprobs
from rlhf.models import DROPOUT_FIELDS, save_folder
from rlhf.reference import compare_with_reference
from rlhf.reward_model import RewardModel
from rlhf.roles import load_roles
from rlhf.shared_value import PolicyWithValue
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny

LORA = Lora(rank=2, alpha=4.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sft = tiny.write_sft(folder / "sft")
    return sft, tiny.write_reward(folder / "reward", sft)


@pytest.fixture
def batch():
    return collate([[10, 11]], [[5, 6, 7]], pad_id=0)


@pytest.fixture
def _young_objects_only():
    """Hide what is older than the test from the garbage collector, so that looking through all objects is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def models_alive():
    """Whole models in memory, whoever holds them; a trunk inside another model is part of it."""
    gc.collect()
    models = [thing for thing in gc.get_objects() if issubclass(type(thing), PreTrainedModel)]
    inside = {id(part) for model in models for part in model.modules() if part is not model}
    return sum(id(model) not in inside for model in models)


def test_reference_and_reward_model_are_frozen(folders):
    roles = load_roles(*folders, device=CPU)
    for model in (roles.reference, roles.reward_model):
        assert not any(weight.requires_grad for weight in model.parameters())
    for model in (roles.policy, roles.value_model):
        assert all(weight.requires_grad for weight in model.parameters())
    assert not any(model.training for model in (roles.policy, roles.reference, roles.reward_model, roles.value_model))
    assert roles.learner is roles.policy


def test_values_begin_as_a_tenth_of_the_reward_models_token_scores(folders, batch):
    roles = load_roles(*folders, device=CPU)
    scores = roles.reward_model.token_scores(batch.input_ids, batch.attention_mask)
    values = roles.value_model.token_scores(batch.input_ids, batch.attention_mask)
    assert torch.allclose(values, 0.1 * scores, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, ["policy", "reference", "reward_model", "value_model"]),
        ({"value": "none"}, ["policy", "reference", "reward_model"]),
        ({"value": "shared"}, ["policy", "value_head", "reference", "reward_model"]),
        (
            {"value": "none", "lora": LORA, "reference": "adapter_off"},
            ["policy", "adapter", "reward_model"],
        ),
        ({"value": "shared", "lora": LORA, "reference": "frozen"},
         ["policy", "adapter", "value_head", "reference", "reward_model"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_young_objects_only")
def test_no_more_models_are_held_than_are_needed(folders, changes, held):
    assert models_alive() == 0
    roles = load_roles(*folders, device=CPU, **changes)
    assert list(roles.held()) == held
    # The head and the adapter are no models of their own.
    assert models_alive() == len(set(held) - {"adapter", "value_head"})


@pytest.mark.usefixtures("_young_objects_only")
def test_rules_alone_need_no_reward_model(folders, batch):
    roles = load_roles(folders[0], None, device=CPU, value="none", lora=LORA, reference="adapter_off")
    assert models_alive() == 1
    assert list(roles.held()) == ["policy", "adapter"]
    with pytest.raises(BadInput, match="none was loaded"):
        roles.score(batch)


def test_without_a_reward_model_a_value_model_starts_at_zero(folders, batch):
    state = torch.get_rng_state()
    roles = load_roles(folders[0], None, device=CPU, value="separate")
    assert torch.equal(torch.get_rng_state(), state)
    assert list(roles.held()) == ["policy", "reference", "value_model"]
    values = roles.value_model(batch.input_ids, batch.attention_mask)
    assert torch.equal(values, torch.zeros(1, 5))


def test_held_counts_every_weight_once(folders):
    roles = load_roles(*folders, device=CPU, value="shared", lora=LORA, reference="adapter_off")
    held = roles.held()
    # 2 blocks of 4 attention and 3 feed-forward matrices; per matrix rank * (inputs + outputs).
    assert held["adapter"] == 2 * 2 * (4 * (16 + 16) + 3 * (16 + 32))
    assert held["value_head"] == 16 + 1
    assert held["policy"] == held["reward_model"] - 17
    assert held["policy"] + held["adapter"] == sum(weight.numel() for weight in roles.policy.parameters())


def test_the_reference_is_the_policy_at_the_start(folders, batch):
    roles = load_roles(*folders, device=CPU, lora=LORA, reference="adapter_off", seed=3)
    frozen = load_roles(*folders, device=CPU, reference="frozen")
    assert isinstance(roles.reference, AdapterOff)
    with torch.no_grad():
        for name, weight in roles.policy.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    settings = {"temperature": 1.0, "rows": 1}
    off = compare_with_reference(roles.policy, roles.reference, batch, roles.forbidden, **settings)
    wanted = compare_with_reference(roles.policy, frozen.reference, batch, roles.forbidden, **settings)
    assert torch.equal(off.ref_logprobs, wanted.ref_logprobs)
    assert torch.equal(off.kl, wanted.kl)
    assert float(off.kl.sum()) > 0


def test_a_shared_head_sits_on_the_policy_itself(folders):
    roles = load_roles(*folders, device=CPU, value="shared")
    assert isinstance(roles.learner, PolicyWithValue)
    assert roles.learner.policy is roles.policy
    assert roles.value_model is None


def test_room_is_what_the_context_leaves(folders):
    assert load_roles(*folders, device=CPU, value="none").room(10) == 54


def test_models_with_different_tokens_are_refused(folders, tmp_path):
    other = tiny.write_sft(tmp_path / "other", texts=("quite other words", "words words"))
    with pytest.raises(BadInput, match="tokenizer differs"):
        load_roles(other, folders[1], device=CPU)


def test_what_does_not_exist_is_refused(folders):
    with pytest.raises(BadInput, match="needs an adapter"):
        load_roles(*folders, device=CPU, reference="adapter_off")
    with pytest.raises(ValueError, match="value is 'both'"):
        load_roles(*folders, device=CPU, value="both")
    with pytest.raises(ValueError, match="reference is 'none'"):
        load_roles(*folders, device=CPU, reference="none")


SIZES = {
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
}


@pytest.mark.parametrize("family", SIZES)
def test_no_role_has_dropout_whatever_the_base_config_says(folders, family, tmp_path, batch):
    tokenizer = load_tokenizer(folders[0])
    dropout = dict.fromkeys(DROPOUT_FIELDS, 0.5)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), pad_token_id=0, **SIZES[family], **dropout)
    torch.manual_seed(0)
    save_folder(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "sft")
    assert AutoConfig.from_pretrained(tmp_path / "sft").attention_dropout == 0.5
    RewardModel.from_policy(tmp_path / "sft", pooling="mean").save(tmp_path / "reward", tokenizer)
    for changes in ({}, {"value": "shared", "lora": LORA}):
        roles = load_roles(tmp_path / "sft", tmp_path / "reward", device=CPU, **changes)
        for model in (roles.learner, roles.policy, roles.reference):
            model.train()
        for policy in (roles.policy, roles.reference):
            one, two = (response_logprobs(policy, batch, temperature=1.0, forbidden=None).logprobs for _ in range(2))
            assert torch.equal(one, two)
        for scorer in (roles.reward_model, roles.value_model):
            if scorer is not None:
                scorer.train()
                first, second = (scorer(batch.input_ids, batch.attention_mask) for _ in range(2))
                assert torch.equal(first, second)


def test_a_value_model_may_have_an_adapter_of_its_own(folders):
    roles = load_roles(*folders, device=CPU, value_lora=LORA)
    trained = [name for name, weight in roles.value_model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name or name.startswith("trunk.score.") for name in trained)
    assert all(weight.requires_grad for weight in roles.policy.parameters())
