"""Fine-tuning of a two-layer model: it learns, it resumes to the same bytes, it refuses what it cannot train on."""

import csv
import dataclasses
import hashlib
import json

import pytest
import torch

from rlhf import distributed
from rlhf.checkpoint import KEY_VARIABLE, Checkpoints
from rlhf.errors import BadInput
from rlhf.models import load_policy, save_policy
from rlhf.recipes import sft
from rlhf.tokenizer import load_tokenizer

CONFIG = sft.Config(
    base_model="scratch",
    revision=None,
    vocab_size=300,
    hidden=16,
    layers=2,
    heads=2,
    intermediate=32,
    context=48,
    learning_rate=1e-2,
    batch_size=8,
    micro_batch=None,
    epochs=6,
    warmup_fraction=0.1,
    final_lr_fraction=0.0,
    max_tokens=40,
    max_grad_norm=1.0,
    precision="float32",
    lora_rank=0,
    lora_alpha=16.0,
    samples=2,
    max_new_tokens=8,
)


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return write_demonstrations(tmp_path_factory.mktemp("demonstrations"))


def write_demonstrations(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 48), ("dev", 6), ("test", 6)):
        rows = [
            {"prompt": [{"role": "user", "content": f"Order {n % 7}?"}], "response": f"I found order {n % 7}."}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(config, folder, demonstrations, base=None, seed=1):
    places = {"model": "model", "metrics": "sft.json", "curves": "sft.csv", "samples": "samples.jsonl"}
    paths = {name: folder / place for name, place in places.items()}
    sft.main(config, seed=seed, stage="sft", demonstrations=demonstrations, base=base or folder, **paths)
    distributed.barrier()  # the first rank writes, and all of them read
    return json.loads(paths["metrics"].read_text())


def fingerprint(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".ratchet" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_it_learns_and_writes_everything(demonstrations, tmp_path):
    metrics = run(CONFIG, tmp_path, demonstrations)

    rows = list(csv.DictReader((tmp_path / "sft.csv").read_text().splitlines()))
    # 48 demonstrations in batches of 8, six times
    assert metrics["updates"] == 36
    assert rows[0]["step"] == "1"
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    assert metrics["dev"]["perplexity"] == pytest.approx(2.718281828 ** metrics["dev"]["loss"], rel=1e-4)
    assert metrics["train"]["records"] == 48
    assert metrics["skipped_updates"] == 0
    assert load_policy(tmp_path / "model", device="cpu").config.num_hidden_layers == 2
    assert load_tokenizer(tmp_path / "model").chat_template
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [36, 36]
    assert samples[0]["prompt"] == [{"role": "user", "content": "Order 0?"}]


def test_equal_seeds_give_equal_bytes(demonstrations, tmp_path):
    short = dataclasses.replace(CONFIG, epochs=1)
    for name in ("a", "b"):
        run(short, tmp_path / name, demonstrations)
    run(short, tmp_path / "c", demonstrations, seed=2)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "c")


def test_micro_batches_do_not_change_the_loss(demonstrations, tmp_path):
    short = dataclasses.replace(CONFIG, epochs=1)
    whole = run(short, tmp_path / "whole", demonstrations)
    parts = run(dataclasses.replace(short, micro_batch=3), tmp_path / "parts", demonstrations)
    assert parts["dev"]["loss"] == pytest.approx(whole["dev"]["loss"], rel=1e-4)


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def test_an_interrupted_run_ends_with_the_same_bytes(demonstrations, tmp_path, monkeypatch):
    short = dataclasses.replace(CONFIG, epochs=2)
    monkeypatch.setattr(sft, "CURVE_ROWS", 4)  # a mean over 3 steps, and the kill falls between
    monkeypatch.chdir(tmp_path)
    run(short, tmp_path / "straight", demonstrations)

    monkeypatch.setenv(KEY_VARIABLE, "k")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    save = Checkpoints.save

    def save_then_die(self, step, state):
        save(self, step, state)
        if step == 5:
            raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(Checkpoints, "save", save_then_die)
        with pytest.raises(Killed):
            run(short, tmp_path / "resumed", demonstrations)
    run(short, tmp_path / "resumed", demonstrations)

    assert fingerprint(tmp_path / "straight") == fingerprint(tmp_path / "resumed")
    assert Checkpoints("sft").load() is None


def test_it_goes_on_from_a_local_base_model(demonstrations, tmp_path):
    run(CONFIG, tmp_path / "first", demonstrations)
    start = json.loads((tmp_path / "first" / "sft.json").read_text())["dev"]["loss"]
    little = dataclasses.replace(CONFIG, base_model="model", epochs=0.2, learning_rate=1e-5)
    metrics = run(little, tmp_path / "second", demonstrations, base=tmp_path / "first")
    assert metrics["dev"]["loss"] == pytest.approx(start, rel=0.02)


def test_an_adapter_learns_and_is_merged_into_a_plain_model(demonstrations, tmp_path):
    start = run(dataclasses.replace(CONFIG, epochs=1), tmp_path / "first", demonstrations)
    policy, folder = load_policy(tmp_path / "first" / "model", device="cpu"), tmp_path / "first" / "model"
    with torch.no_grad():
        # The embedding is not adapted, and one as small as a fresh model's leaves all tokens about equally likely.
        policy.get_input_embeddings().weight.mul_(8)
    save_policy(policy, load_tokenizer(folder), folder)
    adapted = dataclasses.replace(CONFIG, base_model="model", lora_rank=4, lora_alpha=16.0)
    metrics = run(adapted, tmp_path / "second", demonstrations, base=tmp_path / "first")
    assert metrics["dev"]["loss"] < 0.7 * start["dev"]["loss"]
    assert metrics["parameters"] == start["parameters"]
    before, after = (load_policy(tmp_path / name / "model", device="cpu").state_dict() for name in ("first", "second"))
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    # Every matrix of the two blocks and nothing else: no norm, no embedding.
    assert changed == {name for name in before if "_proj" in name}
    assert len(changed) == 2 * 7
    run(adapted, tmp_path / "again", demonstrations, base=tmp_path / "first")
    assert fingerprint(tmp_path / "again") == fingerprint(tmp_path / "second")


def test_an_adapter_on_random_weights_is_refused():
    with pytest.raises(ValueError, match="base_model is scratch, wanted a trained model"):
        dataclasses.replace(CONFIG, lora_rank=2)


def test_no_demonstrations_are_bad_input(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"validate\.files"):
        run(CONFIG, tmp_path, tmp_path)


def test_only_too_long_demonstrations_are_bad_input(demonstrations, tmp_path):
    with pytest.raises(BadInput, match=r"raise sft\.max_tokens"):
        run(dataclasses.replace(CONFIG, max_tokens=3), tmp_path, demonstrations)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_model", "../elsewhere"),
        ("base_model", "/etc"),
        ("learning_rate", 0.0),
        ("epochs", -1.0),
        ("batch_size", 0),
        ("micro_batch", 0),
        ("warmup_fraction", 1.5),
        ("final_lr_fraction", -0.1),
        ("max_grad_norm", -1.0),
        ("precision", "float16"),
        ("heads", 3),
        ("samples", -1),
        ("lora_rank", -1),
        ("lora_alpha", 0.0),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match="wanted"):
        dataclasses.replace(CONFIG, **{field: value})
