"""The flow `promote`: a person's yes to a challenger, given in Prefect's page.

It judges once more and moves the alias, which takes seconds; nothing has waited for it. `prefect.yaml` makes the
deployment, whose form asks for the parameters.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from tasks.approval import approve
from tasks.settings import project_root

ARTIFACT = "promote"


@flow(name="promote", flow_run_name="promote {version}", validate_parameters=True, persist_result=False)
def promote(
    reason: str, version: str = "@challenger", override: bool = False, root: str | None = None
) -> dict[str, Any]:
    """Make a version the champion, with the gate's consent or, overridden, against it.

    Args:
        reason: why; kept in the history.
        version: 3, v3 or @challenger.
        override: promote although the gate says no.
        root: the project's folder, found from the current one when left out.

    Returns:
        The move as recorded; it is an artifact of the run, too.
    """
    log = get_run_logger()
    folder = Path(root) if root else project_root()
    move = approve(folder, version, reason=reason, override=override, say=log.info)
    against = ", against the gate's verdict" if move.override else ""
    said = f"{move.model}/{move.after} is champion (before: {move.before or 'none'}){against}"
    log.info(said)
    create_markdown_artifact(key=ARTIFACT, markdown=f"{said}\n\n> {move.reason}", description="what this run did")
    return asdict(move)
