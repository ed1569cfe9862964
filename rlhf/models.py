"""Policies: building, loading and saving causal language models, and the tokens that they must never sample."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from rlhf import matmul
from rlhf.errors import BadInput
from rlhf.model_claims import check_claims
from rlhf.model_files import check_model_folder, refuse_traps
from rlhf.tokenizer import stop_ids
from rlhf.writing import writing

DROPOUT_FIELDS = (
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "classifier_dropout", "dropout", "activation_dropout", "summary_first_dropout",
    "resid_dropout", "embed_dropout", "layerdrop", "router_jitter_noise", "jitter_noise",
)  # fmt: skip


def build_policy(
    tokenizer: PreTrainedTokenizerBase, *, hidden: int, layers: int, heads: int, intermediate: int, context: int
) -> LlamaForCausalLM:
    """A Llama-architecture model with random weights (from torch's global generator), tied embeddings, fp32.

    Args:
        tokenizer: gives the vocabulary, PAD and EOS.
        hidden: width of the residual stream; a multiple of 2 * heads.
        layers: number of blocks.
        heads: attention heads, each with its own keys and values.
        intermediate: width of the feed-forward layer.
        context: longest sequence, in tokens.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    model = LlamaForCausalLM(config)
    remove_dropout(model)
    model.train(False)
    matmul.adopt(model)
    return model


def load_policy(folder: Path | str, *, device: torch.device | str, revision: str | None = None) -> PreTrainedModel:
    """Load a causal language model from safetensors, in fp32, without dropout, in eval mode.

    Args:
        folder: a local model folder, or (with `revision`) a hub id.
        device: where the weights go.
        revision: commit or tag of a hub id; None means that `folder` is local.

    Raises:
        BadInput: no config, no safetensors weights, weights that do not fill the model, or unknown model code.
    """
    return load_pretrained(AutoModelForCausalLM, folder, device=device, revision=revision, may_miss=())


def load_pretrained(
    auto_class: Any,
    folder: Path | str,
    *,
    device: torch.device | str,
    revision: str | None,
    may_miss: Iterable[str],
    **settings: Any,
) -> PreTrainedModel:
    """Load any model class as `load_policy` does.

    Args:
        auto_class: a transformers AutoModel class.
        folder: a local model folder, or (with `revision`) a hub id.
        device: where the weights go.
        revision: commit or tag of a hub id; None for a local folder.
        may_miss: parts of weight names that may be absent (a head that is initialised afterwards).
        settings: extra config values, such as num_labels.

    Raises:
        BadInput: as for `load_policy`.
    """
    _hush()
    if revision is None:
        check_model_folder(Path(folder))
        check_claims(Path(folder))
    try:
        model, info = auto_class.from_pretrained(
            str(folder),
            revision=revision or "main",
            local_files_only=revision is None,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **settings,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # every model family checks its settings in its own way
        reason = " ".join(str(error).split())[:300]
        if "ignore_mismatched_sizes" in reason:
            reason = "config.json does not fit the shapes of the weights"
        if isinstance(error, (TypeError, AttributeError, KeyError, IndexError)) or "<class " in reason:
            reason = "a setting in config.json or generation_config.json is of the wrong kind"
        raise BadInput(f"{folder}: the model cannot be loaded ({reason}); wanted a config and safetensors") from error
    if revision is not None and (config := cached_file(str(folder), "config.json", revision=revision)):
        refuse_traps(Path(config).parent)  # the snapshot in the cache, which other programs write to as well
    missing = sorted(name for name in info["missing_keys"] if not any(part in name for part in may_miss))
    if missing:
        raise BadInput(
            f"{folder}: {len(missing)} weights are missing from the safetensors files (first: {missing[0]}); "
            "training would start from random numbers, so give the whole model"
        )
    remove_dropout(model)
    return cast(PreTrainedModel, matmul.adopt(model.to(device).eval()))


def remove_dropout(model: nn.Module) -> None:
    """Set every rate of dropout and the like to 0, in modules and config: equal weights, equal log-probabilities."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Attention code keeps the rate as a plain number on the module; some models skip whole layers or shake the
        # routing to experts at random.
        for name in DROPOUT_FIELDS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    config = getattr(model, "config", None)
    for name in DROPOUT_FIELDS:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make room for tokens that the tokenizer has beyond the embedding, and tell the model its PAD and EOS.

    New rows are the mean of the old ones, so that a new token starts out ordinary and no random number is drawn.
    """
    old = _embeddings(model)[0].weight.shape[0]
    wanted = max(tokenizer.get_vocab().values()) + 1
    if wanted > old:
        model.resize_token_embeddings(wanted, mean_resizing=False)
        for layer in _embeddings(model):
            for weight in (layer.weight, getattr(layer, "bias", None)):
                if weight is not None:
                    weight.data[old:] = weight.data[:old].mean(dim=0)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id


def forbidden_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Tensor:
    """Tokens that are never sampled: PAD, and rows of the head for which the tokenizer has no token.

    The same mask must be used when sampling, when training and when scoring, or the three distributions differ.

    Returns:
        True at forbidden ids, on the model's device. [V] bool
    """
    rows = _embeddings(model)[-1].weight.shape[0]
    known = torch.tensor(sorted(tokenizer.get_vocab().values()), dtype=torch.int64)
    mask = torch.ones(rows, dtype=torch.bool)
    mask[known[known < rows]] = False
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < rows:
        mask[tokenizer.pad_token_id] = True
    return mask.to(model.device)


def _embeddings(model: PreTrainedModel) -> list[Any]:
    """The input embedding and, where the model has one, the head."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [model.get_input_embeddings(), *([] if head is None else [head])]


def context_length(model: nn.Module) -> int | None:
    """Longest sequence that the model has positions for, in tokens; None when its config does not say."""
    config: Any = model.config
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen weights, tied ones counted once, also where ZeRO-3 has split them over ranks."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a policy as a Hugging Face folder whose `generate` behaves as ours: same stops, same forbidden tokens.

    The bytes depend on the weights alone: no path, clock or order of loading is written.
    """
    stops = list(stop_ids(tokenizer, model))
    forbidden = forbidden_ids(tokenizer, model).nonzero().flatten().tolist()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        suppress_tokens=forbidden,
    )
    save_folder(model, tokenizer, folder)


def save_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights, config and tokenizer, without the traces that loading leaves in them.

    Raises:
        OSError: naming the folder or a file in it, where the disk is full.
    """
    _hush()
    folder.mkdir(parents=True, exist_ok=True)
    model.config._name_or_path = ""
    for trace in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(trace, None)
    with writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _hush() -> None:
    """No progress bars for files that take a blink; no word on stdout from DeepSpeed, which saving may import."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
