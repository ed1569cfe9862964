import pytest
import torch

from rlhf.engine import prepare
from rlhf.losses.bradley_terry import bradley_terry_loss
from rlhf.losses.replaced_tokens import replaced_token_loss
from rlhf.models import build_policy, save_policy
from rlhf.preferences import encode_pairs
from rlhf.reward_batch import Example, losses, with_swaps
from rlhf.reward_model import RewardModel
from rlhf.token_swaps import Swapped
from rlhf.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    tokenizer = train_tokenizer([f"Where is order {n}? I found order {n}. No." for n in range(6)] * 2, vocab_size=300)
    torch.manual_seed(0)
    policy = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=16, context=64)
    folder = tmp_path_factory.mktemp("sft")
    save_policy(policy, tokenizer, folder)
    records = [
        {
            "prompt": [{"role": "user", "content": f"Where is order {n}?"}],
            "chosen": f"I found order {n}.",
            "rejected": "No.",
            "label": 1.0 if n else 0.5,
        }
        for n in range(6)
    ]
    model = RewardModel.from_policy(folder, pooling="mean")
    engine = prepare(model, learning_rate=1e-3, schedule=lambda step: 1.0, max_grad_norm=0.0, precision="float32")
    return tokenizer, policy, encode_pairs(tokenizer, records, max_tokens=64), engine


def run(parts, examples, **changes):
    settings = {"centering": 0.01, "pad_id": 0, "pairs": len(examples), "tokens": 6.0}
    return losses(parts[3], examples, **{**settings, **changes})


def hand_made(pair):
    """The chosen answer with its first token swapped, the second judged but left."""
    size = len(pair.chosen)
    judged, original = [True, True, *[False] * (size - 2)], [False, *[True] * (size - 1)]
    return Swapped([pair.rejected[0], *pair.chosen[1:]], original, judged)


def test_both_losses_equal_their_formulas(parts):
    _, _, pairs, engine = parts
    examples = [Example(pairs[0], None), Example(pairs[1], hand_made(pairs[1]))]
    preference, swap = run(parts, examples, tokens=4.0)

    model = engine.module

    def tokens(prompt, response):
        ids = torch.tensor([[*prompt, *response]])
        return model.token_scores(ids, torch.ones_like(ids, dtype=torch.bool))[0, len(prompt) :]

    scores = [[tokens(pair.prompt, side).mean() for side in (pair.chosen, pair.rejected)] for pair in pairs[:2]]
    expected = bradley_terry_loss(
        torch.stack([row[0] for row in scores]),
        torch.stack([row[1] for row in scores]),
        torch.tensor([0.5, 1.0]),
        margin=None,
        centering=0.01,
    )
    torch.testing.assert_close(preference.loss, expected.loss, atol=1e-6, rtol=0)
    own = tokens(pairs[1].prompt, pairs[1].chosen)[:2]
    swapped = tokens(pairs[1].prompt, hand_made(pairs[1]).response)[:2]
    judged = replaced_token_loss(
        torch.stack([own, swapped]), torch.tensor([[True, True], [False, True]]), torch.ones(2, 2, dtype=torch.bool)
    )
    torch.testing.assert_close(swap.loss, judged.loss, atol=1e-6, rtol=0)


def test_micro_batches_add_up(parts):
    pairs = parts[2]
    examples = [Example(pairs[n], hand_made(pairs[n]) if n % 2 else None) for n in range(5)]
    total = float(sum(example.judged for example in examples))
    whole = run(parts, examples, tokens=total)
    halves = [run(parts, part, pairs=5, tokens=total) for part in (examples[:2], examples[2:])]
    for index in (0, 1):
        torch.testing.assert_close(sum(half[index].loss for half in halves), whole[index].loss, atol=1e-6, rtol=0)


def test_without_swaps_the_second_loss_is_zero(parts):
    _, swap = run(parts, [Example(parts[2][0], None)], tokens=0.0)
    assert float(swap.loss.detach()) == 0.0


def swaps(parts, rows, **changes):
    tokenizer, policy, pairs, _ = parts
    return with_swaps(pairs, rows, policy, tokenizer, **{"share": 1.0, "seed": 3, **changes})


def test_a_share_of_zero_or_one_takes_no_or_every_pair(parts):
    rows = [4, 0, 2]
    assert [example.swapped for example in swaps(parts, rows, share=0.0)] == [None] * 3
    everyone = swaps(parts, rows)
    assert all(example.swapped is not None for example in everyone)
    assert [example.pair for example in everyone] == [parts[2][row] for row in rows]


def test_swaps_do_not_depend_on_ranks(parts, monkeypatch):
    rows = list(range(6))
    whole = swaps(parts, rows, share=0.6)
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shares.append(swaps(parts, rows, share=0.6))
    assert shares == [whole[0::2], whole[1::2]]
