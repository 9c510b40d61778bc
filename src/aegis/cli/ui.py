"""aegis ui: pages to look at."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, OUTPUT_FILE, locate_model, number
from aegis.cli.show import print_note

_FOLDER = Path("runs")
_RUNS = "The folder of all runs."
_CASES = "The escalations to review; by default those of the newest run's server."
_MODEL = "A model to ask, served with the pages as `aegis serve` does; it brings its own queue."
_HOST = "Loopback address to listen on."


def ui(
    runs: Annotated[Path, typer.Argument(help=_RUNS, callback=INPUT)] = _FOLDER,
    host: Annotated[str, typer.Option(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, number(help="TCP port.", least=1, most=65535)] = 8080,
    model: Annotated[Path | None, typer.Option(help=_MODEL, callback=INPUT)] = None,
    cases: Annotated[Path | None, typer.Option(help=_CASES, callback=OUTPUT_FILE)] = None,
) -> None:
    """Show runs in the browser, the list and each one live with its stages, curves, warnings and
    log; with --model a chat with it and its verdicts; and the cases that wait for a person, one at
    a time. Ctrl-C ends it; the runs go on.

    The pages need nothing from the network and are for this machine only. While a server has the
    queue's audit log open, review on its own pages, at /ui. docs/ui.md has more.
    """
    from aegis.serve import require_packages

    require_packages()
    from aegis.web.server import require_loopback, require_runs, serve_ui

    if model is None:
        serve_ui(runs, host, port, print_note, cases=cases)
        return
    locate_model(model)
    if runs.exists() or runs != _FOLDER:
        require_runs(runs)
    require_loopback(host)
    from aegis.serve.server import serve
    from aegis.serve.settings import ServeSettings
    from aegis.web.app import with_pages

    settings = ServeSettings(model=model, host=host, port=port, cases=cases)
    serve(settings, print_note, partial(with_pages, runs=runs))
