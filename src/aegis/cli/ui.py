"""aegis ui: pages to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, number
from aegis.cli.show import print_note

_RUNS = "The folder of all runs."
_CASES = "The escalations to review; by default those of the newest run's server."
_HOST = "Loopback address to listen on."


def ui(
    runs: Annotated[Path, typer.Argument(help=_RUNS, callback=INPUT)] = Path("runs"),
    host: Annotated[str, typer.Option(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, number(help="TCP port.", least=1, most=65535)] = 8080,
    cases: Annotated[Path | None, typer.Option(help=_CASES, callback=INPUT)] = None,
) -> None:
    """Show runs in the browser, the list and each one live with its stages, curves, warnings and
    log; and the cases that wait for a person, one at a time. Ctrl-C ends it; the runs go on.

    The pages need nothing from the network and are for this machine only. While a server has the
    queue's audit log open, review on its own pages, at /ui. docs/ui.md has more.
    """
    from aegis.serve import require_packages

    require_packages()
    from aegis.web.server import serve_ui

    serve_ui(runs, host, port, print_note, cases=cases)
