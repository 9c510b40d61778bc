from __future__ import annotations

import json
import math
import re
import runpy
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from aegis.config import GateSettings, ModelSettings
from aegis.engine.judge import Judge
from aegis.engine.local_thinker import LocalThinker
from aegis.engine.protocol import ThinkingRequest
from aegis.engine.response_grammar import Limits, Sampling
from aegis.export.fold import fold_in_place
from aegis.model.adapted import attach
from aegis.model.tags import known_tags
from aegis.model.token_head import read_metadata
from aegis.protocol.decisions import Decision
from tests.conftest import ARCHITECTURES, tiny_model
from tests.model.test_adapted import IDS, randomised


@torch.no_grad()
@pytest.mark.parametrize("mode", ["geodesic", "additive"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma2"])
def test_attaching_changes_no_bit_and_folding_changes_nothing_more(
    architecture: str, mode: Literal["geodesic", "additive"]
) -> None:
    settings = ModelSettings(gates=GateSettings(mode=mode))
    model = tiny_model(architecture, tie_word_embeddings=True)
    before = model(input_ids=IDS).logits
    adapted = attach(model, settings)
    adapted.set_alpha(-math.inf)
    for gate in adapted.all_gates():  # closed, whatever its generators
        torch.nn.init.normal_(gate.generators)
    assert torch.equal(model(input_ids=IDS).logits, before)
    adapted = randomised(tiny_model(architecture, tie_word_embeddings=True), settings)
    live = adapted.base(input_ids=IDS).logits
    assert float((live - before).abs().max()) > 1e-2
    folded = fold_in_place(adapted)
    after = folded(input_ids=IDS).logits
    torch.testing.assert_close(after, live, atol=2e-4, rtol=0)
    assert not any("lora" in name for name, _ in folded.named_parameters())


def test_a_folder_whose_weights_decide_needs_no_head(deciding: Path) -> None:
    assert not list(deciding.glob("decision_*"))
    certificate = json.loads((deciding / "certificate.json").read_text())
    decisions = certificate["decisions"]
    assert decisions["prompts"] == certificate["probes"]
    assert decisions["max_abs_probability_difference"] < 1e-4
    assert decisions["same_decision"] == 1.0
    assert read_metadata(deciding)["decision"]["system_prompt"] == "Be careful."
    prompts = ["How are you?", "何をすればいい？", "x"]
    live = LocalThinker.load(deciding.parent / "adapter").judge(prompts)
    judge = Judge.load(deciding)
    model, tokenizer = judge.model, judge.tokenizer
    for prompt, verdict, other in zip(prompts, judge.judge(prompts), live, strict=True):
        assert verdict.probabilities == pytest.approx(other.probabilities, abs=0.1)  # bfloat16
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            last = model(ids).logits[0, -1, list(known_tags(tokenizer).decisions)]
        assert verdict.probabilities == pytest.approx(last.softmax(-1).tolist(), abs=0.02)
    tags = {tag_id for pair in known_tags(tokenizer).pairs for tag_id in pair}
    assert tags < set(model.generation_config.eos_token_id)
    thinking = ThinkingRequest("Hi", Decision.ALLOW, Sampling(Limits(4, 4)))
    assert LocalThinker.load(deciding).think([thinking])[0]


@pytest.mark.parametrize("prompt", ["Hello", "何？", "x", "Who?", "Yes"])
def test_transformers_alone_decide_and_answer(
    prompt: str, deciding: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).parents[2] / "examples" / "plain_transformers.py"
    imported = set(re.findall(r"^(?:import|from) (\w+)", script.read_text("utf-8"), re.MULTILINE))
    assert imported == {"sys", "torch", "transformers"}
    monkeypatch.setattr(sys, "argv", [str(script), str(deciding), prompt])
    runpy.run_path(str(script))
    decision, chances, *answer = capsys.readouterr().out.splitlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aegis.model.device.bfloat16_is_fast", lambda: False)
        (verdict,) = Judge.load(deciding).judge([prompt])
    assert decision == verdict.decision.name
    expected = pytest.approx(verdict.probabilities, abs=1e-3)
    assert list(map(float, chances.split())) == expected
    assert bool(answer) == (decision == "ALLOW")
    assert not re.search("</?(think|final)", "".join(answer))
