"""`ratchet chat REFERENCE`: talk to a model, one prompt or a conversation."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flows.errors import CommandError
from flows.output import note, say, show

if TYPE_CHECKING:
    from rlhf.evaluation.answers import Policy
    from rlhf.evaluation.reply import Reply

Messages = list[dict[str, str]]

LONGEST = 256
HELP = "/reset starts over, /quit leaves; anything else is said to the model"


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to a registered model",
        description="Answer one prompt, or hold a conversation when no --prompt is given. REFERENCE is a registered "
        "version (policy@champion, policy/3), a stage (sft, ppo, dpo) or a folder.",
    )
    parser.add_argument("reference", metavar="REFERENCE", help="policy@champion, policy/3, ppo, or a folder")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling; default %(default)s")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token instead of sampling")
    parser.add_argument("--seed", type=int, metavar="N", help="of the sample, for the same answer again")
    parser.add_argument(
        "--max-new-tokens", type=int, default=LONGEST, metavar="N", help="longest answer; default %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Answer, once or until the end of the input."""
    if args.prompt is not None and not args.prompt.strip():
        raise CommandError("ratchet chat: --prompt is empty, wanted a text for the model to answer")
    if args.prompt is None and getattr(args, "json", False):
        raise CommandError(
            "ratchet chat: --json needs --prompt, because a conversation is not one document; give both, or no --json"
        )
    from rlhf.evaluation.reply import reply

    policy = open_policy(args.reference)
    seed = args.seed if args.seed is not None else secrets.randbelow(2**31)

    def answer(messages: Messages) -> Reply:
        # Another seed for every turn: the same question asked twice deserves two samples.
        return reply(
            policy,
            messages,
            temperature=args.temperature,
            max_new_tokens=args.max_new_tokens,
            greedy=args.greedy,
            seed=seed + len(messages),
        )

    start: Messages = [{"role": "system", "content": args.system}] if args.system else []
    if args.prompt is None:
        converse(start, answer)
        return 0
    messages = [*start, {"role": "user", "content": args.prompt}]
    found = answer(messages)
    document = {
        "reference": args.reference,
        "prompt": messages,
        "response": found.text,
        "ended": found.ended,
        "tokens": found.tokens,
        "temperature": None if args.greedy else args.temperature,
        "seed": None if args.greedy else seed,
    }
    if not found.ended:
        note(f"the answer was cut after {found.tokens} tokens")
    show(args, document, found.text)
    return 0


def open_policy(reference: str) -> Policy:
    """Load the policy that a reference names.

    Raises:
        BadInput: nothing goes by that name, or its weights cannot be loaded.
        CommandError: it is a reward model.
    """
    from tasks.registry import resolve_weights
    from tasks.settings import applied_environment, project_root

    root = project_root()
    with applied_environment(root):
        folder = resolve_weights(reference, root)
    if (folder / "reward.json").is_file():
        raise CommandError(f"{reference}: this is a reward model, which scores answers and gives none; name a policy")
    from rlhf.device import choose_device
    from rlhf.evaluation.answers import Policy

    return Policy.load(folder, device=choose_device())


def converse(start: Messages, answer: Callable[[Messages], Reply]) -> None:
    """Read lines until the end of the input, keeping the conversation.

    Args:
        start: messages before the first turn.
        answer: gives the reply to a conversation.
    """
    from rlhf.errors import BadInput

    with contextlib.suppress(ImportError):  # editing and history of the line, where the platform has them
        import readline  # noqa: F401 - its import is what does it
    talks = sys.stdin.isatty()
    if talks:
        note(HELP)
    messages = list(start)
    while True:
        try:
            line = input("> " if talks else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/reset":
            messages = list(start)
            note("starting over")
        elif line.startswith("/"):
            note(HELP)
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            try:
                found = answer(asked)
            except BadInput as error:
                note(str(error))
                continue
            messages = [*asked, {"role": "assistant", "content": found.text}]
            if found.forgotten:
                note(f"the first {found.forgotten} messages no longer fit into the context")
            say(found.text)
