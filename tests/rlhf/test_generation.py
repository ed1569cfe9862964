"""Sampling is checked on the families that people use.

Rotary and learned positions, grouped keys, norms of queries, parallel residuals; sliding windows and capped scores,
which take the way of any other model.
"""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf import matmul
from rlhf.batches import collate
from rlhf.decoder import PaddedDecoder, TableDecoder, make_decoder
from rlhf.errors import BadInput
from rlhf.generation import generate, row_uniforms
from rlhf.logprobs import response_logprobs
from rlhf.models import remove_dropout

ATOL = 1e-5
VOCAB, PAD, STOPS = 40, 0, (3, 7, 11, 20)
PROMPTS = [[5, 6, 7, 8, 9, 10], [12], [13, 14, 15], [16, 17, 18, 19, 21, 22, 23, 24], [5, 6]]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"num_key_value_heads": 1, "head_dim": 8}),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 2, "sliding_window": None}),
    "sliding": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 2, "sliding_window": 4}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}),
}
BY_TABLES = ("llama", "qwen2", "qwen3", "gemma", "neox", "gpt2", "mistral")


def build(family):
    torch.manual_seed(1)
    wide = {"vocab_size": VOCAB, "pad_token_id": PAD, "max_position_embeddings": 64, "initializer_range": 0.3}
    if family in FAMILIES:
        kind, config, own = FAMILIES[family]
        model = kind(config(**wide, **SIZES, **own))
    else:
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, pad_token_id=PAD, **sizes))
    remove_dropout(model)
    return model.eval()


@pytest.fixture(scope="module", params=[*FAMILIES, "gpt2"])
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def forbidden():
    mask = torch.zeros(VOCAB, dtype=torch.bool)
    mask[[PAD, 38, 39]] = True
    return mask


def sample(model, prompts=PROMPTS, seed=0, **changes):
    settings = {
        "max_new_tokens": 12,
        "temperature": 0.7,
        "stop_ids": STOPS,
        "forbidden": forbidden(),
        "pad_id": PAD,
        "generator": torch.Generator().manual_seed(seed),
    }
    return generate(model, prompts, **{**settings, **changes})


def test_captured_log_probs_equal_a_recompute(model):
    result = sample(model)
    batch = collate(PROMPTS, result.responses, pad_id=PAD)
    again = response_logprobs(model, batch, temperature=0.7, forbidden=forbidden()).logprobs
    for row, captured in enumerate(result.logprobs):
        expected = again[row][batch.response_mask[row]]
        torch.testing.assert_close(torch.tensor(captured), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "neox"])
def test_a_library_that_rearranges_weights_gives_the_same_numbers(family):
    plain, model = build(family), build(family)
    matmul.choose("onednn")
    matmul.adopt(model)
    matmul.choose("native")
    assert any(type(layer) in matmul.REPLACED.values() for layer in model.modules())
    expected, found = sample(plain), sample(model)
    assert found.responses == expected.responses
    for a, b in zip(found.logprobs, expected.logprobs, strict=True):
        assert a == pytest.approx(b, abs=ATOL)


def test_greedy_tokens_equal_those_of_transformers(model):
    ours = sample(model, greedy=True, generator=None, temperature=1.0)
    for prompt, response in zip(PROMPTS, ours.responses, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=list(STOPS),
            pad_token_id=PAD,
            suppress_tokens=[PAD, 38, 39],
        )
        assert response == theirs[0, len(prompt) :].tolist()


def test_the_families_that_attend_fully_go_the_fast_way():
    found = {
        family for family in (*FAMILIES, "gpt2")
        if type(make_decoder(build(family), PROMPTS, max_new_tokens=2, pad_id=PAD)) is TableDecoder
    }  # fmt: skip
    assert found == set(BY_TABLES)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(make_decoder(build("llama"), PROMPTS, max_new_tokens=2, pad_id=PAD)) is PaddedDecoder


