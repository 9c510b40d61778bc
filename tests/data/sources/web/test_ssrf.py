"""Nothing inside is ever connected to: not by any way to write an address, not by a name, not
after a redirect, not when a name changes its address."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis.data.sources.web.collect import collect
from aegis.data.sources.web.fetch import CheckedBackend, Fetcher, RefusedError
from aegis.data.sources.web.sites import Site, Sites
from tests.data.sources.web.rude import (
    OPEN,
    RudeServer,
    answer,
    make_fetcher,
    opened,
    rude_server,
)
from tests.data.sources.web.test_addresses import INNER

PORT = "{port}"
HOSTS = """
127.0.0.1 127.1 127.0.1 127.0.0.2 127.000.000.001 0177.0.0.1 0x7f.0.0.1 0x7f.1 0x7f000001 2130706433
017700000001 0x7F.0x0.0x0.0x1 0 0.0.0.0 00000177.1 127.0.0.1. localhost LOCALHOST localhost.
localhost.localdomain ip6-localhost [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1]
[::ffff:7f00:1] [0:0:0:0:0:ffff:7f00:0001] [::127.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1]
[64:ff9b:1::7f00:1] [2002:7f00:1::] [2001:0:7f00:1::1] [fe80::1] [fe80::1%25lo] [fe80::1%25eth0]
[fec0::1] [fd00:ec2::254] [ff02::1] [2400::5efe:127.0.0.1] 169.254.169.254 0xa9fea9fe 2852039166
0251.0376.0251.0376 169.254.43518 [::ffff:a9fe:a9fe] 100.100.100.200 192.0.0.192 168.63.129.16
10.0.0.1 012.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1 224.0.0.1 255.255.255.255 198.18.0.1
１２７.0.0.1 ①②⑦.0.0.1 127。0。0。1 127.0.0.1%00.site.test 127.0.0.1%2f.site.test [::1
metadata.google.internal inner.test many.test
""".split()  # noqa: SIM905
NAMES = {
    "metadata.google.internal": ["169.254.169.254"],
    "inner.test": ["127.0.0.1"],
    "many.test": ["8.8.8.8", "127.0.0.1"],  # one inner address among public ones is enough
}
REDIRECTS = [
    *(f"http://{host}:{PORT}/secret" for host in HOSTS),
    f"//127.0.0.1:{PORT}/secret",
    f"http:\\\\127.0.0.1:{PORT}\\secret",
    f"http://site.test@127.0.0.1:{PORT}/secret",
    f"http://site.test:80@127.0.0.1:{PORT}/secret",
    f"http://127.0.0.1:{PORT}#@site.test/secret",
    f"http://127.0.0.1:{PORT}?@site.test/secret",
    f"http://127.0.0.1:{PORT}\\@site.test/secret",
    f"\thttp://127.0.0.1:{PORT}/secret",
    f"hTTp://127.0.0.1:{PORT}/secret",
    f"https://127.0.0.1:{PORT}/secret",
    f"gopher://127.0.0.1:{PORT}/_secret",
    f"ftp://127.0.0.1:{PORT}/secret",
    "file:///etc/passwd",
    "data:text/plain,secret",
    "javascript:fetch('/secret')",
    f"unix:/run/x:{PORT}",
]
_connected: list[object] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _connected is not None and event == "socket.connect":
        _connected.append(arguments[1])


sys.addaudithook(_hook)


@pytest.fixture
def connected() -> Iterator[list[object]]:
    """Every address that Python connects a socket to, whoever asks for it."""
    global _connected
    _connected = []
    yield _connected
    _connected = None


@pytest.fixture
def secret() -> Iterator[RudeServer]:
    with rude_server("127.0.0.1") as server:
        server.answers["/secret"] = answer("secret", content_type="text/plain")
        yield server


def names(host: str, port: int) -> list[str]:
    """Resolve what can be resolved without a network, as the system does."""
    if host in NAMES:
        return NAMES[host]
    if host.endswith(".test"):
        return [OPEN]
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(row[4][0]) for row in rows]


def test_there_are_as_many_forms_as_promised() -> None:
    assert len(set(HOSTS)) == len(HOSTS) >= 60


@pytest.mark.parametrize("host", HOSTS)
def test_no_form_of_an_inner_address_is_fetched(
    host: str, secret: RudeServer, connected: list[object]
) -> None:
    fetcher = Fetcher("crawl@somewhere.jp", backend=CheckedBackend(resolve=names))
    with pytest.raises(RefusedError, match=r"address|network"):
        fetcher.get(f"http://{host}:{secret.port}/secret")
    fetcher.close()
    assert connected == []
    assert secret.connections == 0


@pytest.mark.parametrize("place", REDIRECTS)
def test_no_redirect_leads_inside(
    place: str, server: RudeServer, secret: RudeServer, connected: list[object]
) -> None:
    place = place.replace(PORT, str(secret.port))
    server.answers["/go"] = answer(status=302, location=place)
    server.answers["/first"] = answer(status=307, location="/go")
    fetcher = make_fetcher(resolve=names)
    for path in ("/go", "/first"):
        with pytest.raises(RefusedError):
            fetcher.get(server.url(path))
    fetcher.close()
    assert secret.connections == 0
    assert set(connected) == {(OPEN, server.port)}


@pytest.mark.parametrize("inner", INNER)
def test_a_name_with_an_inner_address_among_its_own_is_not_connected_to(
    inner: str, connected: list[object]
) -> None:
    backend = CheckedBackend(resolve=lambda host, port: ["8.8.8.8", inner])
    with pytest.raises(RefusedError, match=r"address: name\.test is"):
        Fetcher("crawl@somewhere.jp", backend=backend).get("http://name.test/")
    assert connected == []


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(
    server: RudeServer, secret: RudeServer, connected: list[object]
) -> None:
    answers = iter([OPEN, "127.0.0.1", "127.0.0.1"])
    fetcher = make_fetcher(resolve=lambda host, port: [next(answers)])
    server.answers["/"] = answer("mine")
    url = server.url(host="rebind.test")
    assert fetcher.get(url).body == b"mine"
    assert server.asked == ["rebind.test/"]  # the name, not the address, stays in Host
    with pytest.raises(RefusedError, match="loopback"):
        fetcher.get(url)
    assert connected == [(OPEN, server.port)]
    assert next(answers) == "127.0.0.1", "each connection resolves once"
    assert secret.connections == 0


def test_a_meta_refresh_a_frame_and_a_refresh_header_are_not_followed(
    server: RudeServer, secret: RudeServer
) -> None:
    place = f"http://127.0.0.1:{secret.port}/secret"
    body = f'<meta http-equiv=refresh content="0;url={place}"><iframe src="{place}"></iframe>'
    server.answers["/"] = answer(body, refresh=f"0;url={place}", link=f"<{place}>; rel=preload")
    make_fetcher().get(server.url())
    assert secret.connections == 0


def test_proxies_of_the_environment_are_not_used(
    server: RudeServer, secret: RudeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{secret.port}")
    server.answers["/"] = answer("direct")
    assert make_fetcher().get(server.url()).body == b"direct"
    assert secret.connections == 0


def test_a_listed_site_inside_is_refused_and_told(tmp_path: Path, connected: list[object]) -> None:
    site = Site(
        start=["http://127.0.0.1/", "http://[::1]/"], licence="CC0-1.0", terms="https://a.jp/"
    )
    collect(Sites(contact="crawl@somewhere.jp", sites=[site]), tmp_path / "out", tmp_path / "cache")
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rejected) == 2
    assert all("loopback" in line or "not public" in line for line in rejected)
    assert connected == []


def test_the_tests_own_rule_opens_one_address_and_nothing_of_ours_has_a_way_to_it() -> None:
    assert opened(OPEN) is None
    assert all(opened(address) for address in INNER)
    assert Fetcher("crawl@somewhere.jp").backend.refuse(OPEN)
    assert not {"refuse", "resolve", "backend", "fetcher"} & {
        *Sites.model_fields,
        *Site.model_fields,
    }
