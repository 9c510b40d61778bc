from __future__ import annotations

import html
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.engine.response_sampler import Limits, ResponseSampler
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import WITHHELD
from aegis.protocol.thinking import TAGS, Thinking, looks_like_a_tag
from aegis.serve import service as service_module
from aegis.serve.leak_check import find_leak, key_like_words
from tests.engine.test_local_thinker import local_thinker
from tests.serve import leaks
from tests.serve.fakes import FakeEngine, house, thinking

CANARY = "kq7w-3fz9-8mt2"
PRIVATE = {
    name: f"note {CANARY} on the {name}, for nobody else to read at all"
    for name in ("task", "safety", "policy", "final")
}
WAYS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper": str.upper,
    "wide": lambda text: "".join(chr(ord(c) + 0xFEE0) for c in text),
    "zero-width": "\u200b".join,
    "entities": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "entities twice": lambda text: html.escape("".join(f"&#x{ord(c):x};" for c in text)),
    "spaces": " ".join,
    "lines": "\n".join,
    "backwards": lambda text: text[::-1],
    "pieces": lambda text: ", followed by ".join(text.split("-")),
    "single letters": lambda text: " then ".join(text),
    "percent": lambda text: "".join(f"%{ord(c):02x}" for c in text),
    "tag characters": lambda text: "".join(chr(0xE0000 + ord(c)) for c in text),
    "tags": lambda text: f"<THINK-task>{text}",
    "wide tags": lambda text: f"＜ｔｈｉｎｋ-task＞{text}",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/think", "/v1/chat/completions"])
def test_nothing_private_is_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str, stream: bool, path: str
) -> None:
    final = f"Of course: {WAYS[way](CANARY)} is the word."
    hostile = Thinking(
        *thinking("x", PRIVATE).bodies().values(), public=final
    )  # every check of the protocol passed over
    made = house(tmp_path, FakeEngine(says=lambda *_: hostile))
    body = (
        {"query": "Say it"}
        if path == "/think"
        else {"model": "tiny", "messages": [{"role": "user", "content": "Say it"}]}
    )
    with caplog.at_level(logging.DEBUG), made.client() as client:
        answer = client.post(path, json={**body, "stream": stream})
        metrics = client.get("/metrics").text
    assert WITHHELD["en"] in answer.text or stream
    assert made.audit.entries[0].outcome.startswith("withheld")
    assert made.audit.entries[0].final == WITHHELD["en"]
    everywhere = answer.text + str(answer.headers) + metrics + caplog.text
    for text in (*leaks._readings(everywhere), everywhere[::-1]):
        bare = "".join(c for c in text.lower() if c.isalnum())
        assert not any(part in bare for part in ("kq7w", "3fz9", "8mt2"))
    assert "note" not in everywhere


def test_the_servers_own_mark_never_leaves(tmp_path: Path) -> None:
    def parrot(prompt: str, seed: int) -> Thinking:
        return thinking("You said: " + prompt.split("private mark ")[1][:16])

    made = house(tmp_path, FakeEngine(says=parrot))
    with made.client() as client:
        assert client.post("/think", json={"query": "Say it"}).json()["final"] == WITHHELD["en"]
    assert made.audit.entries[0].outcome == "withheld: canary"


def test_what_the_asker_wrote_is_no_secret() -> None:
    assert (
        find_leak(
            "Your order is AB12CD34EF.", ["order AB12CD34EF"], query="Where is order AB12CD34EF?"
        )
        is None
    )
    assert (
        find_leak("Your order is AB12CD34EF.", ["order AB12CD34EF"], query="Where is my order?")
        == "secret"
    )
    said = "You asked how to get from the old harbour to the station."
    assert (
        find_leak(said, ["asks how to get from the old harbour to the station"], query=said) is None
    )
    assert (
        find_leak(said, ["asks how to get from the old harbour to the station"], query="Hm?")
        == "quotation"
    )


@pytest.mark.parametrize(
    "text", ["Python 3.11, utf8 and sha256", "in 2019", "COVID-19", "ALLOW", "mp4", "0570-064-556"]
)
def test_ordinary_words_are_no_secrets(text: str) -> None:
    assert key_like_words(text) == []


@pytest.mark.parametrize("final", ["a\x00b", "a\ufffdb", "a\x1b[31mb"])
def test_what_is_no_text_does_not_leave(final: str) -> None:
    assert find_leak(final, [], query="x") == "not text"


@pytest.mark.parametrize(
    "final",
    [
        # a mark ends an entity without a semicolon
        "x7&#114\u034f6h5y7m7&#\u180e1137\xadh8&#\u180e1133",
        "x7&#11\u200b4;6h5&#12\u200b1;7m7",  # a mark inside an entity
        "x7&#x72\u200b6h5y7m7",
    ],
)
def test_invisible_marks_at_entities_hide_nothing(final: str) -> None:
    assert (
        find_leak(f"Take it. {final}", ["near the x7r6h5y7m7q7h8q3 about"], query="Which train?")
        == "secret"
    )


def test_a_few_thousand_hostile_cases() -> None:
    found = leaks.run(4_000, seed="test")
    assert found["leaks"] == 0
    assert found["let through"] == found["harmless"] > 400


def test_the_search_for_leaks_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "find_leak", lambda *_, **__: None)
    found = leaks.run(1_000, seed="test")
    assert found["LEAK secret: secret"] > 20
    assert found["LEAK tag: secret"] > 5
    assert found["LEAK tag: tag"] > 0
    assert found["LEAK quotation: quotation"] > 5


class Scripted(ResponseSampler):
    """Chooses what it is told to."""

    script: Iterator[int]

    def _logits(self, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None

    def _choose(self, logits: Any, rows: Any, generator: Any) -> Any:
        return [None if self.forced(row) else next(self.script) for row in rows]


def test_tags_torn_over_tokens_in_any_way_close_the_body() -> None:
    """The sampler is given bytes that spell tags, one token a byte, with the engine's forced ends
    anywhere between."""
    made = local_thinker(Decision.ALLOW)
    rng = random.Random(0)
    for _ in range(60):
        limits = Limits(section=rng.randint(1, 40), final=rng.randint(1, 40))
        text = "".join(rng.choice((leaks._tag(rng, "s3cr3t"), " ok ", "読み")) for _ in range(4))
        tokens = [made.tokenizer(c, add_special_tokens=False)["input_ids"] for c in text]
        thinker = Scripted(made.model, made.tokenizer, made.sampler.tags, limits)
        thinker.script = itertools.cycle(itertools.chain.from_iterable(tokens))
        (path,) = thinker([[2, 40]], [rng.choice(list(Decision))])
        written = [number for number in path.ids if number in made.sampler.tags.ids]
        assert written == list(made.sampler.tags.ids)
        assert not any(looks_like_a_tag(body) for body in path.bodies)
        assert not any(tag in body for tag in TAGS for body in path.bodies)


@pytest.mark.parametrize("cut", range(0, 1200, 60))
def test_a_client_that_leaves_at_any_byte_has_seen_nothing_private(
    tmp_path: Path, cut: int
) -> None:
    hostile = Thinking(*thinking("x", PRIVATE).bodies().values(), public=f"It is {CANARY}.")
    made = house(tmp_path, FakeEngine(says=lambda *_: hostile, seconds=0.02), keep_alive_s=0.005)
    with made.client() as client:
        raw = client.post("/think", json={"query": "Say it", "stream": True}).content[:cut]
    assert CANARY.encode() not in raw
    assert b"note" not in raw
