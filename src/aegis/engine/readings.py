"""The ways in which a prompt can be read. All are judged and the severest counts, so that no
disguise is weaker than what it hides."""

from __future__ import annotations

import base64
import codecs
import contextlib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis.model.calibration import probabilities
from aegis.protocol.crisis import is_crisis
from aegis.protocol.decisions import Decision
from aegis.protocol.spelling import hidden_text, letters_joined, readable

_MANY = 3  # statements before a request
_MOST_PARTS = 64
_RAISE = 3.0  # of a logit; P(ESCALATION) becomes 0.87 at least
# What people type for the look of it, and what it stands for.
_ORDINARY = str.maketrans({"…": "...", "\xa0": " ", "\u202f": " "})
_TYPOGRAPHY = re.compile(r"(?<![^\W_])[\ufe0f\u200d]+")
_ENDS = tuple("。？！?!.")

# Markers of turns, of any model: what stands between two of them is a message of its own.
_ROLE = r"(?:user|human|assistant|ai|bot|model|system|developer|instructions?|input|response)"
_MARKER = re.compile(
    rf"([<＜][|｜] ?(?:im_start|start_header_id)[^|｜<>\n]{{0,20}}[|｜][>＞] *{_ROLE}?"
    rf"|[<＜][|｜][^|｜<>\n]{{1,40}}[|｜][>＞]|</?s>|\[/?inst\]|<</?sys>>"
    rf"|<(?:start|end)_of_turn>(?: *{_ROLE}\b)?|[<\[]/?{_ROLE}[>\]]"
    rf"|^\W{{0,4}}(?:{_ROLE}|ユーザー|アシスタント|システム|指示)\W{{0,3}}[:：]|^#+ *{_ROLE} *$"
    r"|^Earlier in this conversation:|^The user now says:)",
    re.IGNORECASE | re.MULTILINE,
)
# Whose messages are not judged alone unless they ask for something.
_NOT_ASKING = re.compile(
    "assistant|bot|model|response|アシスタント|system|developer|instruction|システム|指示|^\\W*ai",
    re.I,
)

_LETTERS = r"[^\W\d_]"
_INSIDE = re.compile(
    rf"(?<={_LETTERS})[*_|~^·•\\=+\"#`]+(?={_LETTERS})|(?<=[a-z]{2})\.(?=[a-z]{2})", re.I
)
_TAG_INSIDE = re.compile(
    rf"(?<={_LETTERS})(?:<(?!/?(?:br|p|div|li|t[dr]|h\d)\b)[^<>\n]{{0,40}}>)+(?={_LETTERS})", re.I
)
_LONE_KANJI = re.compile(r"(?<![^\W_])([一-龯])[ \u3000～〜]([一-龯])")
_ADDRESS = re.compile(
    r"(https?://[!-~]+|www\.[!-~]+|(?<![\w.+-])[\w.+-]+@[\w.-]+"
    r"|(?<![\w.-])(?:[\w-]+\.){1,3}(?:com|org|net|edu|gov|io|dev|jp|uk|de|fr)(?![\w.])[!-~]*)",
    re.ASCII,
)
_SYLLABLES = re.compile(r"(?<![\w-])[A-Za-z][a-z]{0,2}(?:-[a-z]{1,3})+(?![\w-])")
_DRAWN_OUT = re.compile(r"([a-z])\1{3,}", re.I)
_LEET = str.maketrans("013457@$!", "oieastasi")
_LEET_WORD = re.compile(r"[a-z0-9@$!]+", re.I)
_MIXED = re.compile(r"(?=.*[a-z])(?=.*[013457@$])(?!\d+[a-z]{1,2}$)", re.I)
# Not W3C: among capitals it takes three letters.
_INNER_LEET = re.compile(
    r"[A-Za-z][013457@$!]{1,2}[a-z]|^[0134][A-Za-z]{4}"
    r"|^(?=(?:[^A-Z]*[A-Z]){3}).*?[A-Z][013457@$!]{1,2}[A-Z]"
)
_WORD = re.compile(r"\b[A-Za-z]{3,}\b")
_SENTENCE_START = re.compile(r"(?:^|[.!?]\s+)[a-z]|\bi\b", re.MULTILINE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}")
_from_base64 = functools.partial(base64.b64decode, altchars=b"-_")
_HEX = re.compile(r"(?:[0-9a-f]{2} ?){10,}", re.I)
_COMMON = re.compile(
    r"\b(?:the|how|to|what|make|of|and|for|is|you|can|my|do|with|in|me|a|that|it|from|any|where|i)\b",
    re.I,
)

