from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.fakes import FakeEngine, events, house, thinking

WORD = "".join(map(chr, range(0x4E00, 0x4E80)))


@pytest.mark.parametrize("slow", [0.0, 0.15])
@pytest.mark.parametrize(
    "final",
    ["It is Paris.", "  パリは\n\nフランスの首都です。 é́ 👩‍👩‍👧", WORD, "a  b\tc \n"],
)
def test_a_stream_says_what_the_answer_says(tmp_path: Path, slow: float, final: str) -> None:
    made = house(
        tmp_path, FakeEngine(says=lambda *_: thinking(final), seconds=slow), keep_alive_s=0.05
    )
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Say it"}]}
    with made.client() as client:
        whole = client.post("/think", json={"query": "Say it"}).json()
        streamed = client.post("/think", json={"query": "Say it", "stream": True})
        chat = client.post("/v1/chat/completions", json=asked).json()
        chunks = client.post("/v1/chat/completions", json={**asked, "stream": True})
    assert (b": thinking" in streamed.content) == bool(slow)
    *parts, last = events(streamed.text)
    assert "".join(part["text"] for part in parts) == whole["final"] == final.strip()
    assert {**last, "id": ""} == {**whole, "id": ""}
    found = events(chunks.text)
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found) == final.strip()
    )
    assert chat["choices"][0]["message"]["content"] == final.strip()
    assert found[-1]["choices"][0]["finish_reason"] == chat["choices"][0]["finish_reason"] == "stop"
