"""`ratchet compare A B`: two models side by side on the same prompts, judged where there is a judge."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.chat import open_policy
from flows.errors import CommandError
from flows.output import cell_text, show

if TYPE_CHECKING:
    from rlhf.evaluation.judging import Scorer
    from rlhf.evaluation.side_by_side import Duel, Side

HELD_OUT = "data/validated/prompts/test.jsonl"
JUDGE = "data/models/judge"
WIDTH = 100
BATCH = 32


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compare",
        help="two models side by side on the same prompts",
        description="Let two models answer the same prompts and show both answers, with the verdict of the judge model "
        "where there is one. A and B are references as in `ratchet chat`.",
    )
    parser.add_argument("a", metavar="A", help="policy@champion, policy/3, ppo, or a folder")
    parser.add_argument("b", metavar="B", help="the other one")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt a line: JSON objects with `prompt`, or text; default: held-out prompts",
    )
    parser.add_argument("--n", type=int, default=5, metavar="N", help="prompts to show; default %(default)s")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the samples; default %(default)s")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="longest answer; default %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Compare and show."""
    if args.n < 1 or args.max_new_tokens < 1 or not args.temperature > 0:
        raise CommandError("ratchet compare: wanted --n, --max-new-tokens and --temperature above 0")
    from tasks.settings import project_root

    root = project_root()
    prompts = read_prompts(Path(args.prompts) if args.prompts else root / HELD_OUT)
    ours, theirs = open_policy(args.a), open_policy(args.b)
    from rlhf.evaluation.answers import Sampling, fitting
    from rlhf.evaluation.side_by_side import compare

    fit_ours = fitting(prompts, ours, max_new_tokens=args.max_new_tokens, most=len(prompts))
    asked = fitting(fit_ours, theirs, max_new_tokens=args.max_new_tokens, most=args.n)
    if not asked:
        raise CommandError(
            f"no prompt leaves {args.max_new_tokens} tokens of the context for an answer; lower --max-new-tokens or "
            "give shorter --prompts"
        )
    sampling = Sampling(
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        batch=BATCH,
        precision="auto",
        seed=args.seed,
    )
    duels = compare(ours, theirs, asked, sampling, judge=_judge(root))
    show(args, _document(args, duels), [*_pages(args, duels), _verdict(args, duels)])
    return 0


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Read prompts from JSON lines (a `prompt` of text or messages, optionally id and meta) or from plain lines.

    Raises:
        CommandError: no such file, not UTF-8, no prompt in it, or a line that is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        hint = "`ratchet run --until validate` makes it" if path.name == Path(HELD_OUT).name else "check the path"
        raise CommandError(f"{path}: no such file of prompts; {hint}, or give another one with --prompts") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: cannot be read as UTF-8 text ({error}); give a text or JSON lines file") from error
    found = [_record(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise CommandError(f"{path}: there is no prompt in this file; wanted one a line")
    return found


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    key = f"{number:06d}"
    if not line.lstrip().startswith("{"):
        return {"id": key, "prompt": [{"role": "user", "content": line.strip()}], "meta": {}}
    try:
        row = json.loads(line)
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        asked = [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
        if not asked or asked[-1]["role"] != "user":
            raise ValueError("the last message is not the user's")
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{path}:{number}: not a prompt ({error!r}); wanted an object whose `prompt` is a text or a list of "
            "messages that ends with the user's"
        ) from error
    meta = row.get("meta")
    return {"id": str(row.get("id", key)), "prompt": asked, "meta": meta if isinstance(meta, Mapping) else {}}


def _judge(root: Path) -> Scorer | None:
    if not (root / JUDGE / "reward.json").is_file():
        return None
    from rlhf.device import choose_device
    from rlhf.evaluation.judging import Scorer

    return Scorer.load(root / JUDGE, device=choose_device(), batch=BATCH, precision="auto")


def _tally(duels: Sequence[Duel]) -> dict[str, int] | None:
    winners = [duel.winner for duel in duels]
    return None if None in winners else {name: winners.count(name) for name in ("a", "b", "tie")}


def _document(args: argparse.Namespace, duels: Sequence[Duel]) -> dict[str, Any]:
    rows = [{**asdict(duel), "winner": duel.winner} for duel in duels]
    return {"a": args.a, "b": args.b, "judged": _tally(duels), "prompts": rows}


def _pages(args: argparse.Namespace, duels: Sequence[Duel]) -> list[str]:
    """Lay each prompt out with both answers below it."""
    lines = []
    for duel in duels:
        lines += [_wrapped(f"{message['role']}: {message['content']}", "") for message in duel.prompt]
        for key, name, side in (("a", args.a, duel.a), ("b", args.b, duel.b)):
            mark = " (wins)" if duel.winner == key else ""
            lines += [f"  {name}{mark}  {_scores(side)}", _wrapped(side.response, "    ")]
        lines.append("")
    return lines


def _scores(side: Side) -> str:
    shown = [
        f"{name} {cell_text(value)}"
        for name, value in (("judge", side.judge), ("gold", side.gold))
        if value is not None
    ]
    return "  ".join([*shown, f"{side.tokens} tokens", *([] if side.ended else ["cut"])])


def _verdict(args: argparse.Namespace, duels: Sequence[Duel]) -> str:
    tally = _tally(duels)
    if tally is None:
        return f"there is no judge in {JUDGE}, so nobody judged; `ratchet run --until judge` trains one"
    return f"by the judge: {args.a} {tally['a']}, {args.b} {tally['b']}, ties {tally['tie']}"


def _wrapped(text: str, indent: str) -> str:
    filled = [textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent) for line in text.splitlines()]
    return "\n".join(filled) or f"{indent}(nothing)"
