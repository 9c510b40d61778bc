from __future__ import annotations

import datetime
import gzip
import socket
import ssl
import time
import zlib
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aegis.data.sources.web.fetch import Fetcher, RefusedError
from tests.data.sources.web.rude import RudeServer, answer, make_fetcher, rude_server

HEAD = b"HTTP/1.1 200 x\r\nContent-Type: text/plain\r\n"


def refused(fetcher: Fetcher, url: str, match: str) -> RefusedError:
    with pytest.raises(RefusedError, match=match) as caught:
        fetcher.get(url)
    return caught.value


def test_who_asks_is_told_and_nobody_is_followed(server: RudeServer, fetcher: Fetcher) -> None:
    server.answers["/"] = answer("a", set_cookie="id=1; Path=/")
    fetcher.get(server.url())
    fetcher.get(server.url())
    for headers in server.headers:
        assert headers["user-agent"].startswith("AEGIS-collect/")
        assert headers["user-agent"].endswith("(+crawl@somewhere.jp)")
        assert headers["accept-encoding"] == "gzip"
        assert not {"cookie", "authorization", "referer"} & headers.keys()


def test_five_redirects_are_followed_and_not_six(server: RudeServer, fetcher: Fetcher) -> None:
    for number in range(6):
        server.answers[f"/{number}"] = answer(status=301, location=f"/{number + 1}")
    server.answers["/6"] = answer("end")
    assert fetcher.get(server.url("/1")).body == b"end"
    assert fetcher.get(server.url("/1")).url == server.url("/6")
    assert refused(fetcher, server.url("/0"), "more than 5").lasting


def test_every_step_of_a_redirect_must_be_permitted(server: RudeServer, fetcher: Fetcher) -> None:
    server.answers["/a"] = answer(status=302, location=server.url("/b", host="other.test"))

    def permit(url: httpx.URL) -> None:
        if url.host != "site.test":
            raise RefusedError("list: elsewhere")

    with pytest.raises(RefusedError, match="elsewhere"):
        fetcher.get(server.url("/a"), permit=permit)
    assert server.asked == ["site.test/a"]


@pytest.mark.parametrize(
    "location",
    [
        *(
            "",
            "http://",
            "mailto:a@b.jp",
            "http://user:pw@site.test/",
            "http://[::1",
            "/a/%2e%2e/b",
        ),
        *("/a/..%2fb", "/a%2f..%2fb", "/a%5c..%5cb", "/a/%2E%2e\\b"),
    ],
)
def test_redirects_to_no_page_are_refused(
    server: RudeServer, fetcher: Fetcher, location: str
) -> None:
    server.answers["/"] = answer(status=302, location=location)
    with pytest.raises(RefusedError):
        fetcher.get(server.url())
    assert len(server.asked) <= 6


def test_a_page_larger_than_allowed_is_left(server: RudeServer) -> None:
    fetcher = make_fetcher(page_bytes=1000)
    server.answers["/fits"] = answer("x" * 1000)
    server.answers["/large"] = answer("x" * 1001)
    assert len(fetcher.get(server.url("/fits")).body) == 1000
    assert refused(fetcher, server.url("/large"), "size: more than 1,000").lasting
    assert len(fetcher.get(server.url("/large"), cut_at=10).body) == 10


def test_of_another_type_nothing_is_read(server: RudeServer, fetcher: Fetcher) -> None:
    server.answers["/"] = answer("x" * 100_000, content_type="video/mp4")
    assert fetcher.get(server.url()).body == b""
    assert fetcher.bytes == 0
    assert len(fetcher.get(server.url(), cut_at=10).body) == 10


def test_an_endless_page_is_left_after_its_limit(server: RudeServer) -> None:
    sent = []

    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 x\r\nContent-Type: text/plain\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            sent.append(connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n"))

    server.answers["/"] = endless
    refused(make_fetcher(page_bytes=100_000), server.url(), "size")
    assert sum(sent) < 10_000_000


def test_a_bomb_is_left_before_it_is_large(server: RudeServer) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    server.answers["/"] = answer(bomb, content_encoding="gzip")
    fetcher = make_fetcher(page_bytes=1_000_000)
    refused(fetcher, server.url(), "size: more than 1,000,000")
    assert fetcher.bytes < 1_100_000


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (gzip.compress(b"a" * 9999)[:-12], "gzip", "cut short"),
        (b"no gzip", "gzip", "network"),
        (gzip.compress(b"a") + b"rest", "gzip", "network"),
        (zlib.compress(b"a"), "deflate", "'deflate' was not asked for"),
        (b"a", "br", "'br' was not asked for"),
        (gzip.compress(gzip.compress(b"a")), "gzip, gzip", "was not asked for"),
    ],
)
def test_a_damaged_or_uninvited_encoding_is_refused(
    server: RudeServer, fetcher: Fetcher, body: bytes, encoding: str, message: str
) -> None:
    server.answers["/"] = answer(body, content_encoding=encoding)
    refused(fetcher, server.url(), message)


