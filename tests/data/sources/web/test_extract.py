from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import pytest

from aegis.data.sources.web.extract import Extractor, PageText, depth, page_text
from aegis.data.sources.web.fetch import RefusedError

JAPANESE = "行政手続法は、処分に関する手続を定める。"
HTML = f"<title>法</title><main><p>{JAPANESE}</p></main>"


def text_of(html: str, most_depth: int = 100) -> PageText:
    return page_text(html.encode(), "text/html; charset=utf-8", most_depth)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (HTML.encode(), "text/html; charset=utf-8"),
        (HTML.encode(), "text/html"),
        (HTML.encode("utf-8-sig"), "text/html; charset=Shift_JIS"),
        (HTML.encode("utf-16"), "text/html"),
        (HTML.encode("shift_jis"), 'TEXT/HTML;charset="Shift_JIS"'),
        (HTML.encode("euc-jp"), "text/html; charset=EUC-JP"),
        (("<meta charset=shift_jis>" + HTML).encode("shift_jis"), "application/xhtml+xml"),
        (("<meta charset=euc-jp>" + HTML).encode("euc-jp"), "text/html; charset=utf-8"),
        (("<meta charset=iso-2022-jp>" + HTML).encode("iso-2022-jp"), "text/html"),
        (HTML.encode(), "text/html; charset=no-such-code"),
    ],
)
def test_japanese_in_every_encoding(body: bytes, content_type: str) -> None:
    page = page_text(body, content_type, 100)
    assert page.text == JAPANESE
    assert page.title == "法"


def test_a_damaged_byte_costs_one_character_and_not_the_page() -> None:
    body = HTML.encode("shift_jis").replace("手続を".encode("shift_jis"), b"\x85\xff\xff")
    assert "行政手続法は" in page_text(body, "text/html; charset=Shift_JIS", 100).text


def test_shift_jis_is_what_windows_calls_so() -> None:
    body = "㈱①髙﨑".encode("cp932")
    assert page_text(body, "text/plain; charset=shift_jis", 100).text == "㈱①髙﨑"


def test_navigation_scripts_and_comments_are_no_text() -> None:
    page = text_of(
        "<nav><a href=/n>Menu</a></nav><main><p>Body text</p></main><script>x()</script>"
        "<style>p{}</style><!-- no --><noscript>js</noscript><footer>foot</footer>"
    )
    assert page.text == "Body text"


def test_links_metas_and_base() -> None:
    page = text_of(
        "<base href='/b/'><meta name=robots content=noai><meta property=og content=x>"
        "<a href='x'>1</a><a href='y' rel='nofollow ugc'>2</a><a>3</a><a href='z'>4</a>"
    )
    assert page.links == ("x", "z")
    assert page.metas == (("robots", "noai"),)
    assert page.base == "/b/"


def test_text_that_is_plain_stays_as_it_is() -> None:
    assert page_text(b"<b>a</b>\n", "text/plain", 9).text == "<b>a</b>\n"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"a", ""),
        (b"a", "image/png"),
        (b"a", "application/json"),
        (b"a", "application/octet-stream"),
        (b"a\0b", "text/html"),
        (b"%PDF-1.7", "text/plain"),
        (b"a", "text/html2"),
    ],
)
def test_other_types_and_binary_are_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(RefusedError, match=r"^type: "):
        page_text(body, content_type, 100)


def test_depth_counts_what_nests() -> None:
    assert depth("<div><p>a<br><img><p>b</div>" * 1000) == 1
    assert depth("<ul>" + "<li>x" * 1000) == 1
    assert depth("<div><section></section></div></div></div><a>") == 2
    assert depth("<DIV>" * 40) == 40
    icon = "<svg><g><path d='M0'/><use href='#a' /></g></svg>"
    assert depth(f"<main>{icon * 1000}</main>") == 3
    assert depth("<path/>" * 40) == 40, "outside a drawing the slash ends nothing"
    assert depth("a < b and <3 <!-- <>") == 0


def test_deep_nesting_is_refused_before_it_is_parsed() -> None:
    assert text_of("<div>" * 100 + "x").text == "x"
    begun = time.monotonic()
    with pytest.raises(RefusedError, match="nested more than 100 deep"):
        text_of("<div>" * 200_000)
    assert time.monotonic() - begun < 5


def stall_or_die(body: bytes, content_type: str, most_depth: int) -> PageText:
    if body == b"stall":
        time.sleep(60)
    if body == b"die":
        os._exit(1)
    if body == b"fail":
        raise ValueError("odd")
    if body == b"memory":
        bytearray(4 << 30)
    return page_text(body, content_type, most_depth)


@pytest.fixture(scope="module")
def extractor() -> Iterator[Extractor]:
    extractor = Extractor(most_depth=100, seconds=1.5, extract=stall_or_die)
    yield extractor
    extractor.close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"stall", "time: not read in 1.5 s"),
        (b"die", "type: the parser fails on it$"),
        (b"fail", r"the parser fails on it \(ValueError\)"),
        pytest.param(
            b"memory",
            r"\(MemoryError\)",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no limit on memory"),
        ),
    ],
)
def test_a_page_that_breaks_the_parser_breaks_nothing_else(
    extractor: Extractor, body: bytes, message: str
) -> None:
    with pytest.raises(RefusedError, match=message) as caught:
        extractor(body, "text/html")
    assert caught.value.lasting
    page = extractor(HTML.encode(), "text/html")
    assert page == page_text(HTML.encode(), "text/html", 100)


def test_what_the_parser_refuses_is_told_from_the_other_process(extractor: Extractor) -> None:
    with pytest.raises(RefusedError, match=r"^type: image/png$"):
        extractor(b"", "image/png")


def test_pdf_is_read_where_its_package_is_installed() -> None:
    body = (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R"
        b"/Resources<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>endobj\n"
        b"4 0 obj<</Length 37>>stream\nBT /F 12 Tf 20 100 Td (Hello) Tj ET \nendstream endobj\n"
        b"trailer<</Root 1 0 R>>\n%%EOF"
    )
    try:
        import pypdfium2  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(RefusedError, match="pip install pypdfium2"):
            page_text(body, "application/pdf", 100)
        return
    assert page_text(body, "application/pdf", 100).text == "Hello"
    with pytest.raises(RefusedError, match="damaged or locked"):
        page_text(b"%PDF-1.4 nothing", "application/pdf", 100)
