"""The four roles: who is frozen, who starts as whom, and that they share their tokens."""

import pytest
import torch

from rlhf.batches import collate
from rlhf.errors import BadInput
from rlhf.roles import load_roles
from tests.rlhf.recipes import tiny_models as tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sft = tiny.write_sft(folder / "sft")
    return sft, tiny.write_reward(folder / "reward", sft)


def test_reference_and_reward_model_are_frozen(folders):
    roles = load_roles(*folders, device=torch.device("cpu"))
    for model in (roles.reference, roles.reward_model):
        assert not any(weight.requires_grad for weight in model.parameters())
    for model in (roles.policy, roles.value_model):
        assert all(weight.requires_grad for weight in model.parameters())
    assert not any(model.training for model in (roles.policy, roles.reference, roles.reward_model, roles.value_model))


def test_values_begin_as_a_tenth_of_the_reward_models_token_scores(folders):
    roles = load_roles(*folders, device=torch.device("cpu"))
    batch = collate([[10, 11]], [[5, 6, 7]], pad_id=0)
    scores = roles.reward_model.token_scores(batch.input_ids, batch.attention_mask)
    values = roles.value_model.token_scores(batch.input_ids, batch.attention_mask)
    assert torch.allclose(values, 0.1 * scores, atol=1e-6)


def test_room_is_what_the_context_leaves(folders):
    assert load_roles(*folders, device=torch.device("cpu")).room(10) == 54


def test_models_with_different_tokens_are_refused(folders, tmp_path):
    other = tiny.write_sft(tmp_path / "other", texts=("quite other words", "words words"))
    with pytest.raises(BadInput, match="tokenizer differs"):
        load_roles(other, folders[1], device=torch.device("cpu"))
