"""Against a real uvicorn: an end that leaves nothing hanging."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import httpx
import pytest

from aegis.errors import BadInputError
from aegis.serve import server
from aegis.serve.middleware.access import is_loopback
from aegis.serve.server import (
    Server,
    bind,
    freeze_loaded_objects,
    require_guarded,
    session_name,
)
from aegis.serve.settings import ServeSettings
from tests.serve.fakes import FakeEngine, house, thinking
from tests.serve.live import HEAD, connected, living, soon


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_lets_answers_finish(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine(hold=threading.Event())
    made = house(tmp_path, engine, keep_alive_s=0.05)
    found: list[httpx.Response] = []
    with living(made) as (url, server):
        thread = threading.Thread(
            target=lambda: found.append(
                httpx.post(f"{url}/think", json={"query": "hi", "stream": stream}, timeout=20)
            )
        )
        thread.start()
        soon(lambda: engine.prompts)
        server.should_exit = True
        soon(made.service.draining.is_set)
        assert engine.hold
        engine.hold.set()
        thread.join()
    assert found[0].status_code == 200
    assert "Paris" in found[0].text.replace('"}\n\nevent: piece\ndata: ', "")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_what_takes_too_long_in_order(tmp_path: Path, stream: bool) -> None:
    engine = FakeEngine(hold=threading.Event())
    made = house(tmp_path, engine, keep_alive_s=0.05)
    found: list[httpx.Response] = []
    with living(made, grace_s=0.3) as (url, server):
        thread = threading.Thread(
            target=lambda: found.append(
                httpx.post(f"{url}/think", json={"query": "hi", "stream": stream}, timeout=20)
            )
        )
        thread.start()
        soon(lambda: engine.prompts)
        time.sleep(0.1)
        server.should_exit = True
        thread.join()
    assert found[0].status_code == (200 if stream else 503)
    assert '"code":"stopping"' in found[0].text
    assert "Paris" not in found[0].text
    assert made.audit.entries == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_stop_signal_ends_at_once_and_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    released = threading.Event()  # the engine heeds nothing until then
    engine = FakeEngine(says=lambda *_: None if released.wait(20) else thinking())
    made = house(tmp_path, engine, keep_alive_s=0.05)
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {"query": "hi", "stream": stream}
        answers.append(httpx.post(f"{url}/think", json=body, timeout=20))

    with caplog.at_level(logging.DEBUG), living(made, grace_s=30) as (url, server):
        thread = threading.Thread(target=ask)
        thread.start()
        with connected(url) as slow:  # its body never comes
            slow.sendall(f"{HEAD}9\r\n\r\n".encode())
            soon(lambda: engine.prompts)
            time.sleep(0.2)
            for _ in range(2):
                server.handle_exit(signal.SIGINT, None)
            thread.join(timeout=3)
            assert answers[0].status_code == (200 if stream else 503)
            assert '"code":"stopping"' in answers[0].text
            slow.settimeout(5)
            assert b" 503 " in slow.recv(4096)
        released.set()
    assert not [record for record in caplog.records if record.exc_info]
    assert "Internal Server Error" not in caplog.text


def test_only_this_machine_without_tokens(tmp_path: Path) -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"))
    with pytest.raises(BadInputError, match="aegis token new"):
        require_guarded("0.0.0.0", None)
    require_guarded("0.0.0.0", tmp_path / "tokens.json")


def test_a_model_on_a_read_only_place_names_what_must_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.os, "access", lambda *_: False)
    (tmp_path / "model").mkdir()
    settings = ServeSettings(model=tmp_path / "model")
    with pytest.raises(BadInputError, match=r"give --audit FOLDER and --cases FILE elsewhere"):
        server.serve(settings, report=print)
    settings = ServeSettings(model=tmp_path / "model", audit=tmp_path / "audit")
    with pytest.raises(BadInputError, match=r"give --cases FILE elsewhere"):
        server.serve(settings, report=print)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_is_called_as_its_link_in_a_cache_and_as_the_run_that_latest_leads_to(
    tmp_path: Path,
) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "5e5e").write_bytes(b"GGUF")
    (tmp_path / "tiny-f16.gguf").symlink_to(tmp_path / "blobs" / "5e5e")
    assert session_name(tmp_path / "tiny-f16.gguf") == "tiny-f16"
    (tmp_path / "aegis_1" / "model").mkdir(parents=True)
    (tmp_path / "latest").symlink_to("aegis_1")
    assert session_name(tmp_path / "latest" / "model") == "aegis_1"


def test_a_port_in_use_is_told() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as held:
        held.listen(1)
        with pytest.raises(BadInputError, match="choose another"):
            bind("127.0.0.1", held.getsockname()[1])
    with pytest.raises(BadInputError, match="choose another"):
        bind("203.0.113.7", 1)


def test_garbage_does_not_wait_for_a_quarter_of_what_was_loaded() -> None:
    class Ring:
        def __init__(self) -> None:
            self.other = self

    loaded = [[] for _ in range(500_000)]
    try:
        freeze_loaded_objects()
        assert gc.get_freeze_count() > len(loaded)
        rings, recent = weakref.WeakSet[Ring](), deque[Ring](maxlen=10_000)
        for _ in range(60_000):
            recent.append(Ring())  # long enough for it to be counted as old
            rings.add(recent[-1])
        assert len(rings) < 40_000
    finally:
        gc.unfreeze()


def test_a_stop_signal_is_heeded(tmp_path: Path) -> None:
    made = house(tmp_path)
    server = Server(made.app, made.service)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert made.service.draining.is_set()
    assert not made.service.stopping.is_set()
    server.handle_exit(signal.SIGINT, None)
    assert made.service.stopping.is_set()
