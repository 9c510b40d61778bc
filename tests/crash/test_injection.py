"""Whatever one call of a save answers, it ends in success, a pause or a clear error, and what was
acknowledged is sound."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from aegis.errors import EXIT_FAILED, EXIT_RESUMABLE
from tests.crash.report import Report
from tests.crash.verdict import judge, require_next_save

WRITER = Path(__file__).with_name("writer.py")
CALLS = "openat,write,fsync,rename,mkdir,unlink,unlinkat,rmdir,chmod,fchmodat,read,getdents64"
ANSWERS = {"error=EIO": "EIO", "error=ENOSPC": "ENOSPC", "retval=0": "lying fsync"}
NO_ROOM = ("write", "fsync", "rename", "mkdir")
pytestmark = pytest.mark.usefixtures("strace")


@dataclass(frozen=True)
class Injection:
    """The answer, in strace's words, that the `number`th `call` of the process gets instead of its
    own."""

    call: str
    number: int
    answer: str


def run(folder: Path, *inject: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Three saves into `folder`/disk, the third of which removes the first; returns the process and
    strace's log."""
    root, log = folder / "disk", folder / "log"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    strace = ["strace", "-f", "-y", "-s", "64", "-e", f"trace={CALLS}", *inject, "-o", str(log)]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
    }  # the same calls in the same order, every time
    command = [*strace, sys.executable, "-B", str(WRITER), "replacing", str(root)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return ended, log.read_text(errors="replace").splitlines()


def injections(folder: Path) -> list[Injection]:
    """Every answer that is tried: to each call of the third save that concerns a snapshot."""
    ended, log = run(folder)
    assert ended.returncode == 0, ended.stderr
    root, counts, notes, found = str(folder / "disk"), Counter[str](), 0, []
    for line in log:
        if not (match := re.match(r"\d+ +(\w+)\(", line)):
            continue
        call = match.group(1)
        counts[call] += 1
        if call == "openat" and f"{root}/acknowledged" in line:
            notes += 1
        if notes != 2 or f"{root}/work" not in line or re.search(r"= -1 E", line):
            continue
        can = {
            "EIO": True,
            "ENOSPC": call in NO_ROOM or "O_CREAT" in line,
            "lying fsync": call == "fsync",
        }
        found += [
            Injection(call, counts[call], answer) for answer, name in ANSWERS.items() if can[name]
        ]
    return found


def outcome(injection: Injection, folder: Path) -> tuple[str, str]:
    """How the save ended (succeeded, told, paused or refused) and what was wrong with that, if
    anything."""
    ended, log = run(
        folder, "-e", f"inject={injection.call}:{injection.answer}:when={injection.number}"
    )
    root = folder / "disk"
    hit = [line for line in log if "(INJECTED)" in line]
    if len(hit) != 1 or f"{root}/work" not in hit[0]:
        return "missed", f"{injection} met {hit}"
    where, lines = f"{hit[0]}: ", ended.stderr.splitlines()
    if ended.returncode == 0 and not lines:
        how = "told" if "could not be removed" in ended.stdout else "succeeded"
    elif ended.returncode == EXIT_RESUMABLE and "paused" in ended.stdout.splitlines():
        how = "paused"
    elif ended.returncode == EXIT_FAILED and len(lines) == 1 and lines[0].startswith("error: "):
        how = "refused"
    else:
        return "failed", f"{where}exit {ended.returncode}, {ended.stderr[-600:]}"
    if "ENOSPC" in injection.answer and how == "refused":
        return how, f"{where}a full disk was not waited for: {lines[0]}"
    if fault := judge("replacing", root):
        return how, where + fault
    try:
        require_next_save(root)
    except Exception as error:  # whatever is raised, the call has to be named
        return how, f"{where}the next save: {type(error).__name__}: {error}"
    return how, ""


@pytest.mark.parametrize(
    "every", [3, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_call_that_fails_leaves_the_newest_snapshot_sound(
    every: int, tmp_path: Path, report: Report
) -> None:
    begun = time.monotonic()
    found = injections(tmp_path.resolve() / "first")
    tried = [
        one for answer in ANSWERS for one in [one for one in found if one.answer == answer][::every]
    ]
    folders = [tmp_path.resolve() / str(number) for number in range(len(tried))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ended = list(pool.map(outcome, tried, folders))
    took = time.monotonic() - begun
    for answer, name in ANSWERS.items():
        of_it = [
            end for injection, end in zip(tried, ended, strict=True) if injection.answer == answer
        ]
        how = Counter(how for how, _ in of_it)
        sound = sum(not wrong for _, wrong in of_it)
        case = f"{name}, {'each call' if every == 1 else f'one in {every}'}"
        remarks = ", ".join(f"{how[name]} {name}" for name in sorted(how))
        share = took * len(of_it) / len(tried)
        report.add("injection", case, count=len(of_it), sound=sound, seconds=share, remarks=remarks)
    wrong = [wrong for _, wrong in ended if wrong]
    assert {injection.answer for injection in tried} == set(ANSWERS)
    assert every > 1 or {how for how, _ in ended} == {"succeeded", "told", "paused", "refused"}
    assert not wrong, "\n".join(wrong)
