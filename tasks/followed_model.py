"""The model behind a reference such as policy@champion, exchanged in memory when the alias moves."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import BadInput, StageFailed
from tasks.answering import Answerer
from tasks.mlflow_store import StoreUnreachable
from tasks.registry import version
from tasks.registry_config import load_registry_config
from tasks.weights import registered_weights, resolve_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in memory, and which one it is."""

    answerer: Answerer
    name: str
    """The version, such as policy/3; a stage or folder where none is meant."""
    fingerprint: str
    """First digits of the hash of its weights; "" where they are of no version."""
    since: float
    """Seconds since 1970."""


class FollowedModel:
    """Holds the model that a reference means now.

    An alias is looked up again every few seconds. A new version is loaded beside the old one, which goes on answering
    until the exchange; answers that are under way end with the model that began them. When the registry cannot be
    reached, or the new weights cannot be had, the old model stays, and `problem` says why.
    """

    def __init__(self, root: Path, reference: str) -> None:
        """Load it.

        Args:
            root: the project's root.
            reference: a registered policy version by number or alias, a stage, or a model folder.

        Raises:
            BadInput: nothing goes by that name, or it is no policy.
            StoreUnreachable: a registered version is meant and MLflow is down.
        """
        self._root, self.reference = root, reference
        self.on_change: Callable[[Loaded], None] = lambda _: None
        """Called after each exchange, from the thread that looks."""
        self.follows = "@" in reference
        self.problem: str | None = None
        self.current = self._load(self._meant())
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, every: float) -> None:
        """Look the alias up every so many seconds, in a thread of its own, until `stop`."""
        if self.follows:
            self._thread = threading.Thread(target=self._follow, args=(every,), name="alias", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> bool:
        """Look the alias up once; returns whether the model was exchanged."""
        try:
            meant = self._meant()
            if meant is None or meant[0] == self.current.name:
                self.problem = None
                return False
            loaded = self._load(meant)
        except (BadInput, StageFailed, StoreUnreachable) as error:
            if self.problem is None:
                log.warning("still serving %s: %s", self.current.name, error)
            self.problem = str(error)
            return False
        before, self.current, self.problem = self.current.name, loaded, None
        log.info("%s is %s now, it was %s", self.reference, loaded.name, before)
        self.on_change(loaded)
        return True

    def _follow(self, every: float) -> None:
        while not self._over.wait(every):
            self.look()

    def _meant(self) -> tuple[str, str, str] | None:
        """Model, number and hash of the version that is meant; None for a stage or folder."""
        config = load_registry_config(self._root)
        head = self.reference.partition("@")[0].partition("/")[0]
        if head not in (config.policy, config.policy.removeprefix(config.prefix)):
            if self.follows:
                raise BadInput(f"{self.reference}: only policies are served; wanted {config.policy}@ALIAS")
            return None
        found = version(self._root, self.reference)
        return found.reference, found.version, found.output_md5

    def _load(self, meant: tuple[str, str, str] | None) -> Loaded:
        if meant is None:
            folder, name, md5 = resolve_weights(self.reference, self._root), self.reference, ""
        else:
            name, number, md5 = meant
            folder = registered_weights(self._root, name.rpartition("/")[0], number=number)
        if (folder / "reward.json").is_file():
            raise BadInput(f"{self.reference}: this is a reward model, which gives no answers; name a policy")
        return Loaded(answerer=Answerer(folder), name=name, fingerprint=md5[:12], since=time.time())