def test_gzip_in_several_members_is_one_page(server: RudeServer, fetcher: Fetcher) -> None:
    body = gzip.compress(b"a" * 100_000) + gzip.compress(b"b")
    server.answers["/"] = answer(body, content_encoding="gzip")
    assert fetcher.get(server.url()).body == b"a" * 100_000 + b"b"


def drip(start: bytes, part: bytes) -> object:
    def serve(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(part)
            time.sleep(0.05)

    return serve


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"HTTP/1.1 200 x\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 x\r\n", b"A: b\r\n"),
        (b"", b"HTTP/1.1 103 x\r\n\r\n"),
        (b"", b""),
    ],
    ids=["body", "headers", "hints", "silence"],
)
def test_a_slow_answer_has_a_limit_as_a_whole(
    server: RudeServer, start: bytes, part: bytes
) -> None:
    server.answers["/"] = drip(start, part)  # pyright: ignore[reportArgumentType]
    begun = time.monotonic()
    refused(make_fetcher(seconds=0.6), server.url(), "time: no whole answer")
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage\r\n\r\n",
        HEAD + b"Content-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 x\r\nContent-Length: -1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        b"HTTP/1.1 200 x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 x\r\n\x00: a\r\n\r\n",
    ],
    ids=range(9),
)
def test_what_is_no_http_is_refused(server: RudeServer, fetcher: Fetcher, raw: bytes) -> None:
    server.answers["/"] = raw
    with pytest.raises(RefusedError):
        fetcher.get(server.url())


def test_a_busy_server_is_asked_once_more_when_it_says(server: RudeServer) -> None:
    clock, waits = [100.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    fetcher = make_fetcher(clock=lambda: clock[0], sleep=sleep)
    server.answers["/"] = answer(status=503, retry_after="7")
    assert fetcher.get(server.url()).status == 503
    assert len(server.asked) == 2
    assert waits == [0.0, 7.0]
    server.answers["/"] = answer(status=429, retry_after="86400")
    assert fetcher.get(server.url()).status == 429
    assert len(server.asked) == 3, "too long to wait for"
    server.answers["/"] = answer(status=500, retry_after="Fri, 31 Dec 1999 23:59:59 GMT")
    assert fetcher.get(server.url()).status == 500


def test_each_host_has_its_own_pace(server: RudeServer) -> None:
    clock, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(round(seconds, 3))
        clock[0] += seconds

    server.answers["/"] = answer("a")
    fetcher = make_fetcher(clock=lambda: clock[0], sleep=sleep, delays={"slow.test": 5.0})
    for host in ("slow.test", "quick.test", "slow.test", "quick.test", "slow.test"):
        fetcher.get(server.url(host=host))
    assert waits == [0.0, 0.0, 5.0, 0.0, 5.0]


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "site.pem"
    path.write_bytes(pem + built.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_tls_is_checked_against_the_name_and_not_the_address(tmp_path: Path) -> None:
    context, asked_for = certificate(tmp_path, "site.test"), []
    context.sni_callback = lambda _, name, __: asked_for.append(name)
    trusting = ssl.create_default_context(cafile=tmp_path / "site.pem")
    with rude_server(context=context) as server:
        server.answers["/"] = answer("safe")
        fetcher = make_fetcher(context=trusting)
        assert fetcher.get(server.url(scheme="https")).body == b"safe"
        assert server.asked == ["site.test/"]
        refused(fetcher, server.url(scheme="https", host="other.test"), "certificate")
        refused(make_fetcher(), server.url(scheme="https"), "certificate")
        assert asked_for == ["site.test", "other.test", "site.test"]
        assert server.asked == ["site.test/"]
