"""`ratchet denoise`: the training pairs whose label is probably wrong, by reward models that never saw them."""

from __future__ import annotations

import argparse
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.collect import set_threads
from flows.errors import CommandError
from flows.output import relative, show, table

if TYPE_CHECKING:
    from rlhf.reward_config import Config

PAIRS, JUDGE_PAIRS = "data/validated/pairs", "data/validated/judge_pairs"
OUT = "data/reports/denoise"
SFT = "data/models/sft"
LEAST_AGREEMENT = 0.55
"""Below this the models hardly know more than a coin, and what they suspect means nothing."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "denoise",
        help="list the training pairs whose label is probably wrong",
        description="Train reward models on all folds but one of the training pairs, have each judge the fold that it "
        "never saw, and list the pairs by how probably their label is wrong. On the embedded task the list is compared "
        "with the known errors. The settings of the models are those of the section `reward` of params.yaml.",
    )
    parser.add_argument("--folds", type=int, default=3, metavar="K", help="by prompt; default %(default)s")
    parser.add_argument("--epochs", type=float, metavar="E", help="of each model; default that of the stage reward")
    parser.add_argument("--max-pairs", type=int, metavar="N", help="look at the first N only; default all")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of folds and training; default %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default those of the stage reward")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where the list goes; default {OUT}")
    write_help = "also add all pairs as raw data of this name, with the flagged ones dropped or turned round"
    parser.add_argument("--write", metavar="NAME", help=write_help)
    action_help = "what --write does with flagged pairs; default %(default)s"
    parser.add_argument("--action", choices=("drop", "flip"), default="drop", help=action_help)


def run(args: argparse.Namespace) -> int:
    """List, measure, and write the cleaned data where asked."""
    from rlhf.denoising import denoise
    from rlhf.outputs import write_jsonl, write_metrics
    from tasks.ingest import checked_name
    from tasks.settings import project_root

    root = project_root()
    name = None if args.write is None else checked_name(args.write, data=True)
    if name is not None and args.max_pairs is not None:
        raise CommandError("ratchet denoise: --write needs every pair to be looked at; leave --max-pairs out")
    config, threads = _settings(args, root)
    set_threads(threads)
    pairs = root / PAIRS / "train.jsonl"
    if not (root / SFT / "config.json").is_file():
        raise CommandError(f"{SFT}: there is no model to start from; `ratchet run --until sft` makes it")
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it would report the fresh head of each model
    found = denoise(pairs, config=config, sft=root / SFT, folds=args.folds, seed=args.seed)
    out = root / OUT if args.out is None else args.out.expanduser()
    write_jsonl(out / "suspects.jsonl", found.listed)
    write_metrics(out / "summary.json", found.summary)
    document: dict[str, Any] = {"list": str(out / "suspects.jsonl"), **found.summary}
    lines = [table(("", ""), _facts(found.summary), indent=2), f"list: {relative(out / 'suspects.jsonl', root)}"]
    if found.summary["agreement"] < LEAST_AGREEMENT:
        why = (
            f"models that never saw a label share {found.summary['agreement']:.0%} of them, where a coin "
            "shares half, so this list is not to be acted on; train longer (--epochs) or on more pairs"
        )
        if name is not None:
            raise CommandError(f"ratchet denoise: data/raw/{name} was not written: {why}")
        step = f"nothing yet: {why}"
    elif name is None:
        step = (
            "read the top of the list; then `ratchet denoise --write NAME`, which drops the flagged pairs, or with "
            "--action flip turns them round"
        )
    else:
        document["written"], step = _write(args, root, name, found.listed)
        lines.append(f"{document['written']['status']}: data/raw/{document['written']['name']}")
    show(args, {**document, "next": step}, [*lines, f"next: {step}"])
    return 0


def _settings(args: argparse.Namespace, root: Path) -> tuple[Config, int]:
    """The reward model's settings with what the command line changes, and the number of threads."""
    from rlhf.config import load_section, read_params
    from rlhf.launch import launch_settings
    from rlhf.reward_config import Config

    params = read_params(root / "params.yaml")
    config = load_section(params, "reward", Config)
    changes = {"epochs": args.epochs, "max_pairs": args.max_pairs}
    try:
        config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    except ValueError as error:
        raise CommandError(f"ratchet denoise: {error}") from error
    threads = launch_settings(params, "reward")[0] if args.threads is None else args.threads
    if threads < 1 or args.folds < 2 or args.seed < 0:
        raise CommandError(
            "ratchet denoise: wanted --threads of at least 1, --folds of at least 2, --seed of at least 0"
        )
    return config, threads


def _write(args: argparse.Namespace, root: Path, name: str, listed: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Add the cleaned pairs as raw data; returns what was done and what comes next."""
    from rlhf.denoising import cleaned_files, sources_of_pairs
    from rlhf.outputs import write_jsonl
    from tasks.ingest import ingest_data
    from tasks.settings import tmp_dir

    origin = {"action": args.action, "folds": args.folds, "seed": args.seed}
    folders = root / PAIRS, root / JUDGE_PAIRS
    work = tmp_dir(root) / "denoise"
    file = work / f"{name}.jsonl"
    write_jsonl(file, cleaned_files(*folders, listed, action=args.action, origin=origin))
    sources = sources_of_pairs(*folders)
    report = ingest_data(root, [file], name=name, format="preference")
    shutil.rmtree(work)
    done = {"name": report.name, "status": report.status, "rows": report.rows, "instead_of": sources}
    files = ", ".join(_files_now(root, sources, report.name))
    step = (
        f"commit data/raw/{report.name}.dvc with git; set `files: [{files}]` under `validate:` in params.yaml "
        f"({report.name} instead of {', '.join(sources)}), then `ratchet run`"
    )
    return done, step


def _files_now(root: Path, sources: list[str], name: str) -> list[str]:
    """The files of `validate.files` one by one, with the new one instead of those that the pairs came from."""
    from rlhf.config import read_params
    from rlhf.data.raw_files import find_files

    named = tuple(read_params(root / "params.yaml").get("validate", {}).get("files", ()))
    return [*(file for file, _ in find_files(root / "data/raw", named) if file not in {*sources, name}), name]


def _facts(summary: dict[str, Any]) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("pairs", f"{summary['pairs']} in {summary['folds']} folds"),
        ("labels that an unseen model shares", f"{summary['agreement']:.3f}"),
        ("flagged as probably wrong", f"{summary['flagged']} ({summary['flagged'] / summary['pairs']:.1%})"),
    ]
    facts += [
        (f"  of {name}", f"{found['share']:.1%} of {found['pairs']}")
        for name, found in summary["flagged_by_annotator"].items()
    ]
    truth = summary["truth"]
    if truth is not None:
        facts.append(("known to be wrong", f"{truth['wrong']} of {truth['measured']} ({truth['base_rate']:.1%})"))
        if truth["precision"] is not None and truth["recall"] is not None:
            facts.append(("precision and recall of the flags", f"{truth['precision']:.3f}, {truth['recall']:.3f}"))
        facts += [(f"precision of the first {n}", f"{share:.3f}") for n, share in truth["precision_at"].items()]
    return facts
