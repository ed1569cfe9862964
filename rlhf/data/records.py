"""The canonical record: the one form in which every stage after `validate` meets data.

    demonstration  id prompt response source meta
    pair           id prompt chosen rejected label annotator score_chosen score_rejected source meta
    ranking        id prompt responses ranks scores annotator source meta
    judgement      id prompt response good annotator source meta
    prompt         id prompt source meta
    probe          a pair whose meta names, under "probe", the one thing that makes `rejected` worse

`prompt` is a list of chat messages {"role", "content"} whose last role is "user". `label` is the probability that
`chosen` is the better answer, in [0.5, 1]; 0.5 is a tie. `ranks` says of each response which place it has, from 1, the
best, without gaps; equal ranks are a tie; `scores` are what they come from, or null. `good` says whether somebody would
want the answer. `source` is the file's name relative to data/raw, and `meta` an object of everything else that the
source said; a prompt with `unlike: true` in it is none like the training prompts and is kept for measuring.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]  # CPython's, not in its types
from typing import Any, Literal, TypeAlias

from rlhf.errors import one_line

Kind: TypeAlias = Literal["demonstration", "pair", "ranking", "judgement", "prompt", "probe"]
Message: TypeAlias = dict[str, str]
Record: TypeAlias = dict[str, Any]

KINDS: tuple[Kind, ...] = ("demonstration", "pair", "ranking", "judgement", "prompt", "probe")
ROLES = ("system", "user", "assistant")
ANSWERS: dict[Kind, tuple[str, ...]] = {
    "demonstration": ("response",),
    "pair": ("chosen", "rejected"),
    "ranking": ("responses",),
    "judgement": ("response",),
    "prompt": (),
    "probe": ("chosen", "rejected"),
}
"""The fields of each kind that hold an answer, or a list of them."""
_REFUSE = json.JSONEncoder().default
_CANONICAL = c_make_encoder(None, _REFUSE, encode_basestring, None, ":", ",", True, False, False)
_CONTENT = c_make_encoder(None, _REFUSE, encode_basestring, None, ": ", ", ", True, False, True)
"""What `json.dumps` makes anew in each call, which is half of the time of a short text."""
SHOWN = 80
"""Values in messages and in the quarantine file are cut to this many characters."""


class RowError(Exception):
    """One row cannot become a record; says which field, what was found there, and why that will not do."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.value = value
        self.reason = reason


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, no escapes for letters.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON has no word for.
    """
    return "".join(_CANONICAL(value, 0))


def digest(text: str, *, salt: str = "") -> int:
    """The first eight bytes of a SHA-256, as a number; equal everywhere and for ever."""
    return int.from_bytes(sha256(f"{salt}\n{text}".encode("utf-8", "surrogatepass")).digest()[:8], "big")


def answers_of(kind: Kind, record: Mapping[str, Any]) -> tuple[str, ...]:
    """All answers of a record, in the order of `ANSWERS` and of their lists."""
    values = [record[name] for name in ANSWERS[kind]]
    return tuple(values[0] if kind == "ranking" else values)


def demonstration(prompt: list[Message], response: str) -> Record:
    """A canonical demonstration without its origin (see `with_origin`)."""
    return {"prompt": prompt, "response": response}


def pair(
    prompt: list[Message],
    first: str,
    second: str,
    *,
    first_is_better: float = 1.0,
    annotator: str | None = None,
    scores: tuple[float | None, float | None] = (None, None),
) -> Record:
    """A canonical pair without its origin.

    Args:
        prompt: the conversation so far.
        first: one answer.
        second: the other.
        first_is_better: probability that the first is better; below 0.5 the two change places.
        annotator: who said so.
        scores: of first and second, in the annotator's own units.
    """
    answers, certainty = (first, second), first_is_better
    if first_is_better < 0.5:
        answers, scores, certainty = (second, first), scores[::-1], 1.0 - first_is_better
    return {
        "prompt": prompt,
        "chosen": answers[0],
        "rejected": answers[1],
        "label": float(certainty),
        "annotator": annotator,
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def ranking(
    prompt: list[Message],
    responses: Sequence[str],
    *,
    order: Sequence[float],
    scores: Sequence[float] | None = None,
    annotator: str | None = None,
) -> Record:
    """A canonical ranking without its origin; the responses stay in the order given.

    Args:
        prompt: the conversation so far.
        responses: the answers.
        order: one finite number for each; the lowest is the best, and equal ones are a tie.
        scores: of the responses, in the annotator's own units.
        annotator: who said so.
    """
    places = {value: place for place, value in enumerate(sorted(set(order)), start=1)}
    return {
        "prompt": prompt,
        "responses": list(responses),
        "ranks": [places[value] for value in order],
        "scores": None if scores is None else [float(score) for score in scores],
        "annotator": annotator,
    }


def judgement(prompt: list[Message], response: str, *, good: bool, annotator: str | None = None) -> Record:
    """A canonical judgement of a single answer, without its origin."""
    return {"prompt": prompt, "response": response, "good": good, "annotator": annotator}


def ranked_pairs(record: Mapping[str, Any]) -> Iterator[Record]:
    """The pairs, without origin, of all answers of a ranking that do not tie; K answers give at most K (K - 1) / 2."""
    ranks, scores = record["ranks"], record["scores"] or [None] * len(record["ranks"])
    places = range(len(ranks))
    for first, second in ((a, b) for a in places for b in places[a + 1 :] if ranks[a] != ranks[b]):
        yield pair(
            record["prompt"],
            record["responses"][first],
            record["responses"][second],
            first_is_better=float(ranks[first] < ranks[second]),
            annotator=record["annotator"],
            scores=(scores[first], scores[second]),
        )


def with_origin(kind: Kind, record: Record, *, source: str, identity: object, meta: dict[str, Any]) -> Record:
    """Complete a record with where it came from.

    Args:
        kind: what it is.
        record: its content.
        source: file name relative to the raw folder.
        identity: the id in the source, kept when it is text or a number; else the id is a hash of the content.
        meta: what else the source said.
    """
    known = isinstance(identity, (str, int)) and not isinstance(identity, bool) and str(identity).strip()
    name = str(identity) if known else content_id(kind, record)
    return {"id": name, **record, "source": source, "meta": meta}


def content_id(kind: Kind, record: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that depend on a record's kind and content and on nothing else."""
    text = "".join(_CONTENT({**record, "kind": kind}, 0))
    return f"{digest(text):016x}"[:12]


def encode(record: Record) -> str:
    """The record as its line in a file.

    Raises:
        RowError: a number is not finite, or a text cannot be written as UTF-8.
    """
    try:
        line = canonical_json(record)
        line.encode()
    except UnicodeEncodeError as error:
        raise RowError("text", ascii(error.object[error.start]), "half of a surrogate pair") from error
    except ValueError as error:
        field, value = next(_not_finite(record), ("row", None))
        raise RowError(field, value, "not a finite number") from error
    return line


def shorten(value: object) -> str:
    """A value as it is shown to people: at most `SHOWN` characters, on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = one_line(" ".join(text[: 2 * SHOWN].split()))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _not_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every NaN and infinity inside nested objects and lists, with its place."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}[{index}]")
