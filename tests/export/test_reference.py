from __future__ import annotations

from pathlib import Path

import torch

from aegis.export.certificate import probe_logits, probe_texts
from aegis.export.reference import Reference
from aegis.model.base import ModelFolder
from tests.export.conftest import FEW


def test_the_reference_reads_layer_by_layer_what_the_whole_model_gives(folded: Path) -> None:
    tokenizer = ModelFolder(folded).load_tokenizer()
    rows = [tokenizer(probe.text)["input_ids"][:128] for probe in probe_texts()[:FEW]]
    reference = Reference(folded, rows)
    whole = probe_logits(
        ModelFolder(folded).load_model(dtype=torch.float32), tokenizer, probe_texts()[:FEW]
    )
    for index, logits in enumerate(whole):
        with reference.head():
            found = reference.logits(index, slice(None))
        torch.testing.assert_close(found, logits, atol=2e-5, rtol=0)
