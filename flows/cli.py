"""The `ratchet` command: finds the chosen command's module, runs it, turns what goes wrong into one sentence.

Only the module of the chosen command is imported, so `ratchet --help` and every command's usage stay quick however
heavy the other commands are.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from flows.errors import CommandError
from flows.output import log_to_stderr, note, write_json

__all__ = ["COMMANDS", "CommandError", "entry", "main"]

COMMANDS: dict[str, str] = {
    "run": "take the data to a champion model; unchanged stages are skipped",
    "plan": "which stages would run, and why",
    "status": "stages, last runs, champion and challenger",
    "use": "merge a profile into params.yaml, showing the difference first",
    "ingest": "add raw data, or a base model, as a new version",
    "collect": "new preference pairs from a policy's answers, labelled by a judge",
    "denoise": "list the training pairs whose label is probably wrong",
    "accept": "record that a source change leaves a stage's results as they are",
    "publish": "make MLflow agree with dvc.lock",
    "gate": "compare the challenger with the champion",
    "promote": "make a version the champion",
    "rollback": "return to the champion before this one",
    "history": "which version was champion when, and why",
    "lineage": "what a version was made from, or which versions were made from a file",
    "reproduce": "rebuild a registered version from raw data and compare every hash",
    "forget": "remove rows from raw data, and list the versions that were trained on them",
    "report": "write one self-contained HTML page",
    "chat": "talk to a registered model",
    "serve": "an HTTP endpoint in OpenAI's form that follows the champion",
    "compare": "two models side by side on the same prompts",
    "size": "will it fit: memory per GPU, time, and the cheapest setting that fits",
    "ui": "open the Prefect and MLflow pages of this project's stores",
    "doctor": "check this machine and this project, with a remedy for each problem",
    "clean": "free what .ratchet/tmp holds",
}
"""Every command and its one line of help; the module is `flows.commands.NAME`."""

REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space (`ratchet clean` frees .ratchet/tmp) and run the command again",
    errno.EROFS: "the file system is read-only; mount it writable and run the command again",
    errno.EACCES: "permission denied; make it writable for this user and run the command again",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "a link that leads back to itself; remove it",
    errno.EADDRINUSE: "the port is taken; stop what uses it or choose another port",
}

SQLITE_WORDS = {
    "disk I/O error": errno.ENOSPC,
    "disk is full": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
}

LARGEST = 2**31 - 1
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        """Raise a usage error as a sentence that ends with where to look."""
        raise CommandError(f"{self.prog}: {message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `ratchet`; None takes them from the process.

    Returns:
        The exit code: 0 done, 1 a stage failed or a gate said no, 2 bad input or usage, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    outer_root = os.environ.get("RATCHET_ROOT")
    try:
        return _run(words)
    except SystemExit as leaving:  # --help and --version
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing is left to say, and Python's own flush at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _descriptor_of_stdout())
        return 1
    except Exception as error:  # the last door: one sentence and an exit code, the trace with --debug
        return _report(error, words)
    finally:
        if outer_root is None:
            os.environ.pop("RATCHET_ROOT", None)
        else:
            os.environ["RATCHET_ROOT"] = outer_root


def _run(words: list[str]) -> int:
    """Parse, import the one module that is needed, and run it."""
    name = _command_in(words)
    parser = _parser(name)
    args = parser.parse_args(words)
    if not args.command:
        parser.print_help()
        return 0
    _refuse_beyond_bounds(args)
    log_to_stderr(debug=args.debug)
    if args.root is not None:
        root = Path(args.root).expanduser().resolve()
        if not (root / "dvc.yaml").is_file():
            raise CommandError(f"--root {args.root}: there is no dvc.yaml in {root}; name the folder of a project")
        os.environ["RATCHET_ROOT"] = str(root)
    code = importlib.import_module(f"flows.commands.{args.command}").run(args)
    return code if isinstance(code, int) else 0


def _refuse_beyond_bounds(args: argparse.Namespace) -> None:
    """Refuse numbers that no option means and on which libraries stumble."""
    for name, value in vars(args).items():
        if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:  # also true for NaN
            option = f"--{name.replace('_', '-')}"
            raise CommandError(f"ratchet {args.command}: {option} is {value}, wanted a number up to {LARGEST}")


def _command_in(words: Sequence[str]) -> str | None:
    """Find the command's name: the first word that is neither an option nor an option's value."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word == "--root":
            skip = True
        elif not word.startswith("-"):
            if word not in COMMANDS:
                near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
                hint = f"did you mean `ratchet {near[0]}`?" if near else "`ratchet --help` lists the commands"
                raise CommandError(f"ratchet: unknown command {word!r}; {hint}")
            return word
    return None


