"""The four decisions, their ids and their order of severity."""

from __future__ import annotations

from enum import IntEnum

from aegis.errors import DataError


class Decision(IntEnum):
    """What the model does with a request. The value is the class id and grows with severity."""

    ALLOW = 0
    ESCALATION = 1
    DENY = 2
    REFUSE = 3


NAMES: tuple[str, ...] = tuple(decision.name for decision in Decision)
TOKENS: tuple[str, ...] = tuple(f"<{name}>" for name in NAMES)
"""What a model writes first whose decision is in its weights."""
UNSAFE: frozenset[Decision] = frozenset({Decision.DENY, Decision.REFUSE})


def parse_decision(name: object, *, where: str) -> Decision:
    """Return the decision of this name; `where` (file and line, or field) opens the error message.

    Raises:
        DataError: if it is not exactly one of the four names.
    """
    if isinstance(name, str) and name in Decision.__members__:
        return Decision[name]
    if name is None:
        raise DataError(f"{where}: decision is missing; give one of {', '.join(NAMES)}")
    raise DataError(
        f"{where}: decision {name!r} is not one of {', '.join(NAMES)}; correct the name"
    )