_BULLET = re.compile(r"^[ \t]*(?:\(?\d{1,2}[.):]|[-*•・])[ \t]+", re.MULTILINE)
_SENTENCE = re.compile(
    r"(?<!Mr\.)(?<!Mrs\.)(?<!Ms\.)(?<!Dr\.)(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<=[.!?])\s+|(?<=[?？!！。♡])(?![\w.%-]{1,40}=)[\s\u3000]*|\n+"
)
_REQUEST = re.compile(
    r"[?？]\W*$|^\W*(?:\d+\W+)?(?:(?:and|then|also|now|next|finally|second|third|lastly|please|so"
    r"|but|ok|okay)[ ,]+)*(?:how|what|which|who|where|when|why|can|could|would|should|is|are|do"
    r"|does|did|write|give|tell|explain|list|show|draft|make|create|build|describe|help|find|plan"
    r"|translate|summari[sz]e|suggest|recommend|compare|teach|walk|name|provide|generate|compose|design|send"
    r"|calculate|fix|check|book|cancel|delete|let|step)\b"
    r"|(?:か|かな|の|教えて|ください|下さい|くれ|ほしい|欲しい|お願い(?:します)?|して|って|書いて|作って|いて"
    r"|えて|しろ|せよ|方法|やり方|作り方|仕方|とは|は)[。♡笑w！!\s]*$",
    re.IGNORECASE,
)

