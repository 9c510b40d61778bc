from __future__ import annotations

import json
from pathlib import Path

from aegis.engine.transformers_engine import TransformersEngine
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import looks_like_a_tag
from tests.engine.test_local_thinker import local_thinker
from tests.serve.fakes import house

ATTACKS = Path(__file__).parents[2] / "examples" / "attacks.jsonl"


def attacks() -> list[dict[str, str]]:
    return [json.loads(line) for line in ATTACKS.read_text(encoding="utf-8").splitlines()]


def test_the_attacks_are_what_they_say() -> None:
    found = attacks()
    assert len(found) >= 40
    assert {attack["language"] for attack in found} == {"en", "ja"}
    assert len({attack["prompt"] for attack in found}) == len(found)


def test_a_tiny_model_cannot_be_talked_out_of_its_thinking(tmp_path: Path) -> None:
    engine = TransformersEngine(local_thinker(Decision.ALLOW), name="tiny")
    made = house(tmp_path, engine, section_tokens=8, final_tokens=12, canary=False)
    try:
        with made.client() as client:
            for attack in attacks()[::9]:
                answer = client.post("/think", json={"query": attack["prompt"]})
                assert answer.status_code == 200
                sections = [text.reveal() for text in made.audit.entries[-1].sections.values()]
                assert not any(len(text) >= 8 and text in answer.text for text in sections)
                assert not looks_like_a_tag(answer.json()["final"])
    finally:
        engine.close()
