"""A chat of several turns as one prompt: the model was taught on single prompts, so earlier turns
become its opening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
_NAMES: dict[Role, str] = {"system": "instruction", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: Role
    text: str


def last_and_whole(turns: Sequence[Turn]) -> tuple[str, str]:
    """The last user message, and the whole chat as one prompt; both are judged, and the severest
    verdict counts.

    A chat of one user message is that message. The caller has checked that the last turn is the
    user's. Names of roles inside a message are words like others: all of it came from whoever asks.
    """
    *earlier, last = turns
    if not earlier:
        return last.text, last.text
    told = "\n".join(f"{_NAMES[turn.role]}: {turn.text}" for turn in earlier)
    return last.text, f"Earlier in this conversation:\n{told}\n\nThe user now says:\n{last.text}"
