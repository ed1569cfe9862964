"""Readers: one function for each shape of row, from a parsed JSON object to canonical records.

A new format is one function and one line in `READERS`. Detection gives each row to the first reader that fits it (see
`rlhf.data.detect`), so the more particular ones stand first.
"""

import math
from typing import Any

from rlhf.data.conversations import (
    as_answer,
    as_messages,
    as_prompt,
    common_prompt,
    is_transcript,
    last_answer,
    merge_neighbours,
    split_transcript,
)
from rlhf.data.fields import Fields, Found, Reader, Row, has, instruction_prompt
from rlhf.data.records import Message, Record, RowError, demonstration, pair
from rlhf.data.verdict_readers import (
    is_judgement,
    is_scored_completions,
    read_judgement,
    read_ranking,
    read_scored_completions,
)


def _probability(value: Any) -> float:
    """A comparison's label as the probability that the first answer is better."""
    words = {"a": 1.0, "b": 0.0, "tie": 0.5}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError("label", value, "not a number")
    if math.isnan(value):
        raise RowError("label", value, "not a finite number")
    if not 0.0 <= value <= 1.0:
        raise RowError("label", value, "not in [0, 1]")
    return float(value)


def _read_comparison(row: Row) -> Found:
    fields = Fields(row)
    prompt = as_prompt(fields.need("prompt"))
    answers = [as_answer(fields.take(name), name) for name in ("response_a", "response_b")]
    label = _probability(fields.need("label"))
    record = pair(
        prompt,
        *answers,
        first_is_better=label,
        annotator=fields.take_text("annotator"),
        scores=(fields.take_number("score_a"), fields.take_number("score_b")),
    )
    return [fields.finish("pair", record)]


def _preference(fields: Fields, prompt: list[Message] | None) -> Record:
    """The pair of a row with `chosen` and `rejected`, as answers or as whole conversations."""
    chosen, rejected = fields.need("chosen"), fields.need("rejected")
    if prompt is None or all(isinstance(value, list) and len(value) > 1 for value in (chosen, rejected)):
        prompt, chosen, rejected = common_prompt(as_messages(chosen, "chosen"), as_messages(rejected, "rejected"))
    certainty = fields.take_number("label")
    if certainty is not None and not certainty >= 0.5:  # also true for NaN, which no comparison with >= admits
        raise RowError("label", certainty, "not in [0.5, 1]")
    return pair(
        prompt,
        as_answer(chosen, "chosen"),
        as_answer(rejected, "rejected"),
        first_is_better=1.0 if certainty is None else certainty,
        annotator=fields.take_text("annotator"),
        scores=(fields.take_number("score_chosen"), fields.take_number("score_rejected")),
    )


def _read_preference(row: Row) -> Found:
    fields = Fields(row)
    value = fields.take("prompt")
    record = _preference(fields, None if value is None else as_prompt(value))
    if is_transcript(value):  # transcripts put a space after "Assistant:", which is not part of the answer
        record = {**record, "chosen": record["chosen"].strip(), "rejected": record["rejected"].strip()}
    return [fields.finish("pair", record)]


def _read_probe(row: Row) -> Found:
    fields = Fields(row)
    record = _preference(fields, as_prompt(fields.need("prompt")))
    return [fields.finish("probe", record)]


def _read_transcripts(row: Row) -> Found:
    fields = Fields(row)
    chosen, rejected = fields.need("chosen"), fields.need("rejected")
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not is_transcript(value):
            raise RowError(name, value, "not a transcript of Human and Assistant turns")
    prompt, better, worse = common_prompt(split_transcript(chosen), split_transcript(rejected))
    return [fields.finish("pair", pair(merge_neighbours(prompt), better, worse))]


def _read_alpaca(row: Row) -> Found:
    fields = Fields(row)
    record = demonstration(instruction_prompt(fields), as_answer(fields.take("output"), "output"))
    return [fields.finish("demonstration", record)]


def _read_alpaca_preference(row: Row) -> Found:
    """A pair, and a demonstration as well where the row also has an `output`."""
    fields = Fields(row)
    prompt = instruction_prompt(fields)
    output = fields.take("output")
    found = [fields.finish("pair", _preference(fields, prompt))]
    if isinstance(output, str):
        found.append(fields.finish("demonstration", demonstration(prompt, output)))
    return found


