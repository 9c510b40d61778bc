from __future__ import annotations

from pathlib import Path

from aegis.data.sources.web.visits import Visit, VisitStore

VISIT = Visit(
    "https://a.jp/", "https://a.jp/b", 1.5, text="文", links=("https://a.jp/c",), etag='"1"'
)


def test_a_visit_is_read_back_as_it_was(tmp_path: Path) -> None:
    store = VisitStore(tmp_path)
    assert store.get(VISIT.url) is None
    store.put(VISIT)
    assert VisitStore(tmp_path).get(VISIT.url) == VISIT


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    store = VisitStore(tmp_path)
    store.put(VISIT)
    (path,) = tmp_path.rglob("*.json")
    for text in ("", "{", "[]", '{"url": "x"}', path.read_text()[:40]):
        path.write_text(text, encoding="utf-8")
        assert store.get(VISIT.url) is None
