"""What would happen to a stage, and why."""

from dataclasses import dataclass
from typing import Literal

from tasks.cache_check import Damage

Action = Literal["run", "maybe", "restore", "cached"]
"""run: will be executed. maybe: depends on what a stage before it produces. restore: DVC has the outputs of exactly
these inputs and will put them back. cached: nothing to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """One difference between a stage's record and the present."""

    kind: Literal["new", "command", "dependency", "parameter", "output", "upstream", "always", "forced", "frozen"]
    name: str
    """Path, parameter or stage that differs."""
    old: str | None = None
    new: str | None = None

    def __str__(self) -> str:
        """Write the reason for a person."""
        change = f"{self.old if self.old is not None else 'absent'} -> {self.new if self.new is not None else 'absent'}"
        return {
            "new": "has never run",
            "command": "its command in dvc.yaml changed",
            "dependency": f"{self.name} changed ({change})",
            "parameter": f"parameter {self.name} changed ({change})",
            "output": f"output {self.name} is {self.new}",
            "upstream": f"runs if {self.name} of {self.new} changes",
            "always": "runs every time (always_changed in dvc.yaml)",
            "forced": "asked for by --force",
            "frozen": "is frozen in dvc.yaml, so its dependencies are not looked at",
        }[self.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """What would happen to one stage, and why."""

    name: str
    action: Action
    reasons: tuple[Reason, ...] = ()
    damage: tuple[Damage, ...] = ()
    """Outputs that are not whole in DVC's cache, to be mended before the stage is looked at again."""
