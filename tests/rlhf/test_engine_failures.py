"""A loss or gradient that is not finite: nothing is touched, it is counted, after some in a row the stage stops."""

import copy
import dataclasses
import json
import logging

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.checkpoint import KEY_VARIABLE, Checkpoints
from rlhf.engine import MAX_BAD_STEPS, prepare
from rlhf.errors import StageFailed
from rlhf.models import load_policy, save_policy
from rlhf.outputs import read_jsonl
from rlhf.recipes import sft
from rlhf.tokenizer import train_tokenizer
from tests.rlhf.recipes.test_sft import CONFIG

SETTINGS = {"learning_rate": 0.1, "schedule": lambda step: 1.0, "max_grad_norm": 1.0, "precision": "float32"}
DATA = torch.arange(12.0).reshape(4, 3) / 12


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


def trained():
    """An engine with moments that a bad gradient could spoil."""
    torch.manual_seed(0)
    engine = prepare(nn.Linear(3, 2), **SETTINGS)
    engine.backward(good(engine))
    engine.step()
    return engine


def good(engine):
    return (engine(DATA) ** 2).mean()


def bad_loss(engine):
    return good(engine) * torch.nan


def infinite_loss(engine):
    return good(engine) + torch.inf  # its gradient is finite


def bad_gradient(engine):
    return good(engine) + (engine(DATA) * 0).sqrt().sum()  # its value is finite, its slope 1 / 0 * 0


def weights_and_moments(engine):
    state = copy.deepcopy({"module": engine.module.state_dict(), "state": engine.optimizer.state_dict()["state"]})
    return [*state["module"].values(), *(value for each in state["state"].values() for value in each.values())]


@pytest.mark.parametrize("spoil", [bad_loss, infinite_loss, bad_gradient])
def test_neither_weights_nor_moments_see_it(spoil, caplog):
    engine = trained()
    before = weights_and_moments(engine)
    engine.backward(spoil(engine))
    with caplog.at_level(logging.WARNING):
        result = engine.step()
    assert result["skipped"] == engine.skipped == 1
    assert "update skipped (1 in a row)" in caplog.text
    assert len(before) == 2 + 2 * 3  # weight and bias; step, first and second moment of each
    assert all(torch.equal(one, other) for one, other in zip(before, weights_and_moments(engine), strict=True))


@pytest.mark.parametrize("spoil", [bad_loss, infinite_loss, bad_gradient])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_micro_batch_spoils_the_step_as_a_whole(spoil, place):
    engine = trained()
    before = weights_and_moments(engine)
    for number in range(3):
        engine.backward((spoil if number == place else good)(engine), final=number == 2)
    assert engine.step()["skipped"] == 1
    assert all(torch.equal(one, other) for one, other in zip(before, weights_and_moments(engine), strict=True))


@pytest.mark.parametrize("spoil", [bad_loss, infinite_loss, bad_gradient])
def test_the_next_step_is_that_of_a_run_without_the_bad_one(spoil):
    engine, clean = trained(), trained()
    engine.backward(good(engine), final=False)
    engine.backward(spoil(engine))
    engine.step()
    for each in (engine, clean):
        each.backward(good(each))
        each.step()
    assert torch.equal(engine.module.weight, clean.module.weight)
    assert (engine.bad_in_a_row, clean.skipped) == (0, 0)


def test_a_bad_loss_after_good_ones_starts_the_count_again():
    engine = trained()
    for _ in range(3):
        for _ in range(MAX_BAD_STEPS - 1):
            engine.backward(bad_loss(engine))
            engine.step()
        engine.backward(good(engine))
        engine.step()
    assert engine.skipped == 3 * (MAX_BAD_STEPS - 1)


# Real training from here on: a base model whose embedding of one word is NaN, as a broken download may have it.
WORD = "zebra"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Untied embeddings, so that only what reads the word is spoilt."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["I found order 1.", "Order 1?"], vocab_size=270)
    tokenizer.add_tokens([WORD])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), **sizes, max_position_embeddings=64, bos_token_id=None, pad_token_id=0,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(WORD)] = torch.nan
    save_policy(model, tokenizer, folder / "broken")
    return folder


def write_demonstrations(folder, words):
    folder.mkdir()
    rows = [
        {"prompt": [{"role": "user", "content": f"Order {word}?"}], "response": f"I found order {word}."}
        for word in words
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("dev", "test"):
        (folder / f"{split}.jsonl").write_text("")
    return folder


def fine_tune(folder, base, demonstrations, **changes):
    config = dataclasses.replace(CONFIG, base_model="broken", batch_size=2, epochs=1, samples=0, **changes)
    paths = {name: folder / name for name in ("model", "metrics", "curves", "samples")}
    sft.main(config, seed=1, stage="sft", demonstrations=demonstrations, base=base, **paths)
    return json.loads(paths["metrics"].read_text())


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_poisoned_batch_of_real_training_is_skipped_and_counted(base, tmp_path, micro_batch):
    demonstrations = write_demonstrations(tmp_path / "data", ["1"] * 11 + [WORD])
    report = fine_tune(tmp_path, base, demonstrations, micro_batch=micro_batch)
    assert (report["updates"], report["skipped_updates"]) == (6, 1)
    before, after = (load_policy(folder, device="cpu").state_dict() for folder in (base / "broken", tmp_path / "model"))
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    for name, weight in after.items():
        # The one row that was broken is what it was; everything else is finite.
        wanted = 16 if name == "model.embed_tokens.weight" else 0
        assert int(torch.isnan(weight).sum()) == wanted, name


def test_a_stage_that_only_meets_bad_batches_stops_and_keeps_the_last_good_checkpoint(base, tmp_path, monkeypatch):
    # Where the bad ones stand is told by the order of the run: two good steps first, then nothing but bad ones.
    demonstrations = write_demonstrations(tmp_path / "data", ["1"] * 4 + [WORD] * 2 * MAX_BAD_STEPS)
    steps = [[2 * step, 2 * step + 1] for step in range(2 + MAX_BAD_STEPS)]
    monkeypatch.setattr(sft, "plan_run", lambda *_, **__: (steps, len(steps)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, "k")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    with pytest.raises(StageFailed, match=f"step 6: {MAX_BAD_STEPS} updates in a row .* try a lower learning_rate"):
        fine_tune(tmp_path, base, demonstrations)
    assert not (tmp_path / "model").exists()
    state = Checkpoints("sft").load()
    assert state is not None
    # Two good updates, and then the weights and moments stood still.
    assert state["engine"]["counters"] == [2 + MAX_BAD_STEPS - 1, MAX_BAD_STEPS - 1, MAX_BAD_STEPS - 1]
    pieces = state["engine"]["pieces"]
    embedding = pieces["model.embed_tokens.weight"]["values"].pop("weight")
    assert int(torch.isnan(embedding).sum()) == 16
    assert all(piece["step"] == 2 for piece in pieces.values())
    assert all(torch.isfinite(value).all() for piece in pieces.values() for value in piece["values"].values())
    live = list(read_jsonl(tmp_path / ".ratchet/tmp/live/sft/k.jsonl"))
    assert [row["skipped"] for row in live] == [0, 0, 1, 2, 3, 4]
