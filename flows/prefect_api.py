"""Short questions to the Prefect server by its REST interface, with a limit in seconds.

Prefect's own client tries again for a minute when the server is away, which is right for a flow and wrong for whoever
watches it; and it takes a second to import.
"""

import base64
import json
import os
import urllib.error
import urllib.request
from typing import Any

LIMIT_SECONDS = 3.0


class ServerAway(Exception):
    """Nobody answers at PREFECT_API_URL."""


class ServerRefused(Exception):
    """The server answered, and would not do it."""


def ask(path: str, body: Any = None, *, method: str = "POST", limit: float = LIMIT_SECONDS) -> Any:
    """Send one request to PREFECT_API_URL.

    Args:
        path: below the address, such as "/flow_runs/filter".
        body: what to send as JSON, None for nothing.
        method: of HTTP.
        limit: seconds to wait for an answer.

    Returns:
        The answer, decoded; None for an empty one.

    Raises:
        ServerAway: it does not answer.
        ServerRefused: it answers with an error.
    """
    headers = {"Content-Type": "application/json", **_login()}
    data = None if body is None else json.dumps(body).encode()
    url = os.environ["PREFECT_API_URL"].rstrip("/") + path
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=limit) as answer:
            text = answer.read()
            return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise ServerAway(f"HTTP {error.code}") from error
        raise ServerRefused(f"HTTP {error.code}") from error
    except (OSError, ValueError) as error:
        raise ServerAway(str(getattr(error, "reason", error))) from error


def flow_run_state(run_id: str) -> str:
    """Return the type of a flow run's state, such as "RUNNING" or "CANCELLING"; see `ask` for errors."""
    return str(ask(f"/flow_runs/{run_id}", method="GET")["state_type"])


def set_state(kind: str, run_id: str, state: str, message: str) -> None:
    """Set the state of a "flow_runs" or "task_runs" whatever it is now; see `ask` for errors.

    Args:
        kind: "flow_runs" or "task_runs".
        run_id: which.
        state: type of the new state, such as "CRASHED".
        message: why.
    """
    new = {"type": state, "name": state.capitalize(), "message": message}
    ask(f"/{kind}/{run_id}/set_state", {"state": new, "force": True})


def _login() -> dict[str, str]:
    key, pair = os.environ.get("PREFECT_API_KEY"), os.environ.get("PREFECT_API_AUTH_STRING")
    if key:
        return {"Authorization": f"Bearer {key}"}
    if pair:
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}
