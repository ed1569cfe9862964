"""Name a process so that a later one can tell whether it still lives."""

import json
import socket

SLACK_SECONDS = 1.0
"""A pid is used again after a while; a start time further off than this is another process."""


def owner() -> str:
    """Name this process: host, pid and start time, as JSON."""
    import psutil

    me = psutil.Process()
    return json.dumps([socket.gethostname(), me.pid, me.create_time()])


def is_dead(name: str | None) -> bool:
    """Tell whether the process of that name is known to be gone.

    Args:
        name: what `owner` returned once. Nobody's, and one of another machine, are not known to be dead.
    """
    import psutil

    try:
        host, pid, started = json.loads(name or "")
    except (ValueError, TypeError):
        return False
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        if abs(process.create_time() - float(started)) > SLACK_SECONDS:
            return True
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # ended, and only not yet collected by its parent
    except psutil.NoSuchProcess:
        return True
