"""How good the texts of an item are: rules that set it aside, and a score of which each part can be
shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from aegis.config import QualitySettings
from aegis.data.clean.texts import normalise, repetition
from aegis.data.records import Item, Pair, Plain
from aegis.protocol.language import detect_language
from aegis.protocol.thinking import Thinking

# Neither ASCII, Latin letters, marks and signs, kana, kanji, full width, nor emoji.
_ODD = re.compile(
    "[^\0-\u024f\u02b0-\u036f\u1e00-\u27bf\u2900-\u2bff\u3000-\u30ff\u3190-\u9fff\uf900-\ufaff"
    "\ufe00-\ufe0f\ufe30-\ufe4f\uff00-\uffef\U0001f000-\U0003ffff]"
)
_LONG = 31
_LONG_WORD = re.compile(rf"[A-Za-z0-9+=]{{{_LONG},}}")
_ENOUGH = 40


def texts_of(item: Item) -> dict[str, str]:
    """Return the item's texts by name; of a pair, those of both sides."""
    if isinstance(item, Plain):
        return {"text": item.text} | ({"response": item.response} if item.response else {})
    texts = {"prompt": item.prompt}
    if isinstance(item, Pair):
        for name, side in (("chosen", item.chosen), ("rejected", item.rejected)):
            texts |= {f"{name} {part}": text for part, text in _parts(side.thinking).items()}
    elif item.thinking:
        texts |= _parts(item.thinking)
    return texts


def problem_of(item: Item, settings: QualitySettings) -> str | None:
    """Return why the item is not good enough, or None."""
    if not isinstance(item, Pair):
        return _problem(texts_of(item), item.language, settings)
    for side in (item.chosen, item.rejected):
        texts = {"prompt": item.prompt, **_parts(side.thinking)}
        if problem := _problem(texts, item.language, settings):
            return problem
    return None


def score(item: Item) -> dict[str, float]:
    """Return parts between 0 and 1 of which each is 1 for ordinary text, and `score`, their
    product.

    repetition: what of the texts is not said again and again. letters: enough letters and digits
    among the signs. signs: few that neither language uses. words: none too long to be one.
    variety: more than a few different letters. language: the thinking's letters are the prompt's
    language's. sections: the thinking's sections do not say the same.
    """
    texts = texts_of(item)
    whole = "\n".join(texts.values())
    visible = max(1, len(whole) - whole.count(" ") - whole.count("\n"))
    letters = sum(map(str.isalnum, whole)) / visible
    odd = 0 if whole.isascii() else len(_ODD.findall(whole))
    parts = {
        "repetition": min(map(_fresh, texts.values())),
        "letters": min(1.0, letters / 0.5),
        "signs": _falling(odd / visible, 0.05, 0.3),
        "words": _falling(_share_of_long_words(whole), 0.02, 0.3) if whole.isascii() else 1.0,
        "variety": min(1.0, len(set(normalise(whole))) / min(8, max(2, len(whole) // 2))),
    }
    if len(texts) > 1 and not isinstance(item, Plain):
        sections = [text for name, text in texts.items() if name != "prompt"]
        private = [text for name, text in texts.items() if not name.endswith(("prompt", "answer"))]
        parts["language"] = _in_language(private, item.language)
        parts["sections"] = len({normalise(text) for text in sections}) / len(sections)
        if isinstance(item, Pair):
            parts["sections"] = 1.0  # the two sides may share what both have right
    parts["score"] = math.prod(parts.values())
    return {name: round(value, 3) for name, value in parts.items()}


def _parts(thinking: Thinking) -> dict[str, str]:
    return {name: text.reveal() for name, text in thinking.bodies().items()} | {
        "answer": thinking.public
    }


def _problem(texts: Mapping[str, str], language: str, settings: QualitySettings) -> str | None:
    for name, text in texts.items():
        if len(text) < settings.min_characters:
            return f"{name} shorter than {settings.min_characters} characters"
        if len(text) > settings.max_characters:
            return f"{name} longer than {settings.max_characters} characters"
        if repetition(text) > settings.max_repetition:
            return f"{name} repeats itself"
        thought = name not in ("prompt", "text", "response")
        if thought and language == "ja" and detect_language(text) != "ja":
            return f"{name} is not Japanese"
        if "\ufffd" in text:
            return f"{name} holds broken characters"
    seen: dict[str, str] = {}
    for name, text in texts.items():
        if (first := seen.setdefault(normalise(text), name)) != name:
            return f"{name} only repeats the {first}"
    return None


def _fresh(text: str) -> float:
    """Return 1 for prose, and less from a third of repeated windows on."""
    return _falling(repetition(text), 0.33, 0.83) if len(text) >= _ENOUGH else 1.0


def _share_of_long_words(text: str) -> float:
    if max(map(len, text.split()), default=0) < _LONG:
        return 0.0
    return sum(map(len, _LONG_WORD.findall(text))) / max(1, len(text))


def _in_language(texts: list[str], language: str) -> float:
    """Return the share of texts, by length, that have letters of the language."""
    total = sum(map(len, texts))
    return sum(len(text) for text in texts if detect_language(text) == language) / max(1, total)


def _falling(value: float, good: float, bad: float) -> float:
    """Return 1 up to `good`, 0 from `bad` on, and what lies between on a line."""
    return min(1.0, max(0.0, (bad - value) / (bad - good)))
