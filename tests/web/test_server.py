from __future__ import annotations

import socket
from pathlib import Path

import pytest

from aegis.errors import BadInputError
from aegis.web.server import serve_ui
from tests.web.runs import new_run


def test_what_cannot_be_shown_is_told_before_anything_listens(runs: Path) -> None:
    run = new_run(runs).folder
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for folder, host, words in (
            (runs / "none", "127.0.0.1", "no such folder"),
            (run, "127.0.0.1", f"is one run; give the folder of all runs, {runs}"),
            (runs, "0.0.0.0", "--host must be a loopback address, got 0.0.0.0"),
            (runs, "127.0.0.1", "choose another"),
        ):
            with pytest.raises(BadInputError, match=words):
                serve_ui(folder, host, port, print)
    with pytest.raises(BadInputError, match="no such queue"):
        serve_ui(runs, "127.0.0.1", port, print, cases=runs / "none.db")
