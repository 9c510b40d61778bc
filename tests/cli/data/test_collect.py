from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.data.sources.web import collect as module
from aegis.errors import AegisError, BadInputError, StoppedError
from tests.cli.test_serve import called
from tests.data.sources.web.rude import answer, make_fetcher, page, rude_server

SITES = """
contact: crawl@somewhere.jp
sites:
  - start: [http://site.test:PORT/a, http://site.test:PORT/b]
    licence: CC-BY-4.0
    terms: https://a.jp/terms
"""


@pytest.fixture
def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(module, "Fetcher", lambda contact, **_: make_fetcher(contact=contact))
    with rude_server() as server:
        server.answers |= {"/a": page("<p>text</p>"), "/b": answer(status=404)}
        path = tmp_path / "sites.yaml"
        path.write_text(SITES.replace("PORT", str(server.port)), encoding="utf-8")
        yield path


def test_pages_and_refusals_are_told_and_written(tmp_path: Path, sites: Path) -> None:
    done = called("data", "collect", str(sites), "-o", str(tmp_path / "out"), "--json")
    told = json.loads(done.stdout)
    assert (told["pages"], told["rejected"]) == (1, {"status": 1})
    assert told["sites"][0]["licence"] == "CC-BY-4.0"
    assert (tmp_path / "out" / "plain.jsonl").exists()
    assert (tmp_path / "out.cache" / "pages").is_dir()
    shown = called("data", "collect", str(sites), "-o", str(tmp_path / "out")).stdout
    assert "CC-BY-4.0" in shown


def test_a_collection_without_a_page_is_a_failure(tmp_path: Path, sites: Path) -> None:
    text = sites.read_text(encoding="utf-8")
    sites.write_text(text.replace("/a, ", "/none, "), encoding="utf-8")
    done = called("data", "collect", str(sites), "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, AegisError)
    assert done.exception.exit_code == 1
    assert "no page could be collected" in str(done.exception)
    assert (tmp_path / "out" / "rejected.jsonl").exists()


def test_a_site_without_a_licence_is_refused_and_nothing_is_written(
    tmp_path: Path, sites: Path
) -> None:
    text = sites.read_text(encoding="utf-8")
    sites.write_text(text.replace("    licence: CC-BY-4.0\n", ""), encoding="utf-8")
    done = called("data", "collect", str(sites), "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, BadInputError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sites.yaml"]


def test_a_stop_says_where_what_was_read_is(
    tmp_path: Path, sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "collect", stop)
    done = called("data", "collect", str(sites), "-o", str(tmp_path / "out"))
    assert isinstance(done.exception, StoppedError)
    assert "out.cache" in str(done.exception)
