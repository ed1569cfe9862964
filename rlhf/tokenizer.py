"""Text to token ids and back: training a byte-level BPE, loading any tokenizer safely, prompts and responses.

A prompt is always encoded by the chat template and a response always on its own, so the ids of a whole exchange are
the two lists put end to end: in fine-tuning, in scoring and in generation alike. No text is re-tokenised across the
boundary, where BPE could merge differently.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.errors import BadInput

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

PLAIN_TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""For base models without a template. It ends in a newline, which no BPE merges with the first word of a response."""


TRIAL = ({"role": "user", "content": "Hello"},)
"""A conversation that every chat template must be able to write."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in the same order give the same tokenizer.

    Args:
        texts: the training corpus.
        vocab_size: upper bound of the vocabulary, in tokens, special tokens and the 256 bytes included.

    Returns:
        A tokenizer with PAD, EOS (`<|end|>`), role markers and a chat template.

    Raises:
        BadInput: the vocabulary cannot even hold the bytes and the special tokens.
    """
    special = [PAD, END, SYSTEM, USER, ASSISTANT]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(special) + len(alphabet):
        wanted = len(special) + len(alphabet)
        raise BadInput(f"params.yaml: vocab_size is {vocab_size}, wanted at least {wanted} (bytes and special tokens)")
    # With several threads the order in which equally frequent pairs are counted, and so merged, may vary.
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(folder: Path | str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer and repair what training relies on: a PAD that is not EOS, and a chat template.

    When PAD is added here the tokenizer may outgrow the model's embedding: `models.fit_vocabulary` mends that.

    Args:
        folder: a folder with tokenizer files, or (with `revision`) a hub id.
        revision: commit or tag of a hub id; None means that `folder` is local.

    Raises:
        BadInput: no tokenizer there, or one without an end-of-text token.
    """
    if revision is None and not any(Path(folder).glob("tokenizer*")):
        raise BadInput(f"{folder}: no tokenizer files in this folder; wanted tokenizer.json beside the weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), revision=revision or "main", local_files_only=revision is None, trust_remote_code=False
        )
    except Exception as error:  # the parser of tokenizer.json raises nothing more specific
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, (TypeError, AttributeError, KeyError, IndexError)) or "<class " in reason:
            reason = "a setting in tokenizer.json or tokenizer_config.json is of the wrong kind"
        raise BadInput(f"{folder}: the tokenizer cannot be loaded ({reason}); give a folder that holds one") from error
    if tokenizer.eos_token_id is None:
        raise BadInput(f"{folder}: the tokenizer has no end-of-text token, so no response could end; set eos_token")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    try:
        trial = encode_prompt(tokenizer, TRIAL)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:  # settings that only its use reads
        raise BadInput(
            f"{folder}: the tokenizer cannot encode a text (a setting in tokenizer_config.json is of the wrong kind); "
            "save it again"
        ) from error
    if not trial:
        raise BadInput(f"{folder}: the chat template makes nothing of a conversation; mend it, or remove it")
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation up to the place where the assistant's response begins."""
    safe = [{"role": message["role"], "content": disarm(tokenizer, message["content"])} for message in messages]
    return _ids(tokenizer, str(_templated(tokenizer, safe)))


def _templated(tokenizer: PreTrainedTokenizerBase, conversations: list[Any]) -> Any:
    """One conversation, or a list of them, written out by the chat template.

    Raises:
        BadInput: the template cannot be read, or refuses a conversation (some want no system message).
    """
    try:
        return tokenizer.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{tokenizer.name_or_path or 'the tokenizer'}: its chat template fails ({reason}); mend "
            "chat_template.jinja, or leave out the records that it refuses"
        ) from error


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a response followed by EOS."""
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError("encode_response: the tokenizer has no single EOS token; load it with load_tokenizer")
    return [*_ids(tokenizer, disarm(tokenizer, text)), eos]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Mapping[str, str]]]
) -> list[list[int]]:
    """`encode_prompt` of many conversations, which takes less time than one by one."""
    safe = [
        [{"role": message["role"], "content": text} for message, text in zip(messages, texts, strict=True)]
        for messages in conversations
        for texts in [_disarmed(tokenizer, [message["content"] for message in messages])]
    ]
    if not safe:
        return []
    return _all_ids(tokenizer, [str(text) for text in _templated(tokenizer, safe)])


def encode_responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`encode_response` of many texts, which takes less time than one by one."""
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ValueError("encode_responses: the tokenizer has no single EOS token; load it with load_tokenizer")
    return [[*ids, eos] for ids in _all_ids(tokenizer, _disarmed(tokenizer, texts))] if texts else []


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, stops: Sequence[int] = ()) -> str:
    """Text of a response up to its first stop token, special tokens left out.

    Args:
        tokenizer: the policy's tokenizer.
        ids: response tokens, with or without the stop token.
        stops: ids that end a response, `stop_ids`; EOS is always among them.
    """
    ends = {tokenizer.eos_token_id, *stops}
    cut = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(list(ids[:cut]), skip_special_tokens=True))


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: Any) -> tuple[int, ...]:
    """Ids that end a response: EOS of the tokenizer and every EOS of the model's generation config, sorted."""
    found = {tokenizer.eos_token_id}
    generation = getattr(model, "generation_config", None)
    extra = getattr(generation, "eos_token_id", None)
    found.update(token for token in (extra if isinstance(extra, (list, tuple)) else [extra]) if isinstance(token, int))
    return tuple(sorted(token for token in found if isinstance(token, int)))


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of PAD, as a number.

    Raises:
        ValueError: the tokenizer has none; `load_tokenizer` gives every tokenizer one.
    """
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int):
        raise ValueError("the tokenizer has no PAD token; load it with load_tokenizer")
    return pad


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _all_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    return [list(ids) for ids in found["input_ids"]]


def disarm(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Break special tokens written out inside a record: data must not be able to end a turn or fake a role."""
    return _disarmed(tokenizer, [text])[0]


def _disarmed(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    special = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    found = list(texts)
    for place, text in enumerate(found):
        for token in special:
            if token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        found[place] = text
    return found
