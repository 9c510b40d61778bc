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
UNSAFE: frozenset[Decision] = frozenset({Decision.DENY, Decision.REFUSE})


def parse_decision(found: object, *, where: str) -> Decision:
    """Return the decision named by `found`; `where` (file and line, or field) opens the error
    message.

    Raises:
        DataError: if `found` is not exactly one of the four names.
    """
    if isinstance(found, str) and found in Decision.__members__:
        return Decision[found]
    raise DataError(
        f"{where}: decision {found!r} is not one of {', '.join(NAMES)}; correct the name"
    )
