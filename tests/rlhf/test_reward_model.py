import json

import pytest
import torch
from transformers import AutoModelForTokenClassification, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from rlhf.batches import collate
from rlhf.errors import BadInput
from rlhf.models import build_policy, save_policy
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import train_tokenizer

WIDTH = 64


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["I found order 202, the mug."] * 4, vocab_size=280)


@pytest.fixture(scope="module")
def sft(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sft")
    policy = build_policy(tokenizer, hidden=WIDTH, layers=2, heads=2, intermediate=64, context=64)
    save_policy(policy, tokenizer, folder)
    return folder


@pytest.fixture
def batch():
    return collate([[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14, 15]], pad_id=0)


def make(sft, pooling, scale=1.0):
    torch.manual_seed(3)
    return RewardModel.from_policy(sft, pooling=pooling, scale=scale)


def score(model, batch):
    return model.score(batch.input_ids, batch.attention_mask, batch.response_mask).detach()


def test_head_starts_small_and_without_bias(sft):
    head = make(sft, "mean").head
    # standard deviation 1 / sqrt(64 + 1) = 0.124; the estimate from 64 weights is within a third of it
    assert 0.08 < float(head.weight.detach().std()) < 0.17
    assert head.bias.tolist() == [0.0]


def test_head_weights_are_normal_with_variance_one_over_width_plus_one(sft):
    # 40 heads of 64 weights: the root mean square of 2560 draws is within 3 / sqrt(2 * 2560) = 4.2 % of 1 / sqrt(65)
    torch.manual_seed(0)
    weights = torch.cat([RewardModel.from_policy(sft, pooling="mean").head.weight.detach()[0] for _ in range(40)])
    assert float((weights**2).mean().sqrt()) == pytest.approx(1 / 65**0.5, rel=0.042)
    # a uniform distribution of that variance would end at 1.73 standard deviations; a normal one has 4.6 % beyond 2
    assert 0.03 < float((weights.abs() * 65**0.5 > 2).double().mean()) < 0.06


def test_the_trunk_is_the_policys(sft, tokenizer):
    policy = AutoModelForTokenClassification.from_pretrained(sft, num_labels=1)
    model = make(sft, "mean")
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, model.trunk.model.state_dict()[name]), name


def test_each_pooling_reads_the_response_only(sft, batch):
    tokens = make(sft, "mean").token_scores(batch.input_ids, batch.attention_mask).detach()
    first, second = tokens[0, 3:5], tokens[1, 1:6]
    expected = {
        "last": [first[1], second[4]],
        "mean": [(first[0] + first[1]) / 2, second.sum() / 5],
        "sum": [first[0] + first[1], second.sum()],
    }
    for pooling, values in expected.items():
        torch.testing.assert_close(score(make(sft, pooling), batch), torch.stack(values))


def test_scale_multiplies_the_score(sft, batch):
    torch.testing.assert_close(score(make(sft, "sum", 0.125), batch), score(make(sft, "sum"), batch) / 8)


@pytest.mark.parametrize("pooling", ["last", "mean", "sum"])
def test_padding_and_what_stands_in_it_do_not_matter(sft, pooling, batch):
    model = make(sft, pooling)
    alone = score(model, collate([[5, 6, 7]], [[9, 10]], pad_id=0))
    torch.testing.assert_close(score(model, batch)[:1], alone, atol=1e-6, rtol=0)
    other = batch.input_ids.masked_fill(~batch.attention_mask, 20)
    torch.testing.assert_close(model.score(other, batch.attention_mask, batch.response_mask), score(model, batch))


def test_left_padding_is_refused(sft):
    mask = torch.tensor([[False, True]])
    with pytest.raises(ValueError, match="right-padded"):
        make(sft, "mean").token_scores(torch.tensor([[0, 5]]), mask)


def test_an_empty_response_is_refused(sft, batch):
    with pytest.raises(ValueError, match="no response token"):
        make(sft, "mean").score(batch.input_ids, batch.attention_mask, torch.zeros_like(batch.response_mask))


