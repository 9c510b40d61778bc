from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from aegis.data.records import parse_plain
from aegis.data.sources.web.collect import collect
from aegis.data.sources.web.fetch import Fetched, Fetcher
from aegis.data.sources.web.sites import Site, Sites
from aegis.errors import BadInputError
from tests.data.sources.web.rude import RudeServer, answer, make_fetcher, page

SITE: dict[str, Any] = {"licence": "CC-BY-4.0", "terms": "https://a.jp/terms", "domain": "law"}


def sites_of(server: RudeServer, *paths: str, **settings: Any) -> Sites:
    site = Site(start=[server.url(path) for path in paths], **{**SITE, **settings})
    return Sites(contact="crawl@somewhere.jp", sites=[site])


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def gathered(
    folder: Path, sites: Sites, fetcher: Fetcher | None = None, *, later_s: float = 0.0
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Collect; return the pages, and the reasons by path."""
    fetcher = fetcher or make_fetcher()
    now = lambda: time.time() + later_s  # noqa: E731
    collect(sites, folder / "out", folder / "cache", fetcher=fetcher, now=now)
    pages = rows(folder / "out", "plain") if (folder / "out" / "plain.jsonl").exists() else []
    refused = {
        "/" + row["where"].split("/", 3)[3]: row["reason"]
        for row in rows(folder / "out", "rejected")
    }
    return pages, refused


def test_a_page_keeps_where_it_is_from_and_why_it_may_be_used(
    tmp_path: Path, server: RudeServer
) -> None:
    server.answers["/robots.txt"] = answer("user-agent: *\nallow: /")
    server.answers["/go"] = answer(status=301, location="/a#top")
    server.answers["/a"] = page("<p>連絡先はtaro@mail.jp、090-1234-5678です。</p>")
    (row,), refused = gathered(tmp_path, sites_of(server, "/go"))
    assert not refused
    record = parse_plain(row, where="x")
    assert "taro@" not in record.text
    assert "090-1234" not in record.text
    assert record.text.startswith("連絡先は")
    assert (record.language, record.domain, record.source) == ("ja", "law", "site.test")
    origin = record.provenance
    assert origin is not None
    assert (origin.url, origin.licence, origin.backend) == (server.url("/a"), "CC-BY-4.0", "web")
    assert origin.time is not None
    assert origin.time.endswith("Z")
    assert (origin.robots or "").startswith(
        f"allowed: {server.url('/robots.txt')} answered 200 on "
    )
    assert record.extra == {"title": "T", "terms": "https://a.jp/terms"}
    (line,) = rows(tmp_path / "out", "log")
    assert (line["step"], line["in"], line["out"]) == ("collect", 1, 1)
    summary = json.loads((tmp_path / "out" / "sites.json").read_text(encoding="utf-8"))
    assert summary["sites"][0]["masked"] == 2


def test_no_unmasked_text_is_ever_on_the_disk(tmp_path: Path, server: RudeServer) -> None:
    server.answers["/a"] = page(
        "<p>Write to taro@mail.jp</p><a href='/b?to=taro@mail.jp'>b</a>", etag='"1"'
    )
    gathered(tmp_path, sites_of(server, "/a", depth=1))
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"taro" in content for content in files)


def test_nothing_is_asked_for_that_is_not_listed_or_not_allowed(
    tmp_path: Path, server: RudeServer
) -> None:
    server.answers |= {
        "/robots.txt": answer("user-agent: *\ndisallow: /d/no"),
        "/d/a": page(
            "<p>start</p><a href=b>1</a><a href=/d/no>2</a><a href=/else>3</a>"
            "<a href='http://other.test/d/'>4</a><a href='//x:y@site.test/d/'>5</a>"
            "<a href='mailto:a@b.jp'>6</a><a href='//[::1'>7</a><a rel=nofollow href=n>8</a>"
            "<a href=to-else>9</a><a href=to-no>10</a><a href='b#part'>11</a>"
        ),
        "/d/b": page("<p>second</p><a href=third>3</a>"),
        "/d/to-else": answer(status=302, location="/else"),
        "/d/to-no": answer(status=302, location="/d/no"),
    }
    pages, refused = gathered(tmp_path, sites_of(server, "/d/a", depth=1))
    assert [row["text"].split()[0] for row in pages] == ["start", "second"]
    assert {path: reason.partition(":")[0] for path, reason in refused.items()} == {
        "/d/no": "robots.txt",
        "/d/to-else": "list",
        "/d/to-no": "robots.txt",
    }
    assert {path.removeprefix("site.test") for path in server.asked} == {
        "/robots.txt", "/.well-known/tdmrep.json", "/d/a", "/d/b", "/d/to-else", "/d/to-no",
    }  # fmt: skip


WRONG = {
    "/404": (answer("x", 404), "status: 404"),
    "/500": (answer("x", 500), "status: 500"),
    "/206": (answer("x", 206, content_type="text/html"), "status: 206"),
    "/304": (answer(status=304), "status: 304"),
    "/type": (answer("x", content_type="image/png"), "type: image/png"),
    "/none": (answer("x", content_type=""), "type: none is given"),
    "/empty": (page("<nav>x</nav>"), "text: none"),
    "/noai": (page("<p>x</p>", x_robots_tag="noai"), "reserved: noai in the header"),
    "/tdm": (page("<p>x</p>", tdm_reservation="1"), "reserved: tdm-reservation in the header"),
    "/meta": (page("<meta name=robots content='noai'><p>x</p>"), "reserved: noai in the page"),
    "/deep": (page("<div>" * 600), "size: nested more than 500 deep"),
    "/large": (page("x" * 2_000_000), "size: more than 1,000,000 bytes"),
    "/cut": (page("x")[:-5], "network: "),
    "/loop": (answer(status=302, location="/loop"), "redirect: more than 5"),
    "/junk": (b"\x16\x03\x01", "network: "),
}


def test_everything_wrong_is_a_reason_and_the_rest_is_collected(
    tmp_path: Path, server: RudeServer
) -> None:
    server.answers |= {path: reply for path, (reply, _) in WRONG.items()}
    server.answers |= {"/good": page("<p>good</p>"), "/same": page("<p>good</p>")}
    sites = sites_of(server, *WRONG, "/good", "/same")
    pages, refused = gathered(tmp_path, sites, make_fetcher(page_bytes=1_000_000))
    assert [row["text"] for row in pages] == ["good"]
    assert refused.keys() == {*WRONG, "/same"}
    for path, (_, reason) in WRONG.items():
        assert refused[path].startswith(reason)
    assert refused["/same"] == f"duplicate: of {server.url('/good')}"
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text(encoding="utf-8"))
    assert statistics["counts"] == {"plain": 1, "rejected": len(WRONG) + 1}


def test_a_host_whose_rules_cannot_be_read_is_asked_for_no_page(
    tmp_path: Path, server: RudeServer
) -> None:
    server.answers |= {"/robots.txt": answer(status=500), "/a": page("a"), "/b": page("b")}
    pages, refused = gathered(tmp_path, sites_of(server, "/a", "/b"))
    assert not pages
    assert set(refused.values()) == {"robots.txt: unreachable (status 500)"}
    assert {path.removeprefix("site.test") for path in server.asked} == {"/robots.txt"}


def test_what_was_read_today_is_not_asked_for_again_and_later_only_if_it_changed(
    tmp_path: Path, server: RudeServer
) -> None:
    stamp = "Mon, 30 Nov 2026 10:00:00 GMT"
    server.answers |= {
        "/a": page("<p>first</p><a href=/b>b</a>", etag='"1"', last_modified=stamp),
        "/b": page("<p>second</p>"),
        "/c": answer(status=404),
    }
    sites = sites_of(server, "/a", "/c", depth=1)
    pages, _ = gathered(tmp_path, sites)
    asked = len(server.asked)
    again, _ = gathered(tmp_path, sites)
    assert again == pages
    assert len(server.asked) == asked
    server.answers |= {
        "/a": answer(status=304),
        "/b": page("<p>changed</p>"),
        "/c": page("<p>new</p>"),
    }
    later, _ = gathered(tmp_path, sites, later_s=90_000)
    assert [row["text"].split()[0] for row in later] == ["first", "new", "changed"]
    conditional = [h for h in server.headers if "if-none-match" in h]
    assert [(h["if-none-match"], h["if-modified-since"]) for h in conditional] == [('"1"', stamp)]
    assert later[0]["provenance"]["time"] > pages[0]["provenance"]["time"]


class _Stop(Fetcher):
    """Is stopped in the middle: what a person's Ctrl+C does at the given request."""

    at = 0

    def _once(self, *args: Any, **names: Any) -> Fetched:
        if self.requests == self.at:
            raise KeyboardInterrupt
        return super()._once(*args, **names)


def test_stopped_anywhere_the_same_call_goes_on_without_asking_twice(
    tmp_path: Path, server: RudeServer
) -> None:
    for number in range(3):
        server.answers[f"/{number}"] = page(f"<p>page {number}</p><a href=/{number + 1}>n</a>")
    sites = sites_of(server, "/0", depth=9)
    whole, refused = gathered(tmp_path / "whole", sites)
    expected = sorted(server.asked)
    for at in range(1, len(expected)):
        server.asked.clear()
        place = tmp_path / str(at)
        stopping = make_fetcher()
        stopping.__class__ = _Stop
        stopping.at = at  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(KeyboardInterrupt):
            gathered(place, sites, stopping)
        assert not (place / "out").exists()
        pages, refused_now = gathered(place, sites)
        assert [row["text"] for row in pages] == [row["text"] for row in whole]
        assert refused_now == refused
        asked = [path for path in server.asked if "robots" not in path and "tdmrep" not in path]
        assert sorted(asked) == [
            path for path in expected if "robots" not in path and "tdm" not in path
        ]


def test_limits_of_pages_and_depth(tmp_path: Path, server: RudeServer) -> None:
    links = "".join(f"<a href=/{n}>x</a>" for n in range(50))
    for number in range(50):
        server.answers[f"/{number}"] = page(f"<p>page {number}</p>{links}")
    pages, _ = gathered(tmp_path / "few", sites_of(server, "/0", depth=3, pages=7))
    assert len(pages) == 7
    pages, _ = gathered(tmp_path / "flat", sites_of(server, "/0"))
    assert len(pages) == 1


def test_a_site_that_fails_again_and_again_is_left(tmp_path: Path, server: RudeServer) -> None:
    paths = [f"/{number}" for number in range(9)]
    server.answers |= dict.fromkeys(paths, b"")
    pages, refused = gathered(tmp_path, sites_of(server, *paths))
    assert not pages
    assert len(refused) == 9
    assert sum(path.startswith("site.test/") and path[10:].isdigit() for path in server.asked) == 5


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_again_and_again_is_left(
    tmp_path: Path, server: RudeServer, status: int
) -> None:
    paths = [f"/{number}" for number in range(9)]
    server.answers |= dict.fromkeys(paths, answer(status=status))
    _, refused = gathered(tmp_path, sites_of(server, *paths))
    assert [reason.partition(":")[0] for reason in refused.values()].count("status") == 5
    assert sum(path[9:] in paths for path in server.asked) == 2 * 5  # each once more, when it says


def test_what_leads_astray_or_to_a_page_is_not_asked_for_again(
    tmp_path: Path, server: RudeServer
) -> None:
    server.answers |= {
        "/d/astray": answer(status=302, location="/else"),
        "/d/go": answer(status=301, location="/d/a"),
        "/d/a": page("<p>a</p>"),
        "/d/who": answer(status=302, location="/d/x?to=taro@mail.jp"),
        "/else": page("<p>else</p>"),
    }
    sites = sites_of(server, "/d/astray", "/d/go", "/d/a")
    pages, refused = gathered(tmp_path, sites)
    assert refused == {
        "/d/astray": "list: leads to a page that is not of the listed site",
        "/d/a": f"duplicate: of {server.url('/d/go')}",
    }
    assert server.asked.count("site.test/d/a") == 1
    asked = len(server.asked)
    assert gathered(tmp_path, sites) == (pages, refused)
    assert len(server.asked) == asked
    wider = sites_of(server, "/d/astray", "/d/go", "/d/a", paths=["/"])
    assert [row["text"] for row in gathered(tmp_path, wider)[0]] == ["else", "a"]
    gathered(tmp_path, sites_of(server, "/d/who"))
    assert not any(b"taro" in path.read_bytes() for path in tmp_path.rglob("*.json"))


def test_what_was_too_large_is_asked_for_again_where_more_is_allowed(
    tmp_path: Path, server: RudeServer
) -> None:
    server.answers["/a"] = page("<p>" + "word " * 1000)
    for most, count in ((1000, 0), (1000, 0), (100_000, 1)):
        sites = sites_of(server, "/a").model_copy(update={"page_bytes": most})
        pages, _ = gathered(tmp_path, sites, make_fetcher(page_bytes=most))
        assert len(pages) == count
    assert server.asked.count("site.test/a") == 2


def test_sites_take_turns_and_are_written_in_their_order(
    tmp_path: Path, server: RudeServer
) -> None:
    clock, waited = [0.0], []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock[0] += seconds

    for host in ("a.test", "b.test"):
        for number in range(3):
            server.answers[f"{host}/{number}"] = page(f"<p>{host} {number}</p>")
    site = {**SITE, "delay_s": 4.0}
    starts = [[server.url(f"/{n}", host=host) for n in range(3)] for host in ("a.test", "b.test")]
    sites = Sites(
        contact="crawl@somewhere.jp", sites=[Site(start=start, **site) for start in starts]
    )
    fetcher = make_fetcher(clock=lambda: clock[0], sleep=sleep)
    pages, _ = gathered(tmp_path, sites, fetcher)
    assert [row["text"] for row in pages] == [f"{h}.test {n}" for h in "ab" for n in range(3)]
    assert sum(waited) < 2 * 4.0 * 5, "one host's pause is the other's turn"
    assert server.asked[:4] != [f"a.test/{n}" for n in range(4)]


def test_an_output_that_is_somebody_elses_is_refused_before_anything_is_asked(
    tmp_path: Path, server: RudeServer
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(BadInputError, match="holds something other"):
        gathered(tmp_path, sites_of(server, "/a"))
    assert not server.asked