def test_equal_prompts_get_answers_of_their_own(model):
    prompts = [PROMPTS[0], PROMPTS[2], PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    uniforms = row_uniforms(range(5), 12)
    together = sample(model, prompts, generator=None, uniforms=uniforms)
    assert together.responses[0] != together.responses[2]
    for row, prompt in enumerate(prompts):
        alone = sample(model, [prompt], generator=None, uniforms=uniforms[row : row + 1])
        assert alone.responses[0] == together.responses[row]
        assert alone.logprobs[0] == pytest.approx(together.logprobs[row], abs=ATOL)


def test_dropping_finished_rows_changes_no_token(model):
    dropped, kept = sample(model), sample(model, compact=False)
    assert dropped.responses == kept.responses
    assert dropped.ended == kept.ended
    assert len(set(map(len, dropped.responses))) > 1
    for a, b in zip(dropped.logprobs, kept.logprobs, strict=True):
        assert a == pytest.approx(b, abs=ATOL)


def test_company_in_the_batch_does_not_change_a_row(model):
    uniforms = row_uniforms(range(len(PROMPTS)), 12)
    together = sample(model, generator=None, uniforms=uniforms)
    for row, prompt in enumerate(PROMPTS):
        alone = sample(model, [prompt], generator=None, uniforms=uniforms[row : row + 1])
        assert alone.responses[0] == together.responses[row]


def test_responses_end_at_the_first_stop_or_at_the_limit(llama):
    result = sample(llama)
    for response, ended in zip(result.responses, result.ended, strict=True):
        assert not any(token in STOPS for token in response[:-1])
        assert ended == (response[-1] in STOPS)
        assert ended or len(response) == 12
    assert any(result.ended)


def test_each_response_is_told_of_once_as_it_ends(llama):
    told = []
    result = sample(llama, finished=lambda *response: told.append(response))
    assert [row for row, _, _ in told] != sorted(row for row, _, _ in told)
    assert sorted(told) == [(row, result.responses[row], result.ended[row]) for row in range(len(PROMPTS))]
    lengths = [len(ids) for _, ids, _ in told]
    assert lengths == sorted(lengths)
    assert sample(llama) == result


def test_forbidden_tokens_never_appear(llama):
    blocked = torch.ones(VOCAB, dtype=torch.bool)
    blocked[[9, 25]] = False
    result = sample(llama, forbidden=blocked)
    assert {token for response in result.responses for token in response} == {9, 25}


def test_one_seed_gives_one_result_and_another_seed_another(llama):
    assert sample(llama, seed=1) == sample(llama, seed=1)
    assert sample(llama, seed=1).responses != sample(llama, seed=2).responses


def test_the_generator_advances_the_same_however_long_responses_get(llama):
    states = []
    for stops in ((), range(VOCAB)):
        source = torch.Generator().manual_seed(3)
        sample(llama, stop_ids=stops, generator=source)
        states.append(source.get_state())
    assert torch.equal(*states)


def test_samples_follow_the_distribution(llama):
    prompt, draws = PROMPTS[0], 4000
    with torch.no_grad():
        logits = llama(torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax((logits / 0.7).masked_fill(forbidden(), -torch.inf), dim=-1)
    result = sample(llama, [prompt] * draws, max_new_tokens=1)
    counts = torch.bincount(torch.tensor([response[0] for response in result.responses]), minlength=VOCAB)
    # Pearson's statistic has mean (and here about) V - 1; six standard deviations of sqrt(2 (V - 1)) on top.
    likely = expected * draws >= 5
    statistic = float(((counts - expected * draws)[likely] ** 2 / (expected * draws)[likely]).sum())
    degrees = int(likely.sum())
    assert statistic < degrees + 6 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("value", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_unit_interval_give_allowed_tokens(llama, value):
    uniforms = torch.full((len(PROMPTS), 3), value, dtype=torch.float64)
    result = sample(llama, max_new_tokens=3, generator=None, uniforms=uniforms, stop_ids=())
    assert not any(forbidden()[token] for response in result.responses for token in response)


def test_a_prompt_that_does_not_fit_is_refused(llama):
    with pytest.raises(BadInput, match="context of 64"):
        sample(llama, [[5] * 60])


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"max_new_tokens": 0}, {"generator": None}])
def test_impossible_settings_are_refused(llama, changes):
    with pytest.raises(ValueError, match="generate"):
        sample(llama, **changes)


@pytest.mark.parametrize("prompts", [[], [[5], []]])
def test_missing_prompts_are_refused(llama, prompts):
    with pytest.raises(ValueError, match="empty prompt"):
        sample(llama, prompts)


def test_row_uniforms_belong_to_the_seed_and_not_to_the_place():
    first, second = row_uniforms([4, 9], 5), row_uniforms([9, 4, 2**70], 5)
    assert torch.equal(first[0], second[1])
    assert not torch.equal(first[0], first[1])
    assert bool(((first >= 0) & (first < 1)).all())
