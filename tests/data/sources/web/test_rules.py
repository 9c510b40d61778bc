from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from aegis.data.sources.web.fetch import Fetcher, RefusedError
from aegis.data.sources.web.rules import DAY_S, HostRules, RulesCache, utc
from tests.data.sources.web.rude import RudeServer, answer, make_fetcher

TDM = "/.well-known/tdmrep.json"
ALLOWS = answer("user-agent: *\nallow: /\n")
FORBIDS = answer("user-agent: *\ndisallow: /\n")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rules(tmp_path: Path, fetcher: Fetcher, clock: Clock) -> RulesCache:
    return RulesCache(tmp_path, fetcher, now=clock)


def of(rules: RulesCache, server: RudeServer, host: str = "site.test") -> HostRules:
    return rules.of(httpx.URL(server.url("/x", host=host)))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 451])
def test_without_robots_txt_there_are_no_rules(
    rules: RulesCache, server: RudeServer, status: int
) -> None:
    server.answers["/robots.txt"] = answer("user-agent: *\ndisallow: /", status)
    words = of(rules, server).require_permitted(server.url("/x"))
    assert words == f"allowed: {server.url('/robots.txt')} answered {status} on {utc(1e6)}"


@pytest.mark.parametrize(
    "reply",
    [
        answer(status=500),
        answer(status=503),
        answer(status=599),
        answer(status=429),
        answer(status=304),
        answer(status=302),
        answer(status=302, location="/robots.txt"),
        b"",
        b"HTTP/1.1 200 x\r\nContent-Length: 10\r\n\r\nshort",
        answer(b"x", content_encoding="br"),
    ],
    ids=range(10),
)
def test_a_robots_txt_that_cannot_be_read_forbids_and_is_not_kept(
    tmp_path: Path, rules: RulesCache, server: RudeServer, clock: Clock, reply: bytes
) -> None:
    server.answers["/robots.txt"] = reply
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"robots\.txt: unreachable") as caught:
            of(rules, server)
        assert not caught.value.lasting
    assert not list(tmp_path.iterdir())
    asked = len(server.asked)
    server.answers["/robots.txt"] = ALLOWS
    fresh = RulesCache(tmp_path, rules.fetcher, now=clock)
    of(fresh, server).require_permitted(server.url("/x"))
    assert len(server.asked) > asked, "the next run asks again"


def hang(connection: socket.socket) -> None:
    connection.recv(1)


def test_silence_forbids(tmp_path: Path, server: RudeServer) -> None:
    server.answers["/robots.txt"] = hang
    rules = RulesCache(tmp_path, make_fetcher(seconds=0.3))
    with pytest.raises(RefusedError, match=r"robots\.txt: unreachable \(time"):
        of(rules, server)


def test_rules_are_kept_for_a_day_and_no_longer(
    tmp_path: Path, rules: RulesCache, server: RudeServer, clock: Clock
) -> None:
    server.answers["/robots.txt"] = ALLOWS
    of(rules, server)
    server.answers["/robots.txt"] = FORBIDS
    clock.now += DAY_S - 1
    for kept in (rules, RulesCache(tmp_path, rules.fetcher, now=clock)):
        of(kept, server).require_permitted(server.url("/x"))
    assert server.asked.count("site.test/robots.txt") == 1
    clock.now += 2
    for kept in (rules, RulesCache(tmp_path, rules.fetcher, now=clock)):
        with pytest.raises(RefusedError, match="disallowed"):
            of(kept, server).require_permitted(server.url("/x"))
    assert server.asked.count("site.test/robots.txt") == 2
    server.answers["/robots.txt"] = answer(status=500)
    clock.now += DAY_S + 1
    with pytest.raises(RefusedError, match="unreachable"):
        of(rules, server)


@pytest.mark.parametrize("damaged", ["{", "[]", '{"time_s": 1}', '{"time_s": "x", "status": 1}'])
def test_rules_that_are_damaged_on_the_disk_are_asked_for_again(
    tmp_path: Path, rules: RulesCache, server: RudeServer, clock: Clock, damaged: str
) -> None:
    server.answers["/robots.txt"] = FORBIDS
    of(rules, server)
    (path,) = tmp_path.iterdir()
    path.write_text(damaged)
    with pytest.raises(RefusedError, match="disallowed"):
        of(RulesCache(tmp_path, rules.fetcher, now=clock), server).require_permitted(server.url())
    assert server.asked.count("site.test/robots.txt") == 2


