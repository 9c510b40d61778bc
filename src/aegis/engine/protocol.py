"""What the server asks of an engine: decide about prompts, think about one, count tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aegis.engine.judge import Verdict
from aegis.engine.response_sampler import Limits
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import Thinking


class Engine(Protocol):
    """A model that decides and thinks. Every method may be called from many threads at once.

    Args:
        name: `hf` or `gguf`.
        model: the name under which the model is served.
        context: tokens that the model reads, prompt and response together.
    """

    name: str
    model: str
    context: int

    def decide(self, prompts: Sequence[str]) -> list[Verdict]:
        """A verdict a prompt, in their order; blocks until they are there."""
        ...

    def think(
        self,
        prompt: str,
        decision: Decision,
        *,
        limits: Limits,
        temperature: float,
        seed: int,
        cancelled: Callable[[], bool],
    ) -> Thinking | None:
        """One response that knows the decision; blocks until it is whole. None where no usable one
        came out, or once `cancelled` is true."""
        ...

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens of the prompt as the model reads it, chat form included."""
        ...

    def close(self) -> None:
        """Let go of the model; what is still asked comes back empty or raises."""
        ...


def forget_words(tokenizer: Any) -> None:
    """From now on the tokenizer keeps nothing of what it reads.

    tokenizers remembers the pieces of up to 10,000 words in every thread that reads, which is 4 MB
    a thread once as many were met, and each request's canary is a new word. Without that memory a
    prompt takes as long (docs/experiments.md).
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    resize = getattr(model, "_resize_cache", None)  # not every kind of model has such a memory
    if resize:
        resize(0)
