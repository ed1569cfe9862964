"""What is made of what when data lack it: pairs of rankings, demonstrations of the best answers, prompts of pairs."""

from collections.abc import Iterator, Mapping

from rlhf.data.entries import FOLDERS
from rlhf.data.ledger import Ledger
from rlhf.data.records import Record, demonstration, ranked_pairs
from rlhf.data.splits import SPLITS, UNLIKE
from rlhf.errors import BadInput

PAIRS = ("pairs", "judge_pairs")
RANKINGS = ("rankings", "judge_rankings")
COMPARISONS = (*PAIRS, *RANKINGS)
PROMPT_SOURCES = {"prompts": (), "pairs": COMPARISONS, "all": (*COMPARISONS, "demonstrations", "judgements")}
"""Folders whose prompts are added to the prompt records, by `validate.prompts_from`."""
NEEDED = (
    *[(folder, split) for folder in ("demonstrations", "pairs", "prompts") for split in SPLITS],
    ("judge_pairs", "train"),
)
"""Parts without which a later stage could not work."""


def there_are(ledger: Ledger, *folders: str) -> bool:
    """Whether one of the folders has a record in train, dev or test."""
    return any(ledger.parts[folder, split].count() for folder in folders for split in SPLITS)


def derive_pairs(ledger: Ledger) -> None:
    """Make pairs of rankings where the data have no pairs.

    Each of them names its ranking under `ranking` in its meta, so that whoever learns from rankings can leave it out.
    """
    if not there_are(ledger, *PAIRS):
        for folder in RANKINGS:
            ledger.derive("pair", folder, _named_pairs)


def derive_the_rest(ledger: Ledger, *, demonstrations_from: str, prompts_from: str) -> None:
    """Take demonstrations from the best answers, and prompts from comparisons or from everything.

    Args:
        ledger: all accepted records.
        demonstrations_from: auto, demonstrations or chosen, as in `validate`.
        prompts_from: auto, prompts, pairs or all, as in `validate`.
    """
    if demonstrations_from == "auto":
        demonstrations_from = "demonstrations" if there_are(ledger, "demonstrations") else "chosen"
    if demonstrations_from == "chosen":
        ledger.discard("demonstrations")
        for folder in PAIRS:
            ledger.derive("demonstration", folder, _chosen)
        for folder in RANKINGS:
            ledger.derive("demonstration", folder, _best)
    if prompts_from == "auto":
        prompts_from = (
            "prompts" if there_are(ledger, "prompts") else "pairs" if there_are(ledger, *COMPARISONS) else "all"
        )
    if prompts_from == "pairs":
        ledger.discard("prompts")
    for folder in PROMPT_SOURCES[prompts_from]:
        ledger.derive("prompt", folder, _prompt, once=True)


def limit(ledger: Ledger, training: Mapping[str, int | None], held_out: int | None) -> None:
    """Keep at most so many records of each folder, training and held out."""
    for folder, most in training.items():
        ledger.limit(folder, "train", most)
        ledger.limit(folder, "dev", held_out)
        ledger.limit(folder, "test", held_out)
    ledger.limit("prompts", UNLIKE, held_out)


def refuse_empty(ledger: Ledger) -> None:
    """Refuse data that leave a stage without records.

    Raises:
        BadInput: naming the part that is empty and what there is.
    """
    missing = next((part for part in NEEDED if not ledger.parts[part].count()), None)
    if missing is None:
        return
    if there_are(ledger, "judgements") and not there_are(ledger, *COMPARISONS):
        count = len(ledger.entries("judgements"))
        raise BadInput(
            f"validate.files has {count} judgements of single answers but no pairs or rankings: judgements train a "
            "policy (dpo.objective: kto), the reward model and the judge learn from comparisons; add a file with some"
        )
    names = [name for name in FOLDERS if name != "probes"]
    there = ", ".join(f"{ledger.parts[name, 'train'].count()} {name}" for name in names)
    raise BadInput(
        f"no record is left for {'/'.join(missing)} (training has {there}); add data to validate.files, "
        "or change the fractions or the sources of demonstrations and prompts in params.yaml"
    )


def _prompt(record: Record) -> Iterator[Record]:
    yield {"prompt": record["prompt"]}


def _named_pairs(record: Record) -> Iterator[Record]:
    return ({**content, "meta": {"ranking": record["id"]}} for content in ranked_pairs(record))


def _chosen(record: Record) -> Iterator[Record]:
    """The better answer of a pair; of a tie neither is, and of a ranking only the best is wanted (see `_best`)."""
    if record["label"] > 0.5 and "ranking" not in record["meta"]:
        yield demonstration(record["prompt"], record["chosen"])


def _best(record: Record) -> Iterator[Record]:
    """The answers in the first place of a ranking that has another place."""
    if len(set(record["ranks"])) > 1:
        for response, rank in zip(record["responses"], record["ranks"], strict=True):
            if rank == 1:
                yield demonstration(record["prompt"], response)
