"""A loaded policy that answers one conversation at a time, token by token, and can be told to stop."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tasks.served_model import Policy, encode

REPLACEMENT = "\ufffd"
"""What a tokenizer writes for bytes of a character that is not whole yet."""


Piece: TypeAlias = str | BaseException | None
"""A text as it comes, None at the end, or what went wrong."""


class Sink(Protocol):
    """Where pieces go."""

    def put(self, piece: Piece, /) -> None:
        """Take the next piece; called from the thread that generates."""


class TooLong(ValueError):
    """The conversation has more tokens than the model's context has room for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to answer."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token at each step."""
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""


@dataclass(kw_only=True)
class Answer:
    """An answer in the making; what is said about it is true once its last piece has come."""

    prompt_tokens: int
    pieces: Sink
    completion_tokens: int = 0
    finish_reason: str = "length"
    """"stop" when it ended by itself or at a stop string, "length" when it was cut."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set it to have the generation end after the present token."""


class Answerer:
    """A policy in memory."""

    def __init__(self, folder: Path) -> None:
        """Load it, from safetensors only.

        Args:
            folder: a model folder with its tokenizer.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
        self.policy = Policy(folder)
        self.context = self.policy.context

    def prepare(self, messages: Sequence[dict[str, str]], pieces: Sink) -> tuple[list[int], Answer]:
        """Encode a conversation.

        Args:
            messages: `role` and `content` of each turn.
            pieces: where the texts of the answer will go.

        Raises:
            TooLong: it does not fit into the context with at least one token of an answer.
        """
        ids = encode(self.policy.tokenizer, list(messages))
        if self.context and len(ids) >= self.context:
            raise TooLong(
                f"the conversation has {len(ids)} tokens, and the model's context of {self.context} has no room for an "
                "answer; shorten it"
            )
        return ids, Answer(prompt_tokens=len(ids), pieces=pieces)

    def run(self, ids: list[int], answer: Answer, options: Options) -> None:
        """Generate, putting the text into `answer.pieces` as it comes; returns at the end, never raises.

        Args:
            ids: tokens of the conversation, from `prepare`.
            answer: where it goes.
            options: how to answer.
        """
        try:
            self._generate(ids, answer, options)
        except Exception as error:  # it belongs to the request, whose thread this is not
            answer.pieces.put(error)
        else:
            answer.pieces.put(None)

    def _generate(self, ids: list[int], answer: Answer, options: Options) -> None:
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        policy = self.policy
        text = _Text(policy, answer, options.stop)
        room = self.context - len(ids) if self.context else options.max_tokens
        sampling = {"temperature": options.temperature, "top_k": 0, "top_p": options.top_p}
        config: Any = GenerationConfig
        settings = config(
            do_sample=options.temperature > 0,
            max_new_tokens=max(1, min(options.max_tokens, room)),
            eos_token_id=policy.ends,
            pad_token_id=policy.pad,
            suppress_tokens=policy.never or None,
            **(sampling if options.temperature > 0 else {}),
        )

        def over(_: Any, __: Any) -> Any:
            done = text.stopped or answer.cancelled.is_set()
            return torch.tensor([done], device=policy.device)

        row = torch.tensor([ids], device=policy.device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(options.seed)
            policy.model.generate(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                generation_config=settings,
                streamer=text,
                stopping_criteria=StoppingCriteriaList([over]),
            )


class _Text:
    """Receives tokens from transformers' `generate` and passes on the text that is certain."""

    def __init__(self, policy: Policy, answer: Answer, stops: Sequence[str]) -> None:
        self._policy, self._answer, self._stops = policy, answer, tuple(stop for stop in stops if stop)
        self._ids: list[int] = []
        self._sent = 0
        self._begun = False
        self.stopped = False

    def put(self, value: Any) -> None:
        """Take the next token; the first call brings the prompt."""
        if not self._begun:
            self._begun = True
            return
        token = int(value.reshape(-1)[0])
        self._answer.completion_tokens += 1
        if token in self._policy.ends:
            self._answer.finish_reason, self.stopped = "stop", True
            return
        self._ids.append(token)
        self._pass_on(last=False)

    def end(self) -> None:
        """Pass on what was held back."""
        if self._answer.finish_reason == "length" or self.stopped:
            self._pass_on(last=True)

    def _pass_on(self, *, last: bool) -> None:
        text = str(self._policy.tokenizer.decode(self._ids, skip_special_tokens=True))
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            text = text[: min(found)]
            self._answer.finish_reason, self.stopped = "stop", True
        elif not last:
            text = text[: len(text) - held_back(text, self._stops)]
        if len(text) > self._sent:
            self._answer.pieces.put(text[self._sent :])
            self._sent = len(text)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may still change: half a character, or the beginning of a stop string.

    Args:
        text: decoded so far.
        stops: stop strings, none of which is in `text`.
    """
    unfinished = len(text) - len(text.rstrip(REPLACEMENT))
    longest = max(
        (size for stop in stops for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size])),
        default=0,
    )
    return max(unfinished, longest)
