from __future__ import annotations

import json

import pytest

from aegis.data.sources.web.fetch import RefusedError
from aegis.data.sources.web.reservations import TdmFile, directives, require_unreserved

RESERVED = [
    ("X-Robots-Tag", "noai"),
    ("x-robots-tag", "noindex, nofollow"),
    ("X-Robots-Tag", "NONE"),
    ("X-Robots-Tag", "max-snippet: 20, noarchive"),
    ("X-Robots-Tag", "otherbot: noindex, aegis-collect: noai"),
    ("X-Robots-Tag", "unavailable_after: 1 Jan 2030 00:00:00 GMT, noai"),
    ("X-Robots-Tag", "unavailable_after: Wed, 3 Jan 2030 10:00:00 GMT, noai"),
    ("tdm-reservation", "1"),
    ("TDM-Reservation", "yes"),
    ("robots", "noai, noimageai"),
    ("AEGIS-Collect", "noindex"),
]
FREE = [
    ("X-Robots-Tag", "nofollow"),
    ("X-Robots-Tag", "otherbot: noai, noindex"),
    ("X-Robots-Tag", "max-image-preview: none"),
    ("tdm-reservation", "0"),
    ("robots", "index, follow"),
    ("description", "noai"),
    ("tdm-policy", "https://somewhere.jp/policy"),
]


@pytest.mark.parametrize("row", RESERVED)
def test_reserved_text_is_refused_for_the_day(row: tuple[str, str]) -> None:
    with pytest.raises(RefusedError, match=r"^reserved: .* in the header") as caught:
        require_unreserved([("Content-Type", "text/html"), row], "header")
    assert caught.value.lasting


@pytest.mark.parametrize("row", FREE)
def test_what_is_said_to_others_or_of_other_things_reserves_nothing(row: tuple[str, str]) -> None:
    require_unreserved([row], "page")


def test_a_directive_counts_until_the_next_bot_is_named() -> None:
    assert directives("all, a: noindex, noarchive, *: nofollow") == ["all", "nofollow"]


TDM = [
    {"location": "/open/*", "tdm-reservation": 0},
    {"location": "/closed/", "tdm-reservation": 1, "tdm-policy": "https://somewhere.jp/p"},
    {"location": "/*.pdf$", "tdm-reservation": "1"},
]


@pytest.mark.parametrize(
    ("path", "reserved"),
    [("/open/a", False), ("/closed/a", True), ("/open/a.pdf", True), ("/open/a.pdf?x", False)],
)
def test_places_of_tdmrep_json(path: str, reserved: bool) -> None:
    file = TdmFile(json.dumps(TDM))
    if reserved:
        with pytest.raises(RefusedError, match=r"reserved: tdmrep\.json"):
            file.require_unreserved(f"https://somewhere.jp{path}")
    else:
        file.require_unreserved(f"https://somewhere.jp{path}")


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1]", '[{"location": "/"}]', '[{"tdm-reservation": 1}]', "[" * 99999),
        *('[{"location": "https://somewhere.jp/a", "tdm-reservation": 1}]', '"/"'),
        *('[{"location": "a/*", "tdm-reservation": 1}]', '[{"location": 5}]'),
    ],
)
def test_a_file_that_cannot_be_understood_reserves_everything(text: str) -> None:
    with pytest.raises(RefusedError, match="cannot be understood"):
        TdmFile(text).require_unreserved("https://somewhere.jp/")


def test_a_location_over_lines_allows_nothing_else() -> None:
    rows = [
        {"location": "/a\nAllow: /", "tdm-reservation": 1},
        {"location": "/", "tdm-reservation": 1},
    ]
    with pytest.raises(RefusedError):
        TdmFile(json.dumps(rows)).require_unreserved("https://somewhere.jp/a")


def test_without_a_file_nothing_is_reserved() -> None:
    TdmFile("").require_unreserved("https://somewhere.jp/")
