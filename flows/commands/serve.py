"""`ratchet serve REFERENCE`: an HTTP endpoint in OpenAI's form that follows the alias."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
from typing import Any

from flows.errors import CommandError
from flows.output import note

KEY_VARIABLE = "RATCHET_API_KEY"
GRACE_SECONDS = 20
"""For answers under way when the server is told to stop."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "serve",
        help="an HTTP endpoint for a model that follows the alias",
        description="Answer chat completions in OpenAI's form (streaming too) at /v1, with /health and /metrics. An "
        f"alias is followed: a promotion changes what is served within seconds. ${KEY_VARIABLE}, when set, is asked "
        "of every client. One answer is generated at a time.",
    )
    parser.add_argument(
        "reference", metavar="REFERENCE", nargs="?", default="policy@champion",
        help="policy@champion (the default), policy/3, ppo, or a folder",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default %(default)s")
    parser.add_argument("--port", type=int, default=8008, help="default %(default)s")
    parser.add_argument("--waiting", type=int, default=32, metavar="N", help="requests that may wait; default 32")
    parser.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="longest answer; default 1024")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between looks at the alias; default %(default)s"
    )


def run(args: argparse.Namespace) -> int:
    """Load the model and serve until told to stop."""
    key = os.environ.get(KEY_VARIABLE) or None
    _require_sense(args, key)
    from tasks.settings import applied_environment, project_root

    root = project_root()
    with applied_environment(root):
        import uvicorn

        from flows.chat_protocol import Limits
        from flows.serving import make_app
        from tasks.followed_model import FollowedModel

        model = FollowedModel(root, args.reference)
        limits = Limits(waiting=args.waiting, max_tokens=args.max_tokens, every=args.every)
        app = make_app(model, limits, key=key)
        note(f"serving {model.current.name} at http://{args.host}:{args.port}/v1 as {args.reference}; Ctrl-C stops")
        server = uvicorn.Server(
            uvicorn.Config(
                app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS
            )
        )
        # Uvicorn ends in order and then sends the signal again, to whatever was in place before it.
        signal.signal(signal.SIGTERM, lambda *_: note("stopped"))
        try:
            server.run()
        except SystemExit as error:  # uvicorn's way to say that it could not listen
            raise CommandError(
                f"ratchet serve: {args.host}:{args.port} cannot be listened at; stop what uses it or name another "
                "--port", 1,
            ) from error  # fmt: skip
        except KeyboardInterrupt:
            note("stopped")
    return 0


def _require_sense(args: argparse.Namespace, key: str | None) -> None:
    """Refuse numbers that make no sense, and an open door.

    Raises:
        CommandError: naming the option.
    """
    for option, least in (("waiting", 1), ("max_tokens", 1), ("every", 0.1)):
        if not getattr(args, option) >= least:
            name = option.replace("_", "-")
            raise CommandError(f"ratchet serve: --{name} is {getattr(args, option)}, wanted at least {least}")
    if not 1 <= args.port <= 65535:
        raise CommandError(f"ratchet serve: --port is {args.port}, wanted 1 to 65535")
    if key is None and not _is_loopback(args.host):
        raise CommandError(
            f"ratchet serve: --host {args.host} lets other machines in, and nothing asks them who they are; set "
            f"{KEY_VARIABLE} to a secret that clients have to send"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