def _parser(name: str | None) -> Parser:
    """Build the parser: the chosen command in full, the others as lines of the list."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {command:<{width}}  {line}" for command, line in COMMANDS.items())
    parser = Parser(
        prog="ratchet",
        usage="ratchet COMMAND [options]",
        description="Retrains an aligned language model and only ever moves forward.",
        epilog=f"commands:\n{listing}\n\n`ratchet COMMAND --help` tells more about one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    _add_common(parser, top=True)
    parser.set_defaults(command=None)
    if name is not None:
        # A prog of its own: usage errors then name the command as it is typed.
        commands = parser.add_subparsers(dest="command", prog="ratchet", parser_class=Parser, help=argparse.SUPPRESS)
        importlib.import_module(f"flows.commands.{name}").add_parser(commands)
        _add_common(commands.choices[name], top=False)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """Add the options that every command has, but for those which it has defined itself."""
    taken = {option for action in parser._actions for option in action.option_strings}

    def default(value: object) -> object:
        # Below the top the option sets nothing unless it is given, so `ratchet --json plan` is `ratchet plan --json`.
        return value if top else argparse.SUPPRESS

    if "--json" not in taken:
        parser.add_argument("--json", action="store_true", default=default(False), help="one JSON document on stdout")
    if "--debug" not in taken:
        parser.add_argument("--debug", action="store_true", default=default(False), help="tracebacks and more logs")
    if "--root" not in taken:
        parser.add_argument("--root", metavar="FOLDER", default=default(None), help="the project, if not this folder")


class _Version(argparse.Action):
    """`--version`: looked up only when asked for, because the look-up costs more than the rest of the start."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help="show the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("ratchet")
        except PackageNotFoundError:  # run from a plain checkout
            import tomllib

            project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
            number = project["project"]["version"]
        sys.stdout.write(f"ratchet {number}\n")
        parser.exit()


def _report(error: Exception, words: Sequence[str]) -> int:
    """Say in one sentence what went wrong, on stderr and, with `--json`, as a document on stdout.

    Returns:
        The exit code.
    """
    debug, as_json = "--debug" in words, "--json" in words
    sentence, code, expected = explain(error)
    if debug:
        traceback.print_exception(error)
    if not expected and not debug:
        sentence += "; run it again with --debug to see where"
    note(f"error: {sentence}")
    logging.getLogger(__name__).debug("exit code %d", code)
    if as_json:
        write_json({"error": sentence, "exit_code": code})
    return code


def explain(error: Exception) -> tuple[str, int, bool]:
    """Translate an exception.

    Args:
        error: what a command raised.

    Returns:
        The sentence; the exit code; whether it is a failure that the code foresaw.
    """
    from rlhf.errors import BadInput, StageFailed

    if isinstance(error, BadInput):
        return _one_line(error), 2, True
    if isinstance(error, StageFailed):
        return _one_line(error), 1, True
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):  # CommandError, StageError
        return _one_line(getattr(error, "sentence", error)), code or 1, True
    cause = _storage_trouble(error)
    if cause is not None:
        return _one_line(cause), 1, True
    return f"unexpected {type(error).__name__}: {_one_line(error) or 'no message'}", 1, False


def _storage_trouble(error: BaseException) -> str | None:
    """Find the machine's refusal behind an exception: libraries wrap it, and SQLite has only words for it."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in REMEDIES:
            place = link.filename2 or link.filename  # of a copy, the place that was written to
            return (f"{place}: " if place else "") + REMEDIES[link.errno]
        if type(link).__name__ == "OperationalError":  # SQLite, bare or in SQLAlchemy
            for words, code in SQLITE_WORDS.items():
                if words in str(link):
                    return f"a database below .ratchet or .dvc: {REMEDIES[code]}"
        link = link.__cause__ or link.__context__
    return None


def _one_line(text: object) -> str:
    from rlhf.errors import one_line

    return one_line(" ".join(str(text).split()))


def _descriptor_of_stdout() -> int:
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):  # stdout is not a file here (a test's buffer)
        return os.open(os.devnull, os.O_WRONLY)


def entry() -> NoReturn:
    """The `ratchet` program."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