def _read_sharegpt_preference(row: Row) -> Found:
    fields = Fields(row)
    prompt = as_messages(fields.need("conversations"), "conversations")
    if isinstance(system := fields.take("system"), str) and system.strip():
        prompt = [{"role": "system", "content": system}, *prompt]
    return [fields.finish("pair", _preference(fields, prompt))]


def _read_conversation(row: Row) -> Found:
    """A whole conversation is a demonstration of its last answer; one that ends with the user is a prompt."""
    fields = Fields(row)
    name = "messages" if "messages" in row else "conversations"
    messages = as_messages(fields.need(name), name)
    if isinstance(system := fields.take("system"), str) and system.strip():
        messages = [{"role": "system", "content": system}, *messages]
    if messages[-1]["role"] == "user":
        return [fields.finish("prompt", {"prompt": messages})]
    return [fields.finish("demonstration", demonstration(*last_answer(messages, name)))]


def _read_demonstration(row: Row) -> Found:
    fields = Fields(row)
    value = fields.need("prompt")
    name = "response" if "response" in row or "completion" not in row else "completion"
    answer = as_answer(fields.take(name), name)
    record = demonstration(as_prompt(value), answer.strip() if is_transcript(value) else answer)
    return [fields.finish("demonstration", record)]


def _read_prompt(row: Row) -> Found:
    fields = Fields(row)
    return [fields.finish("prompt", {"prompt": as_prompt(fields.need("prompt"))})]


def _is_probe(row: Row) -> bool:
    meta = row.get("meta")
    named = "probe" in row or (isinstance(meta, dict) and "probe" in meta)
    return named and has(row, "prompt", "chosen", "rejected")


READERS: dict[str, Reader] = {
    "comparison": Reader(
        "prompt, response_a, response_b, label (1: a is better, 0: b, 0.5: tie)",
        lambda row: has(row, "response_a", "response_b"),
        _read_comparison,
    ),
    "scored_completions": Reader(
        "prompt (or instruction), completions (each a response and a score, as in UltraFeedback, or a rank)",
        is_scored_completions,
        read_scored_completions,
    ),
    "ranking": Reader(
        "prompt (or instruction), responses, ranks (1 is best, equal is a tie) or scores",
        lambda row: "responses" in row and ("prompt" in row or "instruction" in row),
        read_ranking,
    ),
    "probe": Reader("prompt, chosen, rejected, probe (the one fact that differs)", _is_probe, _read_probe),
    "sharegpt_preference": Reader(
        "conversations (from, value), chosen, rejected",
        lambda row: has(row, "conversations", "chosen", "rejected"),
        _read_sharegpt_preference,
    ),
    "alpaca_preference": Reader(
        "instruction, input, chosen, rejected",
        lambda row: has(row, "instruction", "chosen", "rejected"),
        _read_alpaca_preference,
    ),
    "hh": Reader(
        'chosen and rejected as whole "Human: ... Assistant: ..." transcripts',
        lambda row: "prompt" not in row and is_transcript(row.get("chosen")) and is_transcript(row.get("rejected")),
        _read_transcripts,
    ),
    "preference": Reader(
        "prompt, chosen, rejected (texts or chat messages; the prompt may be inside chosen and rejected)",
        lambda row: has(row, "chosen", "rejected") and ("prompt" in row or isinstance(row["chosen"], list)),
        _read_preference,
    ),
    "judgement": Reader(
        "prompt, completion (or response; or messages; or instruction, output), label (true: good, false: bad)",
        is_judgement,
        read_judgement,
    ),
    "sharegpt": Reader(
        "conversations (from, value)",
        lambda row: "conversations" in row and not is_judgement(row),
        _read_conversation,
    ),
    "alpaca": Reader("instruction, input, output", lambda row: has(row, "instruction", "output"), _read_alpaca),
    "messages": Reader(
        "messages (role, content)",
        lambda row: "messages" in row and not has(row, "chosen", "rejected") and not is_judgement(row),
        _read_conversation,
    ),
    "demonstration": Reader(
        "prompt, response (or completion)",
        lambda row: "prompt" in row and ("response" in row or "completion" in row) and not is_judgement(row),
        _read_demonstration,
    ),
    "prompt": Reader(
        "prompt",
        lambda row: isinstance(row.get("prompt"), (str, list)) and not is_judgement(row),
        _read_prompt,
    ),
}
