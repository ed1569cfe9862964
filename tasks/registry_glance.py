"""Who is champion, read from the local database itself: MLflow takes seconds to load, and a glance shall not.

Only what `ratchet status` shows is read, and nothing is written. A database whose tables are other ones is an error of
`sqlite3`, upon which one asks MLflow.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tasks.live_run import OUTPUT, STAGE
from tasks.registry_lookup import DECISION

SELECT = """
select version, (select value from model_version_tags as tag
                 where tag.name = alias.name and tag.version = alias.version and tag.key = ?),
                (select value from model_version_tags as tag
                 where tag.name = alias.name and tag.version = alias.version and tag.key = ?),
                (select value from model_version_tags as tag
                 where tag.name = alias.name and tag.version = alias.version and tag.key = ?)
from registered_model_aliases as alias where alias.name = ? and alias.alias = ?
"""


class Glance(NamedTuple):
    """What is shown of a version."""

    reference: str
    """How one names it to a command."""
    stage: str
    output_md5: str
    decision: str
    """What became of it, as in `tasks.registry_lookup.DECISION`; "" while nothing was decided."""


def glance(file: Path, model: str, alias: str) -> Glance | None:
    """The version that an alias of a registered model points to.

    Args:
        file: MLflow's SQLite database.
        model: name of the registered model.
        alias: its alias, such as champion.

    Returns:
        The version; None when nothing has that alias.

    Raises:
        sqlite3.Error: the database cannot be read, or not in this way.
    """
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute(SELECT, (STAGE, OUTPUT, DECISION, model, alias)).fetchall()
    if not rows:
        return None
    if len(rows) > 1:
        raise sqlite3.DatabaseError(f"{file}: {len(rows)} versions have the alias {alias}")
    version, stage, output, decision = rows[0]
    return Glance(f"{model}/{version}", stage or "", output or "", decision or "")
