"""TRPO's step: the curvature, the bound, and what happens when no step is to be had."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf.batches import Batch, collate
from rlhf.errors import BadInput
from rlhf.kl import full_kl
from rlhf.logprobs import response_logits, response_logprobs
from rlhf.models import load_policy
from rlhf.rollout import Rollout, whiten_globally
from rlhf.streams import random_source
from rlhf.trust_region import TrustRegion, trust_region_step
from tests.rlhf.recipes import tiny_models as tiny

PROMPTS = [[10, 11], [12], [13, 14, 15], [16]]
RESPONSES = [[17, 18], [19, 20, 21, 22], [17], [18, 19, 23]]


class Bigrams(nn.Module):
    """The least of language models: a row of logits for each token before."""

    def __init__(self, vocabulary):
        super().__init__()
        table = torch.randn(vocabulary, vocabulary, generator=random_source(3), dtype=torch.float64)
        self.table = nn.Parameter(table)

    def get_output_embeddings(self):
        return self

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_policy(tiny.write_sft(tmp_path_factory.mktemp("models") / "sft"), device="cpu")


@pytest.fixture
def policy(llama):
    return copy.deepcopy(llama)


def rollout_of(policy, *, prompts=PROMPTS, responses=RESPONSES, forbidden, advantage=None):
    batch = collate(prompts, responses, pad_id=0)
    with torch.no_grad():
        old = response_logprobs(policy, batch, temperature=1.0, forbidden=forbidden).logprobs
    noise = torch.randn(old.shape, generator=random_source(6)).to(old.dtype)
    whitened = whiten_globally(noise, batch.response_mask)
    return Rollout(
        batch=batch, logprobs=old, values=torch.zeros_like(old), returns=torch.zeros_like(old),
        advantages=whitened if advantage is None else torch.full_like(old, advantage),
    )  # fmt: skip


def nothing_forbidden(policy):
    return torch.zeros(next(policy.parameters()).shape[0], dtype=torch.bool)


def free(policy, **how):
    return rollout_of(policy, forbidden=nothing_forbidden(policy), **how)


def step(policy, rollout, **changes):
    settings = {
        "max_kl": 0.01, "damping": 0.1, "cg_iterations": 10, "backtracks": 10, "temperature": 1.0,
        "forbidden": nothing_forbidden(policy), "rows": 4, "precision": "float32",
    }  # fmt: skip
    return trust_region_step(policy, rollout, **(settings | changes))


def problem_of(policy, rollout, *, rows=4, forbidden=None):
    forbidden = nothing_forbidden(policy) if forbidden is None else forbidden
    return TrustRegion(policy, rollout, temperature=1.0, forbidden=forbidden, rows=rows, precision="float32")


def weights(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


def unchanged(policy, before):
    return all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


def test_the_fisher_product_is_that_of_the_explicit_matrix_of_scores():
    # F = mean over the states of E over v ~ p of score score', and the score of v in the state of token s is
    # (one_hot(v) - p) in row s of the table and 0 elsewhere.
    vocabulary, policy = 6, Bigrams(6)
    forbidden = torch.tensor([False] * 5 + [True])
    prompts, responses = [[1, 2], [3]], [[4, 1, 0], [2, 3]]
    rollout = rollout_of(policy, prompts=prompts, responses=responses, forbidden=forbidden)
    states = [2, 4, 1, 3, 2]  # the tokens before the five response tokens
    fisher = torch.zeros(36, 36, dtype=torch.float64)
    for state in states:
        probabilities = policy.table[state].detach().masked_fill(forbidden, -torch.inf).softmax(dim=0)
        for token in range(vocabulary - 1):
            score = torch.zeros(6, 6, dtype=torch.float64)
            score[state] = nn.functional.one_hot(torch.tensor(token), 6) - probabilities
            fisher += probabilities[token] * torch.outer(score.flatten(), score.flatten()) / len(states)
    vector = torch.randn(36, generator=random_source(9), dtype=torch.float64)
    for rows in (1, 2):
        found = problem_of(policy, rollout, rows=rows, forbidden=forbidden).fisher_product(vector)
        assert torch.allclose(found, fisher @ vector, atol=1e-12)


def test_the_fisher_product_is_the_slope_of_the_kl_gradient_on_a_transformer(policy):
    policy = policy.double()
    assert policy.config._attn_implementation == "sdpa"  # whose fused kernels have no second derivative
    forbidden = nothing_forbidden(policy)
    forbidden[0] = True
    rollout = rollout_of(policy, forbidden=forbidden)
    problem = problem_of(policy, rollout, forbidden=forbidden)
    start = problem.here()
    count = sum(weight.numel() for weight in policy.parameters())
    vector = torch.randn(count, generator=random_source(9), dtype=torch.float64)

    def kl_gradient(distance):
        problem.move(start, distance * vector)
        now = response_logits(policy, rollout.batch)
        kl = full_kl(start.logits[0], now, temperature=1.0, forbidden=forbidden).mean()
        slopes = torch.autograd.grad(kl, list(policy.parameters()))
        problem.restore(start)
        return flat(slopes)

    slope = (kl_gradient(3e-5) - kl_gradient(-3e-5)) / 6e-5  # the norms of Llama compute in float32, so not smaller
    found = problem.fisher_product(vector)
    assert float((found - slope).norm() / slope.norm()) < 1e-4
    assert float(vector @ found) > 0
    by_rows = problem_of(policy, rollout, forbidden=forbidden, rows=1).fisher_product(vector)
    assert torch.allclose(by_rows, found, atol=1e-12)


def test_the_gradient_is_that_of_the_weighted_log_likelihood(policy):
    # At the policy that sampled r = 1, so the gradient of E[r A] is that of E[A log pi].
    rollout = free(policy)
    logprobs = response_logprobs(policy, rollout.batch, temperature=1.0, forbidden=None).logprobs
    wanted = torch.autograd.grad((rollout.advantages * logprobs).sum() / 10, list(policy.parameters()))
    found = problem_of(policy, rollout, rows=3).gradient()
    assert torch.allclose(found, flat(wanted), atol=1e-6)


def test_tokens_that_are_not_learnt_from_count_for_the_bound_only(policy):
    rollout = free(policy)
    learnt = rollout.batch.response_mask.clone()
    learnt[1:] = False  # the two tokens of the first response are left
    logprobs = response_logprobs(policy, rollout.batch, temperature=1.0, forbidden=None).logprobs
    wanted = torch.autograd.grad((rollout.advantages * logprobs)[0].sum() / 2, list(policy.parameters()))
    problem = problem_of(policy, replace(rollout, learn_mask=learnt), rows=2)
    assert torch.allclose(problem.gradient(), flat(wanted), atol=1e-6)
    vector = torch.ones_like(problem.gradient())
    assert torch.equal(problem.fisher_product(vector), problem_of(policy, rollout, rows=2).fisher_product(vector))


def test_a_step_improves_the_surrogate_and_keeps_the_bound(policy):
    rollout = free(policy)
    mask, old_logits = rollout.batch.response_mask, response_logits(policy, rollout.batch).detach()
    found = step(policy, rollout)
    with torch.no_grad():
        logprobs = response_logprobs(policy, rollout.batch, temperature=1.0, forbidden=None).logprobs
        now = response_logits(policy, rollout.batch)
        kl = float(full_kl(old_logits, now, temperature=1.0, forbidden=None).mean())
    gained = float((((logprobs - rollout.logprobs).exp() - 1) * rollout.advantages)[mask].mean())
    assert found["step_kl"] == pytest.approx(kl, rel=1e-3)
    assert found["improvement"] == pytest.approx(gained, rel=1e-3)
    assert found["improvement"] > 0.01
    assert 0.002 < found["step_kl"] <= 0.01  # most of the bound is used
    assert found["step_fraction"] == 0.5 ** found["backtracks"]
    assert 0 < found["cg_residual"] < 1
    assert found["skipped"] == 0


def test_the_full_step_has_the_wanted_kl_where_the_quadratic_model_holds(policy):
    # For a small bound only the quadratic term is left: the full step has KL = max_kl, and half of it a quarter.
    policy = policy.double()
    found = step(policy, free(policy), max_kl=1e-7)
    assert found["step_kl"] == pytest.approx(1e-7 * 0.25 ** found["backtracks"], rel=0.01)


def test_the_natural_step_gains_more_than_the_gradient_at_the_same_kl(policy):
    policy = policy.double()
    rollout = free(policy)
    problem = problem_of(policy, rollout)
    start, gradient = problem.here(), problem.gradient()
    scale = math.sqrt(2e-7 / float(gradient @ problem.fisher_product(gradient)))
    problem.move(start, scale * gradient)
    plain, plain_kl = problem.gain_and_kl(start)
    problem.restore(start)
    found = step(policy, rollout, max_kl=0.99e-7, damping=1e-6, cg_iterations=30)
    assert plain_kl == pytest.approx(1e-7, rel=0.01)
    assert found["improvement"] * 0.5 ** -found["backtracks"] > 1.2 * plain


def test_equal_rollouts_give_equal_weights_and_rows_do_not_matter(policy, llama):
    rollout, other, by_rows = free(policy), copy.deepcopy(llama), copy.deepcopy(llama)
    torch.manual_seed(1)  # the step draws no random number
    found = step(policy, rollout)
    assert step(other, rollout) == found
    assert unchanged(other, policy.state_dict())
    assert step(by_rows, rollout, rows=1)["improvement"] == pytest.approx(found["improvement"], rel=1e-3)
    for name, value in by_rows.state_dict().items():
        assert torch.allclose(value, policy.state_dict()[name], atol=1e-4)


def test_what_lies_under_the_mask_is_never_read(policy, llama):
    rollout = free(policy)
    nan = {
        name: getattr(rollout, name).masked_fill(~rollout.batch.response_mask, torch.nan)
        for name in ("logprobs", "values", "advantages", "returns")
    }
    other = copy.deepcopy(llama)
    assert step(other, Rollout(batch=rollout.batch, **nan)) == step(policy, rollout)
    assert unchanged(other, policy.state_dict())


def test_without_advantages_nothing_moves(policy):
    before, found = weights(policy), step(policy, free(policy, advantage=0.0))
    assert found["step_fraction"] == found["improvement"] == found["step_kl"] == found["grad_norm"] == 0
    assert unchanged(policy, before)


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted(policy):
    before, found = weights(policy), step(policy, free(policy, advantage=math.nan))
    assert (found["skipped"], found["step_fraction"]) == (1, 0)
    assert unchanged(policy, before)


def test_without_an_acceptable_step_the_weights_are_restored_bit_for_bit(policy):
    # So long a step leaves the region where the quadratic model holds, and it may not be halved.
    rollout, before = free(policy), weights(policy)
    refused = step(policy, rollout, max_kl=20.0, backtracks=0)
    assert (refused["step_fraction"], refused["step_kl"], refused["improvement"]) == (0, 0, 0)
    assert unchanged(policy, before)
    assert step(policy, rollout, max_kl=20.0, backtracks=8)["step_fraction"] > 0


def test_weights_that_require_no_gradient_stay(policy):
    frozen = policy.get_input_embeddings().weight.requires_grad_(False)
    before, others = frozen.clone(), weights(policy)
    assert step(policy, free(policy))["step_fraction"] > 0
    assert torch.equal(frozen, before)
    assert not unchanged(policy, others)


def test_tensors_of_unequal_shapes_and_bad_numbers_are_refused(policy):
    rollout = free(policy)
    wide = Batch(*(nn.functional.pad(getattr(rollout.batch, name), (0, 1)) for name in Batch.__slots__))
    wide.attention_mask[:] = True
    mixed = {name: getattr(rollout, name) for name in ("logprobs", "values", "advantages", "returns")}
    with pytest.raises(ValueError, match="has shape"):
        step(policy, Rollout(batch=wide, **mixed))
    for name, value in {"max_kl": 0.0, "damping": -1.0, "backtracks": -1, "rows": 0, "cg_iterations": 0}.items():
        with pytest.raises(ValueError, match=f"{name.removeprefix('cg_')} is {value}"):
            step(policy, rollout, **{name: value})


def test_several_ranks_are_refused(policy, monkeypatch):
    rollout = free(policy)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="trust_region on 2 ranks"):
        step(policy, rollout)
