from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from aegis.serve.escalations import CaseQueue


def test_cases_survive_a_kill(tmp_path: Path) -> None:
    opened = (
        "import os, sys; from pathlib import Path; from aegis.serve.escalations import CaseQueue; "
        "queue = CaseQueue(Path(sys.argv[1])); "
        "queue.open('ab' * 16, owner='', user='', query='Pay it?', "
        "probabilities=(0.1, 0.7, 0.1, 0.1)); "
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", opened, str(tmp_path / "cases.db")], check=False)
    assert killed.returncode != 0
    with contextlib.closing(CaseQueue(tmp_path / "cases.db")) as cases:
        assert cases.get("ab" * 16).query == "Pay it?"