def test_no_type_is_asked_for_that_would_make_a_strict_server_say_406(
    rules: RulesCache, server: RudeServer
) -> None:
    server.answers["/robots.txt"] = ALLOWS
    of(rules, server)
    assert {headers["accept"] for headers in server.headers} == {"*/*"}


def test_redirects_of_robots_txt_are_followed_to_other_hosts_for_this_host(
    rules: RulesCache, server: RudeServer
) -> None:
    server.answers["site.test/robots.txt"] = answer(
        status=301, location=server.url("/1", host="other.test")
    )
    for number in range(1, 5):
        server.answers[f"/{number}"] = answer(status=302, location=f"/{number + 1}")
    server.answers["/5"] = FORBIDS
    with pytest.raises(RefusedError, match="disallowed"):
        of(rules, server).require_permitted(server.url("/x"))
    server.answers["/5"] = answer(status=302, location="/6")
    server.answers["/6"] = ALLOWS
    server.answers["far.test/robots.txt"] = answer(status=301, location="/1")
    with pytest.raises(RefusedError, match="more than 5"):
        of(rules, server, "far.test")


def test_each_host_and_port_has_rules_of_its_own(rules: RulesCache, server: RudeServer) -> None:
    server.answers["a.test/robots.txt"] = FORBIDS
    server.answers["b.test/robots.txt"] = ALLOWS
    with pytest.raises(RefusedError):
        of(rules, server, "a.test").require_permitted(server.url("/x", host="a.test"))
    of(rules, server, "b.test").require_permitted(server.url("/x", host="b.test"))


def test_crawl_delay_is_kept_also_from_the_disk_unless_it_is_too_long(
    tmp_path: Path, rules: RulesCache, server: RudeServer, clock: Clock
) -> None:
    server.answers["/robots.txt"] = answer("user-agent: *\ncrawl-delay: 12")
    of(rules, server)
    assert rules.fetcher.delays["site.test"] == 12
    other = RulesCache(tmp_path, make_fetcher(), now=clock)
    of(other, server)
    assert other.fetcher.delays["site.test"] == 12
    server.answers["/robots.txt"] = answer("user-agent: *\ncrawl-delay: 600")
    with pytest.raises(RefusedError, match="asks for 600 s"):
        of(rules, server, "slow.test")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (answer('[{"location": "/", "tdm-reservation": 1}]'), r"reserved: tdmrep\.json$"),
        (answer("not json"), "cannot be understood"),
        (answer(status=500), "unreachable"),
        (b"", "unreachable"),
        (answer('[{"location": "/y", "tdm-reservation": 1}]'), None),
        (answer("<html>not found", content_type="text/html"), None),
        (answer(status=404), None),
    ],
    ids=range(7),
)
def test_reservations_of_the_host(
    rules: RulesCache, server: RudeServer, reply: bytes, message: str | None
) -> None:
    server.answers |= {"/robots.txt": ALLOWS, TDM: reply}
    if message is None:
        of(rules, server).require_permitted(server.url("/x"))
        return
    with pytest.raises(RefusedError, match=message):
        of(rules, server).require_permitted(server.url("/x"))


def test_robots_txt_decides_about_the_file_of_reservations_too(
    rules: RulesCache, server: RudeServer
) -> None:
    server.answers["/robots.txt"] = FORBIDS
    of(rules, server)
    assert server.asked == ["site.test/robots.txt"]


def test_a_signal_against_training_in_robots_txt_reserves_the_host(
    rules: RulesCache, server: RudeServer
) -> None:
    server.answers["/robots.txt"] = answer("user-agent: *\nContent-Signal: ai-train=no\nallow: /")
    with pytest.raises(RefusedError, match="reserved: Content-Signal"):
        of(rules, server).require_permitted(server.url("/x"))
