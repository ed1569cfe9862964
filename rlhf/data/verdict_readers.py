"""Readers of verdicts that are no pairs: rankings of several answers, and judgements of single ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.conversations import as_answer, as_messages, as_prompt, is_transcript, last_answer
from rlhf.data.fields import Fields, Found, Row, as_float, has, instruction_prompt
from rlhf.data.records import Message, RowError, judgement, ranking

COMPLETIONS = ("completions", "answers")
"""Columns that hold a list of answers with what somebody thought of them."""
TEXTS = ("response", "answer", "text", "completion")
"""What the answer is called inside such a list."""
SCORES = ("fine-grained_score", "overall_score", "score", "rating")
"""Scores of an answer inside such a list, the first that all answers have is taken. UltraFeedback's overall_score holds
10 for answers whose critique says 1, so the mean over its criteria comes before it."""
VERDICTS = ("label", "good", "kto_tag")
"""Columns that call an answer good or bad."""


def is_scored_completions(row: Row) -> bool:
    """Whether a row has a list of objects, one for each answer."""
    return any(
        isinstance(row.get(name), list) and row[name] and all(isinstance(entry, Mapping) for entry in row[name])
        for name in COMPLETIONS
    ) and ("prompt" in row or "instruction" in row)


def is_judgement(row: Row) -> bool:
    """Whether a row calls one answer good or bad (KTO), in words or as 1 and 0: imitating bad ones would be wrong."""
    answered = (
        ("prompt" in row and ("response" in row or "completion" in row))
        or has(row, "instruction", "output")
        or "messages" in row
        or "conversations" in row
    )
    return answered and not has(row, "chosen", "rejected") and _verdict_column(row) is not None


def read_scored_completions(row: Row) -> Found:
    """A ranking from answers that carry a score (UltraFeedback) or a rank each."""
    fields = Fields(row)
    prompt = _prompt(fields)
    name = next((name for name in COMPLETIONS if name in row), COMPLETIONS[0])
    entries = fields.need(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RowError(name, entries, "not a list of answers")
    text = next((key for key in TEXTS if entries and all(key in entry for entry in entries)), TEXTS[0])
    responses = [as_answer(entry.get(text), f"{name}[{place}].{text}") for place, entry in enumerate(entries)]
    said = next((key for key in ("rank", *SCORES) if all(_is_number(entry.get(key)) for entry in entries)), None)
    if said is None:
        raise RowError(name, [sorted(entry) for entry in entries], f"not all have one of rank, {', '.join(SCORES)}")
    numbers = _finite([entry[said] for entry in entries], name)
    record = ranking(
        prompt,
        responses,
        order=numbers if said == "rank" else [-number for number in numbers],
        scores=None if said == "rank" else numbers,
        annotator=fields.take_text("annotator"),
    )
    kind, found = fields.finish("ranking", record)
    rest = [{key: value for key, value in entry.items() if key not in (text, said)} for entry in entries]
    if any(rest):
        found["meta"][name] = rest
    return [(kind, found)]


def read_ranking(row: Row) -> Found:
    """A ranking from a list of answers and a list of ranks (which decide where both are given) or of scores."""
    fields = Fields(row)
    prompt = _prompt(fields)
    texts = fields.need("responses")
    if not isinstance(texts, list):
        raise RowError("responses", texts, "not a list of answers")
    responses = [as_answer(text, f"responses[{place}]") for place, text in enumerate(texts)]
    ranks, scores = (_numbers(fields.take(name), name, len(texts)) for name in ("ranks", "scores"))
    if ranks is None and scores is None:
        raise RowError("ranks", None, "missing field")
    order = ranks if ranks is not None else [-score for score in scores or ()]
    record = ranking(prompt, responses, order=order, scores=scores, annotator=fields.take_text("annotator"))
    return [fields.finish("ranking", record)]


def read_judgement(row: Row) -> Found:
    """A judgement of one answer, which stands beside its prompt or ends a conversation."""
    fields = Fields(row)
    name = _verdict_column(row)
    if name is None:
        raise RowError("label", row.get("label"), "neither true nor false")
    good = bool(fields.take(name))
    prompt, response = _judged(fields, row)
    return [fields.finish("judgement", judgement(prompt, response, good=good, annotator=fields.take_text("annotator")))]


def _judged(fields: Fields, row: Row) -> tuple[list[Message], str]:
    if "prompt" in row:
        value = fields.need("prompt")
        answer = fields.take("response" if "response" in row or "completion" not in row else "completion")
        text = as_answer(answer, "completion")
        return as_prompt(value), text.strip() if is_transcript(value) else text
    if "instruction" in row:
        return instruction_prompt(fields), as_answer(fields.take("output"), "output")
    name = "messages" if "messages" in row else "conversations"
    messages = as_messages(fields.need(name), name)
    if isinstance(system := fields.take("system"), str) and system.strip():
        messages = [{"role": "system", "content": system}, *messages]
    return last_answer(messages, name)


def _verdict_column(row: Row) -> str | None:
    return next((name for name in VERDICTS if isinstance(row.get(name), (int, float)) and row[name] in (0, 1)), None)


def _prompt(fields: Fields) -> list[Message]:
    value = fields.take("prompt")
    return instruction_prompt(fields) if value is None else as_prompt(value)


def _numbers(values: Any, field: str, count: int) -> list[float] | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        raise RowError(field, values, "not one number for each response")
    return _finite(values, field)


def _finite(values: Sequence[Any], field: str) -> list[float]:
    for value in values:
        if not _is_number(value):
            raise RowError(field, value, "not a number")
        if not math.isfinite(as_float(value)):
            raise RowError(field, value, "not a finite number")
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