def test_scores_stay_in_fp32_under_autocast(sft, batch):
    with torch.autocast("cpu", torch.bfloat16):
        values = score(make(sft, "mean"), batch)
    assert values.dtype == torch.float32


def test_normalising_is_affine(sft):
    model = make(sft, "mean")
    model.mean, model.std = 2.0, 4.0
    # (10 - 2) / 4 = 2
    assert model.normalised(torch.tensor([10.0, 2.0])).tolist() == [2.0, 0.0]


def test_scaling_the_head_scales_token_scores(sft, batch):
    model = make(sft, "mean")
    before = model.token_scores(batch.input_ids, batch.attention_mask).detach()
    model.scale_head(0.1)
    torch.testing.assert_close(model.token_scores(batch.input_ids, batch.attention_mask), 0.1 * before)


@pytest.mark.parametrize("pooling", ["last", "mean", "sum"])
def test_reload_gives_the_same_scores_head_and_normaliser_included(sft, tokenizer, batch, tmp_path, pooling):
    model = make(sft, pooling, 0.5)
    # numbers without a short decimal: nothing may be rounded on the way
    model.mean, model.std = 1 / 3, 10 / 7
    with torch.no_grad():
        model.head.bias.fill_(0.1)
    model.save(tmp_path, tokenizer)
    again = RewardModel.load(tmp_path, device="cpu")
    assert torch.equal(score(again, batch), score(model, batch))
    assert torch.equal(again.normalised(score(again, batch)), model.normalised(score(model, batch)))
    assert (again.pooling, again.scale, again.mean, again.std) == (pooling, 0.5, 1 / 3, 10 / 7)
    # and once more: saving what was loaded changes no byte
    again.save(tmp_path / "again", tokenizer)
    for name in ("model.safetensors", "config.json", "reward.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_folder_loads_with_plain_transformers(sft, tokenizer, batch, tmp_path):
    model = make(sft, "mean")
    model.save(tmp_path, tokenizer)
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path)
    logits = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.squeeze(-1)
    expected = model.token_scores(batch.input_ids, batch.attention_mask)
    torch.testing.assert_close(logits[batch.attention_mask], expected[batch.attention_mask], atol=1e-6, rtol=1e-5)


def test_a_policy_folder_is_not_a_reward_model(sft):
    with pytest.raises(BadInput, match=r"reward\.json"):
        RewardModel.load(sft, device="cpu")


def test_a_lost_head_is_noticed(sft, tmp_path):
    for path in sft.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "reward.json").write_text(json.dumps({"pooling": "mean", "scale": 1, "mean": 0, "std": 1}))
    with pytest.raises(BadInput, match="weights are missing"):
        RewardModel.load(tmp_path, device="cpu")


@pytest.mark.parametrize(("pooling", "std"), [("first", 1.0), ("mean", 0.0)])
def test_bad_settings_are_refused(sft, pooling, std):
    trunk = make(sft, "mean").trunk
    with pytest.raises(ValueError, match="wanted"):
        RewardModel(trunk, pooling=pooling, scale=1.0, mean=0.0, std=std)


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_other_families_work_and_drop_nothing_out(family, tmp_path, tokenizer, batch):
    rows = len(tokenizer)
    if family == "gpt2":
        policy = GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_positions=32, n_embd=16, n_layer=2, n_head=2))
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        policy = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=rows, max_position_embeddings=32, **sizes))
    policy.config.pad_token_id = 0
    policy.save_pretrained(tmp_path / "policy")
    model = RewardModel.from_policy(tmp_path / "policy", pooling="mean").train()
    assert torch.equal(score(model, batch), score(model, batch))
    model.save(tmp_path / "reward", tokenizer)
    torch.testing.assert_close(score(RewardModel.load(tmp_path / "reward", device="cpu"), batch), score(model, batch))


def test_forward_is_what_engines_call(sft, batch):
    model = make(sft, "mean")
    assert torch.equal(model(batch.input_ids, batch.attention_mask, batch.response_mask), score(model, batch))
    assert model(batch.input_ids, batch.attention_mask).shape == batch.input_ids.shape
