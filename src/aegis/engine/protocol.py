"""What is asked of every engine: to decide, to think, to weigh continuations, to count tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aegis.engine.response_grammar import Sampling
from aegis.engine.verdict import Verdict
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking


@dataclass(frozen=True)
class ThinkingRequest:
    """One response to be written.

    Args:
        decision: what was decided about the prompt; the response knows it.
        cancelled: asked again and again from another thread; once true, nobody waits any more.
    """

    prompt: str = field(repr=False)
    decision: Decision
    sampling: Sampling
    cancelled: Callable[[], bool] = lambda: False


class Engine(Protocol):
    """A model that decides and thinks.

    `LocalThinker` runs it in the caller's thread, one call at a time. `TransformersEngine` and
    `LlamaCppEngine` take calls from many threads at once and batch them.

    Args:
        name: under which the model is served.
        context: tokens that the model reads, prompt and response together.
    """

    name: str
    context: int

    def judge(self, prompts: Sequence[str]) -> list[Verdict]:
        """Decide about each prompt, in their order.

        Raises:
            DataError: if a prompt is longer than the context.
            AegisError: if the model's numbers are not finite, or the engine is closed.
        """
        ...

    def think(self, requests: Sequence[ThinkingRequest]) -> list[Thinking | None]:
        """Write the responses, and return when all are whole. None where no usable one came out, or
        where it was cancelled.

        Raises:
            DataError: if a prompt leaves no room for its response.
            AegisError: if the engine is closed or gives up.
        """
        ...

    def continuations(self, context: str, choices: Sequence[str]) -> list[float]:
        """Return log P(choice | context) for each choice, the sum over its tokens. The context is
        read once for all.

        Raises:
            DataError: if the context and a choice are longer than the model reads.
            AegisError: if the engine is closed or gives up.
        """
        ...

    def prompt_tokens(self, prompt: str) -> int:
        """Count the tokens of a prompt as the model reads it, chat form included."""
        ...

    def close(self) -> None:
        """Let go of the model; what is still asked for raises AegisError."""
        ...
