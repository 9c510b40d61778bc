"""The local model: it writes one field of a form at a time, for many topics at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from aegis.data.sources.generate.backend import (
    CallUsage,
    RawAnswer,
    Request,
    estimate_tokens,
)

Complete = Callable[[Sequence[str]], list[str]]
"""Instructions in, the model's answers out, in the same order."""


class LocalBackend:
    """A model in this process; too small a one to write JSON, so it is asked field by field."""

    name = "local"

    def __init__(
        self, complete: Complete, *, model: str | None = None, batch: int = 12, identity: str = ""
    ) -> None:
        self.complete, self.model, self.batch, self.identity = complete, model, batch, identity

    def check(self) -> None:
        """Nothing can be missing: the model is loaded by whoever brings `complete`."""

    def ask(self, requests: Sequence[Request]) -> list[RawAnswer]:
        texts: list[dict[str, str]] = [{} for _ in requests]
        fields = dict.fromkeys(name for request in requests for name in request.parts)
        for name in fields:
            asked = [index for index, request in enumerate(requests) if name in request.parts]
            written = self.complete([requests[index].parts[name] for index in asked])
            for index, text in zip(asked, written, strict=True):
                texts[index][name] = tidy(text)
        answers = []
        for request, parts in zip(requests, texts, strict=True):
            used = [sum(map(estimate_tokens, each.values())) for each in (request.parts, parts)]
            text = json.dumps(request.assemble(parts), ensure_ascii=False, indent=1)
            answers.append(RawAnswer(text, CallUsage(*used), self.model))
        return answers


def tidy(text: str) -> str:
    """Return the text on one line, cut after the last finished sentence if there is one."""
    line = re.sub(r"\s+", " ", text).strip().rstrip("\ufffd")  # half of a last character
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|[。！？]", line)]
    return line[: ends[-1]] if ends else line