# A wish is a request of its own, and belongs to the request behind it, too.
_WISH = re.compile(
    r"^\W*i (?:really |just )?(?:want|need|wish|would like)\b|^\W*i'd like\b"
    r"|(?<!み)たい(?:です|んです|と思います)?[。♡笑w！!]*$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Readings:
    """The readings of several prompts in one row, each prompt's as written first.

    Args:
        owners: (readings,) the index of each one's prompt.
    """

    texts: list[str]
    owners: np.ndarray

    @classmethod
    def of(cls, prompts: Sequence[str]) -> Readings:
        groups = [readings(prompt) for prompt in prompts]
        owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return cls([text for group in groups for text in group], owners)

    @functools.cached_property
    def crises(self) -> frozenset[int]:
        """The prompts one reading of which is a crisis."""
        read = zip(self.owners.tolist(), self.texts, strict=True)
        return frozenset(owner for owner, text in read if is_crisis(text))

    def severest(self, logits: np.ndarray) -> np.ndarray:
        """Reduce (readings, 4) calibrated logits to (prompts, 4), each prompt's from the reading
        that decides: the severest decision, and of several with that one the least allowed. Where a
        reading is a crisis, it is the prompt as written, with ESCALATION raised above the rest."""
        chances = probabilities(logits)
        severity = chances.argmax(1) - chances[:, Decision.ALLOW]
        owners: list[int] = self.owners.tolist()
        best: dict[int, int] = {}
        for index, owner in enumerate(owners):
            if severity[index] > severity[best.setdefault(owner, index)]:
                best[owner] = index
        chosen = logits[list(best.values())]
        for owner in self.crises:
            chosen[owner] = logits[owners.index(owner)]
            chosen[owner, Decision.ESCALATION] = chosen[owner].max() + _RAISE
        return chosen

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sum (readings,) values over each prompt: (prompts,)."""
        return np.bincount(self.owners, weights=values)


def readings(prompt: str) -> list[str]:
    """Return the prompt as written, then what it says once its disguises are undone, then each
    request in it; of a plain, single request that is one."""
    plain = readable(prompt)
    messages = _MARKER.split(plain)  # every second one a marker
    messages[::2] = map(_spelled_but_addresses, messages[::2])
    layers = [plain, "".join(messages), hidden_text(prompt)]
    layers += [decoded for text in layers[:2] for decoded in _decoded(text)]
    layers = [text for text in layers if _typed(text) not in ("", _typed(prompt))]
    parts = [part for text in (prompt, *layers) for part in requests(text)]
    bare = [_MARKER.sub("\n", text).strip() for text in (prompt, *layers)]
    others = [text for text in (*bare, *parts) if text not in ("", prompt.strip())]
    return list(dict.fromkeys([prompt, *others]))


def requests(text: str) -> list[str]:
    """Return what can stand alone in a text: every message between markers of turns, of several
    requests each with the statements before it, and a request without them where they are many."""
    found: list[str] = []
    alone: list[str] = []
    marker, several, *others = "", False, *_MARKER.split(text)
    for message, following in zip(others[::2], [*others[1::2], ""], strict=True):
        statements: list[str] = []
        first, told = len(found), 0
        lines = _SENTENCE.split(_BULLET.sub("", message))
        for sentence in filter(None, map(str.strip, lines)):
            statements.append(sentence)
            if _REQUEST.search(sentence):
                found.append(" ".join(statements))
                if len(statements) > _MANY:
                    alone.append(sentence)
                statements, told = [], 0
            elif _WISH.search(sentence):
                found.append(" ".join(statements))
                statements, told = [sentence], 1
        if statements and len(found) > first:
            found[-1] = " ".join([found[-1], *statements[told:]])
        elif statements and _NOT_ASKING.search(marker):
            several = True
        elif statements:
            found.append(" ".join(statements))
        marker = following
    size = -(-len(found) // _MOST_PARTS) or 1
    joined = [" ".join(found[start : start + size]) for start in range(0, len(found), size)]
    return [*(joined if several or len(joined) > 1 else []), *alone[:_MOST_PARTS]]


def _typed(text: str) -> str:
    """Return the text without what people type for the look of it."""
    return _TYPOGRAPHY.sub("", text.translate(_ORDINARY)).strip()


def _spelled_but_addresses(text: str) -> str:
    parts = _ADDRESS.split(text)
    parts[::2] = map(_spelled, parts[::2])
    return "".join(parts)


def _spelled(text: str) -> str:
    """Join letters that stand apart, take marks out of words, undo leetspeak and odd case."""
    text = letters_joined(text)
    text = _LONE_KANJI.sub(r"\1\2", _INSIDE.sub("", _TAG_INSIDE.sub("", text)))
    text = _SYLLABLES.sub(lambda word: word[0].replace("-", ""), text)
    text = _DRAWN_OUT.sub(r"\1", text)
    leet = _LEET_WORD.findall(text)
    throughout = sum(map(bool, map(_MIXED.match, leet))) > 2 and any(map(_INNER_LEET.search, leet))
    text = _LEET_WORD.sub(
        lambda word: (
            word[0].translate(_LEET) if throughout or _INNER_LEET.search(word[0]) else word[0]
        ),
        text,
    )
    words = _WORD.findall(text)
    if 2 * sum(word[1:] != word[1:].lower() for word in words) > len(words):
        text = _SENTENCE_START.sub(lambda start: start[0].upper(), text.lower())
    return text


def _decoded(text: str) -> list[str]:
    """Return what is written in base64 or hexadecimal, and the text in rot13 or backwards where
    that reads as English."""
    found = []
    codes = [(_from_base64, code + "=" * (-len(code) % 4)) for code in _BASE64.findall(text)]
    for decode, code in (*codes, *((bytes.fromhex, code) for code in _HEX.findall(text))):
        with contextlib.suppress(ValueError):
            found.append(decode(code).decode())
    other_ways = (codecs.encode(text, "rot13"), text[::-1])
    common = len(_COMMON.findall(text))
    found += [way for way in other_ways if len(_COMMON.findall(way)) > 1 + 2 * common]
    if text[:1] in _ENDS:
        found.append(text[::-1])
    return [way for way in found if way.replace("\n", " ").isprintable()]
