from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aegis.errors import ModelError
from aegis.model.heads import DecisionHead, Pooling, pool
from aegis.model.prompt import pad

POOLINGS: tuple[Pooling, ...] = ("last", "mean", "last+mean")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_no_pooled_state(pooling: Pooling, left: bool) -> None:
    rows = [torch.randn(n, 8) for n in (3, 5, 1)]
    _, mask = pad([[7] * len(row) for row in rows], value=0, left=left)
    hidden = torch.full((3, 5, 8), 99.0)
    for number, row in enumerate(rows):
        hidden[number][mask[number].bool()] = row
    for number, row in enumerate(rows):
        alone = pool(row[None], torch.ones(1, len(row)).long(), pooling=pooling)
        torch.testing.assert_close(pool(hidden, mask, pooling=pooling)[number], alone[0])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_head_survives_saving(tmp_path: Path, pooling: Pooling) -> None:
    head = DecisionHead(16, pooling=pooling, system_prompt="静かに")
    torch.nn.init.normal_(head.linear.weight)
    head.save(tmp_path)
    again = DecisionHead.load(tmp_path)
    hidden, mask = torch.randn(2, 4, 16), torch.ones(2, 4).long()
    assert torch.equal(again(hidden, mask), head(hidden, mask))
    assert again.system_prompt == "静かに"


def test_a_damaged_head_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a readable decision head"):
        DecisionHead.load(tmp_path)
    (tmp_path / "decision_head.safetensors").write_bytes(b"\x08")
    with pytest.raises(ModelError, match="not a readable decision head"):
        DecisionHead.load(tmp_path)
