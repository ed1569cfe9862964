import hashlib
import json
import resource

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf.batches import collate
from rlhf.errors import BadInput
from rlhf.logprobs import response_logprobs
from rlhf.models import (
    build_policy,
    context_length,
    count_parameters,
    fit_vocabulary,
    forbidden_ids,
    load_policy,
    remove_dropout,
    save_policy,
)
from rlhf.tokenizer import load_tokenizer, train_tokenizer

TEXTS = ["I found order 202, the mug.", "Sorry about this."] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300)


@pytest.fixture
def policy(tokenizer):
    torch.manual_seed(0)
    return build_policy(tokenizer, hidden=16, layers=2, heads=2, intermediate=32, context=64)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_built_policy_has_the_wanted_shape(policy, tokenizer):
    # tied embedding V*16; per layer 4 * 16*16 attention + 3 * 16*32 feed-forward + 2 * 16 norms; final norm 16
    assert count_parameters(policy) == len(tokenizer) * 16 + 2 * (4 * 256 + 3 * 512 + 32) + 16
    assert policy.lm_head.weight is policy.model.embed_tokens.weight
    assert context_length(policy) == 64
    assert (policy.config.pad_token_id, policy.config.eos_token_id) == (0, 1)
    assert not policy.training


def test_saving_twice_and_saving_what_was_loaded_give_the_same_bytes(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "a")
    save_policy(policy, tokenizer, tmp_path / "b")
    save_policy(load_policy(tmp_path / "a", device="cpu"), load_tokenizer(tmp_path / "a"), tmp_path / "elsewhere" / "c")

    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "elsewhere" / "c")


def test_no_path_is_written(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "a")
    save_policy(load_policy(tmp_path / "a", device="cpu"), load_tokenizer(tmp_path / "a"), tmp_path / "b")
    for path in (tmp_path / "b").glob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_saved_policy_loads_with_plain_transformers_and_keeps_its_stops(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id
    assert again.generation_config.suppress_tokens == [tokenizer.pad_token_id]
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again(ids).logits, policy(ids).logits, rtol=0, atol=0)


def test_forbidden_are_pad_and_rows_beyond_the_tokenizer(policy, tokenizer):
    rows = len(tokenizer)
    policy.resize_token_embeddings(rows + 3, mean_resizing=False)
    assert forbidden_ids(tokenizer, policy).nonzero().flatten().tolist() == [0, rows, rows + 1, rows + 2]


def test_new_tokens_start_as_the_mean_of_the_old(policy, tokenizer):
    old = policy.get_input_embeddings().weight.detach().clone()
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.add_tokens(["<new>", "<other>"])

    fit_vocabulary(policy, tokenizer)

    new = policy.get_input_embeddings().weight
    assert new.shape[0] == len(tokenizer) == len(old) + 2
    torch.testing.assert_close(new[: len(old)], old, rtol=0, atol=0)
    torch.testing.assert_close(new[len(old)], old.mean(dim=0))
    assert policy.get_output_embeddings().weight is new


def test_fitting_leaves_a_large_enough_vocabulary_alone(policy, tokenizer):
    before = policy.get_input_embeddings().weight
    fit_vocabulary(policy, tokenizer)
    assert policy.get_input_embeddings().weight is before


def test_dropout_of_the_base_model_never_reaches_the_log_probs(tmp_path, tokenizer):
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**settings, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)).save_pretrained(tmp_path)
    model = load_policy(tmp_path, device="cpu").train()
    batch = collate([[5, 6]], [[7, 8, 9]], pad_id=0)
    first, second = (response_logprobs(model, batch, temperature=1.0, forbidden=None).logprobs for _ in range(2))
    assert torch.equal(first, second)
    assert model.config.resid_pdrop == 0.0


def test_attention_dropout_of_llama_is_removed_too():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes, attention_dropout=0.3)).train()
    remove_dropout(model)
    assert model.model.layers[0].self_attn.attention_dropout == 0.0


def test_a_missing_folder_says_how_to_add_one(tmp_path):
    with pytest.raises(BadInput, match="ratchet ingest --model"):
        load_policy(tmp_path / "none", device="cpu")


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        load_policy(tmp_path, device="cpu")


def test_pickled_weights_are_refused(policy, tmp_path):
    policy.config.save_pretrained(tmp_path)
    torch.save(policy.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin: a pickle, .* delete it"):
        load_policy(tmp_path, device="cpu")


def test_a_pickle_beside_the_weights_is_refused(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path)
    torch.save({"learning_rate": 0.1}, tmp_path / "training_args.bin")
    with pytest.raises(BadInput, match=r"training_args\.bin: a pickle, .* delete it"):
        load_policy(tmp_path, device="cpu")


def test_a_pickle_in_the_snapshot_of_a_hub_model_is_refused(policy, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--a--b/snapshots" / ("0" * 40)
    save_policy(policy, tokenizer, snapshot)
    assert load_policy("a/b", device="cpu", revision="0" * 40).config.pad_token_id == tokenizer.pad_token_id
    torch.save({}, snapshot / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin: a pickle"):
        load_policy("a/b", device="cpu", revision="0" * 40)


def test_a_disk_that_is_full_is_named_with_the_folder(policy, tokenizer, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            save_policy(policy, tokenizer, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value.filename).startswith(str(tmp_path / "out"))


def test_no_weights_at_all_are_refused(policy, tmp_path):
    policy.config.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="no weights"):
        load_policy(tmp_path, device="cpu")


def test_torn_weights_are_refused_in_one_sentence(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"cannot be loaded|is not a whole safetensors file") as caught:
        load_policy(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fill_the_model_are_refused(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(BadInput, match="weights are missing"):
        load_policy(tmp_path, device="cpu")


def test_an_unknown_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "made_up"}))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="made_up"):
        load_policy(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=23, hidden_size=16, n_layer=1, n_head=2),
        Gemma2Config(
            vocab_size=23, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, intermediate_size=24,
        ),
    ],
)  # fmt: skip
def test_families_that_torchs_fused_attention_cannot_compute_load_and_score(config, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    loaded, batch = load_policy(tmp_path, device="cpu"), collate([[5, 6]], [[7, 8, 9]], pad_id=0)
    wanted = model(batch.input_ids).logits.log_softmax(-1)[0, 1:4].gather(1, torch.tensor([[7], [8], [9]])).squeeze(1)
    found = response_logprobs(loaded, batch, temperature=1.0, forbidden=None).logprobs[batch.response_mask]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
