from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
def test_what_is_no_utf8_is_told_in_one_line(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(place)
    for command, cwd, name in (
        ([b"status"], place, "the working folder"),
        ([b"judge", b"caf\xe9"], os.fsencode(tmp_path), "argument 2"),
    ):
        done = subprocess.run(
            [os.fsencode(sys.executable), b"-m", b"aegis", *command],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {name} must be UTF-8, got '")
        assert "\n" not in done.stderr.strip()
