from __future__ import annotations

import pytest

from aegis.runs import reporter as progress


def test_piped_output_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 45))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("training", 10, done=2) as advance:
        for step in range(3):
            advance(note=f"loss {step}")
    assert capsys.readouterr().err == "training 4/10, 4:30 left loss 1\n"
