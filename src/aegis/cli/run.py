"""aegis run: the whole job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.cli.options import AutoResume, ConfigFile, Overrides


def run(
    config: ConfigFile,
    set_: Overrides = None,
    auto_resume: AutoResume = True,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad",
            help="Set bad lines of data files aside in rejected.jsonl instead of stopping.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the session record as JSON.")] = False,
) -> None:
    """Take a model from seed data to a folded, certified, evaluated model folder.

    Four stages: deep_research_data, data_cleansing, so8t_ppo_training, aegis_v2_integration.
    Finished stages are skipped when the same command runs again. runs/latest leads to the newest
    session: adapter/, model/, report.html.
    """
    from aegis.cli.show import print_json, print_table, progress_reporter
    from aegis.config import load_config

    overrides = list(set_ or []) + (["data.skip_bad=true"] if skip_bad else [])
    settings = load_config(config, overrides)

    from aegis.evaluate.report import comparison_rows
    from aegis.pipeline import run_pipeline

    session = run_pipeline(
        settings,
        resume=auto_resume,
        reporter=progress_reporter(),
        command=_repeated(config, overrides),
    )
    if json:
        print_json(session.to_json())
        return
    results = {name: _metrics(session.folder / "results" / name) for name in ("base", "candidate")}
    rows = [
        (row.name, f"{row.base} {row.base_interval}", f"{row.candidate} {row.candidate_interval}")
        for row in comparison_rows(results["base"], results["candidate"])
    ]
    print_table(
        ("held-out decisions", "base", "candidate"), rows, title=f"{session.session_id}: completed"
    )
    latest = Path(settings.runs) / "latest"
    for name in ("model", "adapter", "report.html"):
        typer.echo(f"{name.removesuffix('.html'):8} {latest / name}")


def _repeated(config: Path, overrides: list[str]) -> dict[str, Any]:
    """Return the call that goes on with this run, for `aegis watch`: one that starts nothing anew."""
    argv = ["run", str(config)]
    argv += [word for override in overrides for word in ("--set", override)]
    return {"argv": argv, "cwd": str(Path.cwd())}


def _metrics(folder: Path) -> dict:
    import json

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
