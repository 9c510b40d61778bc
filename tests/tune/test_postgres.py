"""A study on a real PostgreSQL server: joined from two places, and the server killed in between."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import BadInputError
from aegis.tune import study as module
from aegis.tune.database import PatientStorage, counted, open_storage
from aegis.tune.space import read_plan
from aegis.tune.study import StudyWorkers, Tuning, prepare
from tests.tune.studies import config_in, quick_run, write_study

psycopg = pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
_FOUND = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
_INITDB = shutil.which("initdb") or (str(max(_FOUND)) if _FOUND else "")
pytestmark = pytest.mark.skipif(not _INITDB, reason="no PostgreSQL server is installed")


class Server:
    """PostgreSQL in a folder of its own, as somebody who is not root, which it refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, Path(_INITDB).resolve().parent
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            name = "postgres" if "postgres" in names else "nobody"
            entry = pwd.getpwnam(name)
            self.user = {"user": name, "group": entry.pw_gid, "extra_groups": []}
            shutil.chown(folder, name)
            for parent in folder.parents:
                if parent.stat().st_uid == 0 and parent.is_relative_to("/tmp/pytest-of-root"):
                    parent.chmod(0o755)
        command = [self.bin / "initdb", "-D", folder / "data", "-A", "trust", "-U", "aegis"]
        command += ["--no-sync", "-E", "UTF8"]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self.user)
        self.url = f"postgresql://aegis@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        command = [self.bin / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-F"]
        command += ["-c", "listen_addresses=127.0.0.1", "-k", self.folder]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self.user)
        for _ in range(600):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url).close()
                return
            time.sleep(0.1)
        raise TimeoutError((self.folder / "log").read_text(encoding="utf-8"))

    def kill(self) -> None:
        """End it as a crash does: without a word to its clients."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("postgres"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def tuning(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tuning]:
    opened: list[PatientStorage] = []

    def opening(*args: Any, **named: Any) -> PatientStorage:
        opened.append(open_storage(*args, **named))
        return opened[-1]

    def run(*args: Any, **named: Any) -> Path:
        time.sleep(0.05)
        return quick_run(*args, **named)

    monkeypatch.setattr(module, "run_trial", run)
    monkeypatch.setattr(module, "_LOOK_S", 0.05)
    plan = read_plan(write_study(tmp_path))
    tuning = prepare(plan, config_in(tmp_path), name=tmp_path.name[:60])
    monkeypatch.setattr(module, "open_storage", opening)
    yield replace(tuning, storage=server.url)
    for storage in opened:
        storage.remove_session()
        storage.engine.dispose()


def test_workers_on_two_machines_share_a_study(tuning: Tuning, tmp_path: Path) -> None:
    places = [replace(tuning, folder=tmp_path / name) for name in ("here", "there")]
    StudyWorkers(places[0]).run(1)
    both = [StudyWorkers(place) for place in places]
    threads = [threading.Thread(target=worker.run, args=(12,)) for worker in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = counted(both[0].study.get_trials())
    assert 12 <= len(trials) <= 13  # without a common lock one may be begun too many
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert len({trial.number for trial in trials}) == len(trials)


def test_a_server_that_is_killed_and_started_again_ends_no_study(
    tuning: Tuning, server: Server
) -> None:
    workers = StudyWorkers(tuning)
    thread = threading.Thread(target=workers.run, args=(25,), kwargs={"workers": 2})
    thread.start()
    while workers.finished() < 5:
        time.sleep(0.02)
    server.kill()
    time.sleep(1.5)
    server.start()
    thread.join(timeout=400)
    assert not thread.is_alive()
    trials = workers.study.get_trials()
    assert len(counted(trials)) == 25
    assert {trial.state.name for trial in counted(trials)} <= {"COMPLETE", "FAIL"}
    assert sum(trial.state.name == "COMPLETE" for trial in trials) >= 23


def test_a_dead_server_is_told_at_once(server: Server) -> None:
    server.kill()
    try:
        with pytest.raises(BadInputError, match="Connection refused"):
            open_storage(server.url)
    finally:
        server.start()
