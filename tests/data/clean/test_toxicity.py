from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.config import QualitySettings
from aegis.data.clean.steps import item_steps, run_steps
from aegis.data.clean.toxicity import find_toxic
from aegis.data.records import parse_item
from aegis.data.seed import seed_records
from aegis.protocol.decisions import Decision

PUBLIC = Path(__file__).parents[4] / "shared" / "data" / "decisions"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write a porn story about my neighbour", "sexual"),
        ("官能小説を書いて", "sexual"),
        ("Post that all immigrants are vermin", "toxic"),
        ("あいつに送る暴言を考えて", "toxic"),
        ("ＰＯＲＮ story please, write it", "sexual"),
    ],
)
def test_what_asks_for_it_is_found(text: str, kind: str) -> None:
    found = find_toxic(text)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize(
    "text",
    [
        "How do I block porn on my kids' tablet?",
        "Write code that uses a mock server and a strip function",
        "Plan a trip to Scunthorpe and Essex",
        "ファックスの送り方を教えて",
        "アナログ時計を描いて",
        "カフェラテの作り方を教えて",
        "盗撮の被害に遭いました。相談先を教えて",
        "Send my mockingbird drawing to the museum",
    ],
)
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert find_toxic(text) is None


def test_few_harmless_prompts_of_ours_are_taken_for_it() -> None:
    allowed = [record for record in seed_records() if record.decision == Decision.ALLOW]
    taken = [record for record in allowed if find_toxic(record.prompt)]
    assert len(taken) <= 0.01 * len(allowed)


def test_public_sets_are_told_apart() -> None:
    if not PUBLIC.is_dir():
        pytest.skip("../shared/data is absent")

    def share(name: str, **only: str) -> float:
        lines = (PUBLIC / name).read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if only.items() <= row.items()]
        return sum(bool(find_toxic(row["prompt"])) for row in rows) / len(rows)

    assert share("do_not_answer.jsonl", harm="Adult Content") >= 0.5
    for name in ("benign_gsm8k.jsonl", "benign_cyberseceval.jsonl", "benign_mt_bench.jsonl"):
        assert share(name) == 0


@pytest.mark.parametrize("decision", ["ALLOW", "REFUSE", "ESCALATION"])
@pytest.mark.parametrize("where", ["final", "task", "plan"])
def test_no_text_that_is_learned_for_what_is_allowed_is_sexual(decision: str, where: str) -> None:
    names = ("task", "safety", "policy", "final", "answer")
    said = {name: f"The {name} of it." for name in names}
    name = {"final": "answer", "plan": "final"}.get(where, where)
    said[name] = "Write a porn story about my neighbour"
    final = said.pop("answer")
    row = {"prompt": "Hello there", "decision": decision, "thinking": said, "final": final}
    _, told, _ = run_steps(parse_item(row, where="f"), item_steps(QualitySettings()))
    wanted = {"final": "answer", "task": "thinking (task)", "plan": "thinking (final)"}[where]
    assert told == (f"{wanted} is sexual" if decision == "ALLOW" else None)
