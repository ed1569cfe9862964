"""The ends of what sampling may meet: no answer, one prompt, too long a prompt, settings of somebody's sampler."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from rlhf.errors import BadInput, StageFailed
from rlhf.generation import generate, row_uniforms
from rlhf.models import build_policy, forbidden_ids, load_policy, save_folder
from rlhf.rollout import sample_responses
from rlhf.tokenizer import decode_response, load_tokenizer, stop_ids, train_tokenizer

SAMPLER = {
    "do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.01, "repetition_penalty": 5.0, "min_length": 60,
    "min_new_tokens": 10, "typical_p": 0.1, "no_repeat_ngram_size": 1, "num_beams": 3, "max_new_tokens": 2,
}  # fmt: skip
"""Settings of a base model that change what its own `generate` draws."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["see the tree", "be here"], vocab_size=262)


@pytest.fixture
def policy(tokenizer):
    torch.manual_seed(0)
    return build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=24, context=64)


def sample(policy, tokenizer, prompts, **changes):
    settings = {
        "max_new_tokens": 12, "temperature": 1.0, "stops": stop_ids(tokenizer, policy),
        "forbidden": forbidden_ids(tokenizer, policy), "pad_id": 0, "source": torch.Generator().manual_seed(0),
    }  # fmt: skip
    return sample_responses(policy, prompts, **{**settings, **changes})


def test_an_empty_answer_is_the_stop_token_alone(policy, tokenizer):
    stops = stop_ids(tokenizer, policy)
    allowed_alone = torch.ones(len(tokenizer), dtype=torch.bool)
    allowed_alone[stops[0]] = False
    drawn = sample(policy, tokenizer, [[10, 11], [12]], forbidden=allowed_alone)
    batch = drawn.batch
    # One token in each response, the stop, which is there to be learnt from; its only choice has log-probability 0.
    assert batch.response_mask.sum(dim=1).tolist() == [1, 1]
    assert batch.input_ids[batch.response_mask].tolist() == [stops[0]] * 2
    assert drawn.ended.all()
    assert drawn.captured.abs().max() == 0
    assert decode_response(tokenizer, [stops[0]], stops=stops) == ""


def test_one_prompt_is_a_batch(policy, tokenizer):
    drawn = sample(policy, tokenizer, [[10, 11]])
    assert drawn.batch.input_ids.shape[0] == drawn.captured.shape[0] == drawn.ended.shape[0] == 1
    # And draws what it draws in company.
    settings = {"max_new_tokens": 6, "temperature": 1.0, "stop_ids": (), "forbidden": None, "pad_id": 0}
    uniforms = row_uniforms([5, 6], 6)
    both = generate(policy, [[10, 11], [12, 13, 14]], generator=None, uniforms=uniforms, **settings)
    alone = generate(policy, [[10, 11]], generator=None, uniforms=uniforms[:1], **settings)
    assert alone.responses == both.responses[:1]


def test_a_prompt_that_leaves_no_room_is_refused_and_one_that_just_fits_is_not(policy, tokenizer):
    assert sample(policy, tokenizer, [[10] * 52]).batch.input_ids.shape[1] <= 64
    with pytest.raises(BadInput, match="has 53 tokens and max_new_tokens is 12, together more than"):
        sample(policy, tokenizer, [[10] * 53, [11]])


def test_sampler_settings_of_the_base_model_have_no_effect(policy, tokenizer, tmp_path):
    save_folder(policy, tokenizer, tmp_path / "plain")
    changed = copy.deepcopy(policy)
    changed.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, **SAMPLER)
    # As a downloaded folder holds them; transformers refuses to write some of these pairs itself.
    save_folder(policy, tokenizer, tmp_path / "sampler")
    changed.generation_config.to_json_file(tmp_path / "sampler" / "generation_config.json", use_diff=False)
    found = []
    for name in ("plain", "sampler"):
        model = load_policy(tmp_path / name, device="cpu")
        found.append((model, sample(model, load_tokenizer(tmp_path / name), [[10, 11], [12, 13, 14]])))
    (_, plain), (model, other) = found
    assert (model.generation_config.top_k, model.generation_config.repetition_penalty) == (1, 5.0)
    assert torch.equal(plain.batch.input_ids, other.batch.input_ids)
    assert torch.equal(plain.captured, other.captured)


def test_rows_beyond_the_tokenizer_are_never_sampled_even_with_tied_embeddings(policy, tokenizer):
    policy.resize_token_embeddings(len(tokenizer) + 5, mean_resizing=False)
    head = policy.get_output_embeddings().weight
    assert head is policy.get_input_embeddings().weight
    with torch.no_grad():
        # Padded rows that would win nearly every draw: ten times the row that wins now.
        head[len(tokenizer) :] = 10 * head[: len(tokenizer)].abs().max() * torch.randn(5, 16).sign()
    free = sample(policy, tokenizer, [[10, 11]] * 40, forbidden=torch.zeros(len(tokenizer) + 5, dtype=torch.bool))
    assert (free.batch.input_ids >= len(tokenizer)).float().mean() > 0.5
    drawn = sample(policy, tokenizer, [[10, 11]] * 40).batch
    assert (drawn.input_ids[drawn.response_mask] < len(tokenizer)).all()
    assert (drawn.input_ids[drawn.response_mask] != tokenizer.pad_token_id).all()


@pytest.mark.parametrize("greedy", [False, True])
def test_weights_that_are_not_numbers_stop_the_stage(policy, greedy):
    with torch.no_grad():
        policy.model.norm.weight[0] = torch.nan
    with pytest.raises(StageFailed, match="probabilities that are not numbers"):
        generate(
            policy, [[10, 11]], max_new_tokens=3, temperature=1.0, stop_ids=(), forbidden=None, pad_id=0,
            generator=torch.Generator(), greedy=greedy,
        )  # fmt: skip
