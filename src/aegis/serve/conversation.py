"""A chat of several turns as one prompt: the model was taught on single prompts, so earlier turns
become its opening."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aegis.protocol.fixed_texts import is_fixed_text

Role = Literal["system", "user", "assistant"]
_NAMES: dict[Role, str] = {"system": "instruction", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: Role
    text: str


def last_and_whole(turns: Sequence[Turn]) -> tuple[str, str]:
    """Return the last message, which is the user's, and the whole chat as one prompt.

    A chat of one message is that message. Names of roles inside a message are words like others:
    all of it came from whoever asks. What was answered with a fixed text is over, and left out
    with its answer: it would decide about every later question. Only a crisis goes on.
    """
    *earlier, last = turns
    closed = {n for n, turn in enumerate(earlier) if _closes(turn)}
    earlier = [turn for n, turn in enumerate(earlier) if not {n, n + 1} & closed]
    if not earlier:
        return last.text, last.text
    opening = "\n".join(f"{_NAMES[turn.role]}: {turn.text}" for turn in earlier)
    return last.text, f"Earlier in this conversation:\n{opening}\n\nThe user now says:\n{last.text}"


def _closes(turn: Turn) -> bool:
    return turn.role == "assistant" and is_fixed_text(turn.text)
