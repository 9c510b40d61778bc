from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aegis.errors import AegisError
from aegis.storage.lock import only_process

HOLDER = """
import sys, time
from pathlib import Path
from aegis.storage.lock import only_process
with only_process(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(AegisError, match="another process is at work here"),
            only_process(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with only_process(tmp_path):  # the dead process left no lock behind
        pass
