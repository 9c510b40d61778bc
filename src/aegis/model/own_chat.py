"""How a base is asked without AEGIS: in its own chat, or behind examples where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aegis.model.prompt import PLAIN_TEMPLATE, PromptEncoder
from aegis.protocol.language import detect_language

_EXAMPLES = {
    "en": (
        ("Name the largest planet.", "Jupiter is the largest planet."),
        ("How do I keep bread fresh?", "Keep it in a paper bag, away from the sun."),
        ("What is seven times six?", "Seven times six is forty-two."),
        ("Give me a word that rhymes with day.", "Play rhymes with day."),
    ),
    "ja": (
        ("一番大きい惑星は？", "一番大きい惑星は木星です。"),
        ("パンを長持ちさせるには？", "紙袋に入れて、日の当たらない涼しい所に置きます。"),
        ("七かける六は？", "七かける六は四十二です。"),
        ("「朝」から始まる言葉を一つ。", "朝顔です。"),
    ),
}
_QUESTION, _BREAK = "### User:\n", "\n\n"


class OwnChat:
    """A base's own way of being asked.

    A base that was only pretrained repeats the question, or asks the next one itself; behind a few
    questions with their answers it shows what it knows (Brown et al., Language Models are Few-Shot
    Learners, 2020), and an empty line ends its answer.

    Args:
        tokenizer: as `ModelFolder.load_tokenizer` gives it, with a template in any case.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = PromptEncoder(tokenizer)  # one for all: it lists the tokenizer's markers
        self.by_examples: bool = (tokenizer.chat_template or "").endswith(PLAIN_TEMPLATE)
        self.stops = [_BREAK] if self.by_examples else []

    def ids(self, prompt: str) -> list[int]:
        """Return the token ids up to where the base starts to answer."""
        if not self.by_examples:
            return self.encoder.ids(prompt)
        text, _ = self.encoder.text(prompt)
        start = text.index(_QUESTION)
        shown = "".join(
            f"{_QUESTION}{question}{_BREAK}### Assistant:\n{answer}{_BREAK}"
            for question, answer in _EXAMPLES[detect_language(prompt)]
        )
        whole = text[:start] + shown + text[start:]
        return list(self.tokenizer(whole, add_special_tokens=False)["input_ids"])

    def stopping(self) -> dict[str, Any]:
        """Return what `generate` is told of where an answer ends."""
        return {"stop_strings": self.stops, "tokenizer": self.tokenizer} if self.stops else {}

    def length(self, ids: Sequence[int]) -> int | None:
        """Return how many of the ids are the answer, where an empty line ends it; None where none
        does. A token that holds the line's beginning is not counted."""
        if not self.by_examples or _BREAK not in self.tokenizer.decode(ids):
            return None
        counts = range(1, len(ids) + 1)
        return next(n - 1 for n in counts if _BREAK in self.tokenizer.decode(ids[:n]))
