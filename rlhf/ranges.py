"""Range checks of configuration fields; every message names the field, its value and what was wanted."""

import math
from collections.abc import Collection


def require_above_zero(**fields: float) -> None:
    """Refuse numbers that are not above 0 and finite.

    Raises:
        ValueError: naming the first such field.
    """
    for name, value in fields.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, wanted a number above 0")


def require_at_least(minimum: float, **fields: float | None) -> None:
    """Refuse numbers below `minimum` and infinite ones; None passes, as a field that is switched off.

    Raises:
        ValueError: naming the first such field.
    """
    for name, value in fields.items():
        if value is not None and not (value >= minimum and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, wanted {minimum} or more")


def require_fraction(**fields: float) -> None:
    """Refuse numbers outside [0, 1].

    Raises:
        ValueError: naming the first such field.
    """
    for name, value in fields.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, wanted a number from 0 to 1")


def require_choice(choices: Collection[str], **fields: str) -> None:
    """Refuse texts that are not among `choices`.

    Raises:
        ValueError: naming the first such field.
    """
    for name, value in fields.items():
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, wanted one of {', '.join(choices)}")
