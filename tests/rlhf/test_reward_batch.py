import pytest
import torch

from rlhf.engine import prepare
from rlhf.losses.bradley_terry import bradley_terry_loss
from rlhf.losses.rankings import plackett_luce_loss, ranking_pair_loss
from rlhf.losses.replaced_tokens import replaced_token_loss
from rlhf.models import build_policy, save_policy
from rlhf.preferences import Ranking, encode_pairs
from rlhf.reward_batch import Example, judged_tokens, losses, with_swaps
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


def ranking(pairs, number, ranks=(1, 2, 2), scores=(0.0, 0.0, 0.0)):
    """Three answers to the prompt of a pair, the third a piece of the first."""
    pair = pairs[number]
    return Ranking(pair.prompt, [pair.chosen, pair.rejected, pair.chosen[1:]], list(ranks), list(scores))


def raw(parts, prompt, response):
    ids = torch.tensor([[*prompt, *response]])
    return parts[3].module.token_scores(ids, torch.ones_like(ids, dtype=torch.bool))[0, len(prompt) :].mean()


@pytest.mark.parametrize("kind", ["pairs", "plackett_luce"])
def test_a_ranking_beside_a_pair_equals_its_formula(parts, kind):
    pairs = parts[2]
    row = ranking(pairs, 2)
    found, swap = run(parts, [row, Example(pairs[1], hand_made(pairs[1]))], ranking_loss=kind, tokens=4.0)
    alone, alone_swap = run(parts, [Example(pairs[1], hand_made(pairs[1]))], pairs=2, tokens=4.0)
    scores = torch.stack([raw(parts, row.prompt, response) for response in row.responses])[None]
    inputs = (scores, torch.tensor([row.ranks]), torch.ones(1, 3, dtype=torch.bool))
    settings = {"centering": 0.01, "total_rankings": 2}
    if kind == "pairs":
        other = ranking_pair_loss(*inputs, strengths=None, **settings)
    else:
        other = plackett_luce_loss(*inputs, **settings)
    torch.testing.assert_close(found.loss, alone.loss + other.loss, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.margin, alone.margin + other.margin, atol=1e-6, rtol=0)
    # two elements: the mean of their two accuracies
    torch.testing.assert_close(found.accuracy, (alone.accuracy + other.accuracy) / 2)
    torch.testing.assert_close(swap.loss, alone_swap.loss, atol=1e-6, rtol=0)


def test_a_ranking_of_two_is_the_pair_itself(parts):
    pair = parts[2][1]._replace(gap=2.0)
    row = Ranking(pair.prompt, [pair.rejected, pair.chosen], [2, 1], [1.0, 3.0])
    one, _ = run(parts, [Example(pair, None)], tokens=1.0, margin_coef=0.3)
    other, _ = run(parts, [row], tokens=1.0, margin_coef=0.3)
    torch.testing.assert_close(other.loss, one.loss, atol=1e-6, rtol=0)
    assert other.accuracy == one.accuracy


def test_margins_are_the_gap_times_their_price(parts):
    pair = parts[2][1]._replace(gap=2.0)
    scores = [raw(parts, pair.prompt, side)[None] for side in (pair.chosen, pair.rejected)]
    found, _ = run(parts, [Example(pair, None)], tokens=1.0, margin_coef=0.25)
    expected = bradley_terry_loss(*scores, torch.ones(1), margin=torch.tensor([0.5]), centering=0.01)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-6, rtol=0)
    unpriced, _ = run(parts, [Example(pair, None)], tokens=1.0)
    ungapped, _ = run(parts, [Example(parts[2][1], None)], tokens=1.0, margin_coef=0.25)
    assert torch.equal(unpriced.loss, ungapped.loss)


def test_micro_batches_of_pairs_and_rankings_add_up(parts):
    pairs = parts[2]
    rows = [
        Example(pairs[1], hand_made(pairs[1])),
        ranking(pairs, 2),
        ranking(pairs, 3, (1, 1, 1)),
        Example(pairs[0], None),
    ]
    total = float(judged_tokens(rows))
    whole = run(parts, rows, tokens=total, margin_coef=0.1)
    split = [run(parts, part, pairs=4, tokens=total, margin_coef=0.1) for part in (rows[:1], rows[1:3], rows[3:])]
    for index in (0, 1):
        torch.testing.assert_close(sum(part[index].loss for part in split), whole[index].loss, atol=1e-6, rtol=0)


def test_rankings_get_no_swap_and_pairs_keep_theirs(parts):
    tokenizer, policy, pairs, _ = parts
    mixed = [ranking(pairs, 0), pairs[4], ranking(pairs, 1), pairs[5]]
    found = with_swaps(mixed, [0, 1, 2, 3], policy, tokenizer, share=1.0, seed=3)
    assert [found[0], found[2]] == [mixed[0], mixed[2]]
    assert all(isinstance(found[row], Example) and found[row].swapped is not None for row in (1, 3))
    assert judged_tokens(found) == found[1].judged + found[3].judged
