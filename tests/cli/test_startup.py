from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("verb", [[], ["status"], ["watch", "--check-only"]])
def test_verbs_that_only_look_import_no_torch(verb: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'transformers', 'numpy'}\n"
        "atexit.register(lambda: print('heavy:', heavy & set(sys.modules)))\n"
        "from aegis.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", code, *verb, *(["no/such/run"] if verb else ["--help"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "heavy: set()" in done.stdout
    assert ("no such" in done.stderr) == bool(verb)
