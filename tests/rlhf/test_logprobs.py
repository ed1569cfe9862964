"""Log-probabilities by hand, and against the models' own logits with padding on either side."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

import rlhf.logprobs
from rlhf.logprobs import (
    gather_logprobs,
    log_softmax,
    response_logits,
    response_logprobs,
    scatter_response,
    table_entropy,
)

ATOL = 1e-5
VOCABULARY = 23
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
NEOX = {name: size for name, size in SIZES.items() if name not in ("num_key_value_heads", "head_dim")}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES),
    "gemma": GemmaConfig(**SIZES),
    # A cap so low that leaving it out would show.
    "gemma2": Gemma2Config(**SIZES, final_logit_softcapping=0.5),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "neox": GPTNeoXConfig(**NEOX, hidden_dropout=0.0, attention_dropout=0.0),
}


@dataclass
class Batch:
    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def batch_of(rows: list[tuple[int, int]], *, left: int = 0, width: int = 12) -> Batch:
    """Rows of (prompt length, response length) with fixed pseudo-random ids, `left` pads before and the rest after."""
    ids = torch.zeros(len(rows), width + left, dtype=torch.long)
    attention, response = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        end = left + prompt + answer
        ids[row, left:end] = torch.arange(prompt + answer) * 7 % (VOCABULARY - 1) + row + 1
        attention[row, left:end] = True
        response[row, left + prompt : end] = True
    return Batch(ids % VOCABULARY, attention, response)


ROWS = [(3, 5), (1, 2), (6, 6)]


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            # The usual initialisation is so small that all logits would be almost equal.
            parameter.mul_(5)
    return model.eval()


def test_gather_by_hand() -> None:
    # p = (1, 2, 5) / 8; ids 2 and 0
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    found = gather_logprobs(logits, torch.tensor([2, 0]), temperature=1.0, forbidden=None)
    assert found.tolist() == pytest.approx([math.log(5 / 8), math.log(1 / 8)], abs=ATOL)


def test_temperature_divides_the_logits() -> None:
    # Temperature 2: square roots of (1, 4): p = (1/3, 2/3)
    logits = torch.log(torch.tensor([[1.0, 4.0]]))
    assert gather_logprobs(logits, torch.tensor([1]), temperature=2.0, forbidden=None).item() == pytest.approx(
        math.log(2 / 3), abs=ATOL
    )


def entropy(logits: Tensor, *, temperature: float, forbidden: Tensor | None) -> Tensor:
    return table_entropy(log_softmax(logits, temperature=temperature, forbidden=forbidden), forbidden)


def test_forbidden_ids_have_no_probability_and_pass_no_gradient() -> None:
    # Without id 2: p = (1/3, 2/3)
    logits = torch.log(torch.tensor([1.0, 2.0, 5.0])).requires_grad_()
    forbidden = torch.tensor([False, False, True])
    table = log_softmax(logits, temperature=1.0, forbidden=forbidden)
    assert table.tolist() == pytest.approx([math.log(1 / 3), math.log(2 / 3), -math.inf], abs=ATOL)
    spread = entropy(logits, temperature=1.0, forbidden=forbidden)
    assert spread.item() == pytest.approx(math.log(3) - 2 / 3 * math.log(2), abs=ATOL)
    (table[0] + spread).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[2] == 0


def test_entropy_bounds() -> None:
    assert entropy(torch.zeros(2, 4), temperature=1.0, forbidden=None).tolist() == pytest.approx([math.log(4)] * 2)
    assert entropy(torch.tensor([100.0, 0.0]), temperature=1.0, forbidden=None).item() == pytest.approx(0, abs=ATOL)


def test_half_precision_is_lifted_before_the_softmax() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = gather_logprobs(logits, torch.arange(4), temperature=1.0, forbidden=None)
    assert found.dtype == torch.float32
    assert torch.allclose(found.exp().sum(), torch.softmax(logits.double(), -1)[range(4), range(4)].sum().float())


def test_gradcheck() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    forbidden = torch.tensor([False, True, False, False, False])
    ids = torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda x: gather_logprobs(x, ids, temperature=0.7, forbidden=forbidden), logits)
    assert torch.autograd.gradcheck(lambda x: entropy(x, temperature=0.7, forbidden=forbidden), logits)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("left", [0, 5])
def test_parity_with_the_logits_of_the_model(name: str, left: int) -> None:
    model, batch = make(name), batch_of(ROWS, left=left)
    forbidden = torch.zeros(VOCABULARY, dtype=torch.bool)
    forbidden[0] = True
    with torch.no_grad():
        found = response_logprobs(model, batch, temperature=0.7, forbidden=forbidden, with_entropy=True)
        assert found.entropy is not None
        # Each row alone and unpadded, through the whole model, by the textbook formula in float64.
        for row, (prompt, answer) in enumerate(ROWS):
            ids = batch.input_ids[row, left : left + prompt + answer]
            logits = model(input_ids=ids[None]).logits[0].double() / 0.7
            logits[:, 0] = -torch.inf
            table = torch.log_softmax(logits, -1)
            wanted = torch.tensor([table[t - 1, ids[t]] for t in range(prompt, prompt + answer)])
            assert torch.allclose(found.logprobs[row][batch.response_mask[row]].double(), wanted, atol=ATOL)
            spread = -(table.exp() * table)[prompt - 1 : -1, 1:].sum(-1)
            assert torch.allclose(found.entropy[row][batch.response_mask[row]].double(), spread, atol=ATOL)
    assert bool((found.logprobs[~batch.response_mask] == 0).all())
    assert bool((found.entropy[~batch.response_mask] == 0).all())


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_left_padding_changes_no_logprob(name: str) -> None:
    model = make(name)
    with torch.no_grad():
        right, left = (
            response_logprobs(model, batch, temperature=1.0, forbidden=None).logprobs[batch.response_mask]
            for batch in (batch_of(ROWS), batch_of(ROWS, left=12))
        )
    assert torch.allclose(left, right, atol=ATOL)


def test_what_padding_holds_changes_nothing() -> None:
    model, batch = make("llama"), batch_of(ROWS)
    with torch.no_grad():
        before = response_logprobs(model, batch, temperature=1.0, forbidden=None).logprobs
        batch.input_ids[~batch.attention_mask] = 17
        after = response_logprobs(model, batch, temperature=1.0, forbidden=None).logprobs
    assert torch.equal(before, after)


def test_logits_come_in_row_major_order_and_scatter_puts_them_back() -> None:
    model, batch = make("qwen2"), batch_of(ROWS)
    with torch.no_grad():
        logits = response_logits(model, batch)
        wanted = response_logprobs(model, batch, temperature=1.0, forbidden=None).logprobs
    assert logits.shape == (13, VOCABULARY)
    values = gather_logprobs(logits, batch.input_ids[batch.response_mask], temperature=1.0, forbidden=None)
    assert torch.allclose(scatter_response(values, batch.response_mask), wanted, atol=ATOL)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_blocks_change_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch, with_entropy: bool) -> None:
    def run() -> tuple[Tensor, list[Tensor]]:
        model, batch = make("gemma2"), batch_of(ROWS)
        found = response_logprobs(model, batch, temperature=1.0, forbidden=None, with_entropy=with_entropy)
        loss = found.logprobs.sum() if found.entropy is None else (found.logprobs * found.entropy).sum()
        loss.backward()
        return found.logprobs.detach(), [p.grad for p in model.parameters() if p.grad is not None]

    whole, whole_gradients = run()
    monkeypatch.setattr(rlhf.logprobs, "CHUNK_ELEMENTS", 4 * VOCABULARY)
    blocks, block_gradients = run()
    assert torch.allclose(blocks, whole, atol=ATOL)
    assert len(block_gradients) == len(whole_gradients) > 0
    for found, wanted in zip(block_gradients, whole_gradients, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_gradient_makes_the_sampled_tokens_likelier() -> None:
    model, batch = make("llama"), batch_of(ROWS)
    before = response_logprobs(model, batch, temperature=1.0, forbidden=None).logprobs.sum()
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter += 1e-4 * parameter.grad
        after = response_logprobs(model, batch, temperature=1.0, forbidden=None).logprobs.sum()
    assert after > before


def test_scatter_by_hand() -> None:
    mask = torch.tensor([[False, True, True], [True, False, False]])
    values = torch.tensor([1.0, 2.0, 3.0]).requires_grad_()
    found = scatter_response(values, mask)
    assert found.tolist() == [[0, 1, 2], [3, 0, 0]]
    (found * torch.tensor([[9.0, 1.0, 2.0], [5.0, 9.0, 9.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 2, 5]
    with pytest.raises(ValueError, match=r"values has shape \(2,\) but response_mask of shape \(2, 3\) has 3 True"):
        scatter_response(torch.zeros(2), mask)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ids have shape \(3,\) but logits have \(2, 5\)"):
        gather_logprobs(torch.zeros(2, 5), torch.zeros(3, dtype=torch.long), temperature=1.0, forbidden=None)
    with pytest.raises(ValueError, match="temperature is 0"):
        entropy(torch.zeros(2, 5), temperature=0.0, forbidden=None)
    with pytest.raises(ValueError, match=r"forbidden has shape \(4,\) but logits have \(2, 5\)"):
        entropy(torch.zeros(2, 5), temperature=1.0, forbidden=torch.zeros(4, dtype=torch.bool))
