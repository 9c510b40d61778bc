"""What a backend is asked, and what comes back: an answer, or a reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aegis.data.personal import mask_personal_data
from aegis.errors import EXIT_RESUMABLE, AegisError

_MOST_TOKENS = 10**12


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: one a Japanese character, else one for four."""
    wide = sum(character > "\u2e7f" for character in text)
    return wide + (len(text) - wide + 3) // 4


def told_count(told: Any, name: str) -> int | None:
    """Return a number of tokens out of what a backend tells, if it is one."""
    value = told.get(name) if isinstance(told, dict) else None
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def storable(text: str) -> str:
    """Return the text without halves of characters, which neither files nor programs take."""
    return text.encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Request:
    """One question to a backend; what comes back should be a JSON object of `schema`.

    Args:
        parts: for a backend that writes plain text only: what to ask for each field that
            `assemble` needs. Empty where nothing needs to be asked.
        assemble: makes the JSON object of those fields' texts.
    """

    step: str
    topic: str
    prompt: str
    schema: Mapping[str, Any]
    parts: Mapping[str, str] = field(default_factory=dict)
    assemble: Callable[[Mapping[str, str]], Mapping[str, Any]] = dict


@dataclass(frozen=True)
class CallUsage:
    """What a call used; None where nobody told."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    """US dollars, where the backend says so itself."""


@dataclass(frozen=True)
class RawAnswer:
    """A raw answer.

    Args:
        cut: it ends at a limit on its length.
    """

    text: str
    usage: CallUsage = CallUsage()
    model: str | None = None
    cut: bool = False


class CallError(Exception):
    """A call brought no answer.

    Args:
        reason: in words that are shown: personal data and secrets in them are masked.
        again: whether the same call may bring one later.
        wait_s: how long the backend asks to wait before that.
        usage: what was billed nevertheless; None for a call that was broken off, so that it may be
            all of it.
        raw: what did come back, for the ledger.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = True,
        wait_s: float | None = None,
        usage: CallUsage | None = CallUsage(),
        raw: str = "",
    ) -> None:
        super().__init__(mask_personal_data(storable(reason))[0])
        self.again, self.wait_s, self.usage, self.raw = again, wait_s, usage, storable(raw)


class AccessError(CallError):
    """Nobody is logged in, or the key is refused: no other call will go better."""

    def __init__(self, reason: str, *, raw: str = "") -> None:
        super().__init__(reason, again=False, raw=raw)


class BackendDownError(AegisError):
    """The backend has stopped answering; the same command goes on when it answers again."""

    exit_code = EXIT_RESUMABLE


class Backend(Protocol):
    """Whoever writes.

    Attributes:
        name: as in `--backend`.
        model: as the user named it, if so.
        batch: how many requests it takes at a time.
        identity: what an answer depends on beside the prompt; answers of another identity are not
            taken for its own.
    """

    name: str
    model: str | None
    batch: int
    identity: str

    def check(self) -> None:
        """Raise BadInputError if a program, key or login is missing. No call is made."""
        ...

    def ask(self, requests: Sequence[Request]) -> list[RawAnswer]:
        """Return an answer to each request, at most `batch` of them.

        Raises:
            CallError: if there is none.
        """
        ...
