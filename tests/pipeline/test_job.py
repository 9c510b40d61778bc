"""What opens a session, and what follows it; the stages themselves are run in tests/e2e."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest

from aegis.config import load_config, parse_config
from aegis.errors import ConfigError, DataError


def test_changing_what_tracks_does_not_start_a_run_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from aegis.pipeline import job

    found: list[str] = []
    monkeypatch.setattr(
        job,
        "open_session",
        lambda runs, config_fingerprint, **_: found.append(config_fingerprint),
    )
    for change in ({}, {"tracking": ["tensorboard", "mlflow"]}, {"seed": 1}):
        job._open(parse_config({"runs": str(tmp_path), **change}, where="t"), resume=True)
    assert found[0] == found[1] != found[2]


def test_the_settings_of_a_run_lie_in_its_folder(tmp_path: Path) -> None:
    from aegis.pipeline import job

    config = parse_config({"runs": str(tmp_path), "train": {"lr": 1e-7}}, where="t")
    session = job._open(config, resume=True)
    assert load_config(session.folder / "config.yaml") == config
    assert [stage.name for stage in session.stages] == [
        "deep_research_data",
        "data_cleansing",
        "so8t_ppo_training",
        "aegis_v2_integration",
    ]


def test_a_run_folder_that_was_moved_is_gone_on_with(tmp_path: Path) -> None:
    from aegis.pipeline import job

    def opened(runs: Path) -> str:
        return job._open(parse_config({"runs": str(runs)}, where="t"), resume=True).session_id

    begun = opened(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert opened(tmp_path / "there") == begun


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("runs", ["/proc", "/proc/x/y"])
def test_a_place_where_nothing_can_be_written_is_told(runs: str) -> None:
    from aegis.pipeline import job

    with pytest.raises(ConfigError, match=f"runs: '{runs}' cannot be written"):
        job._check(parse_config({"runs": runs}, where="t"))


@pytest.mark.parametrize(
    ("decisions", "topics", "message"),
    [
        (["REFUSE"] * 3, 0, r"at least two .* all 3 are REFUSE; add .*seed_records: true"),
        (["REFUSE"] * 3, 1, None),  # what is generated is of another decision
        (["REFUSE", "ALLOW"], 0, None),
    ],
)
def test_records_of_one_decision_begin_no_session(
    tmp_path: Path, base_folder: Path, decisions: list[str], topics: int, message: str | None
) -> None:
    from aegis.pipeline import job

    rows = [{"id": f"r{n}", "prompt": f"p{n}", "decision": d} for n, d in enumerate(decisions)]
    (tmp_path / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"seed_records": False, "records": [str(tmp_path / "own.jsonl")]}
    settings = {"base": str(base_folder), "runs": str(tmp_path / "runs")}
    config = parse_config(
        {**settings, "data": {**data, "generate": {"samples": topics}}}, where="t"
    )
    with pytest.raises(DataError, match=message) if message else contextlib.nullcontext():
        job._check(config)
    assert not (tmp_path / "runs").exists()
