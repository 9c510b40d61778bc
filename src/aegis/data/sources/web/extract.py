"""From a page's bytes to its text, in a process of its own: a page can stall or crash a parser."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from aegis.data.sources.web.fetch import HTML, PDF, PLAIN, RefusedError

_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)[^<>]*?(/?)(?=[<>]|\Z)")
# Elements without an end tag, and those whose end tag may be left out: without another element
# between they do not nest.
_NOT_COUNTED = re.compile(
    "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
    "|p|li|dt|dd|option|optgroup|tr|td|th|tbody|thead|tfoot|colgroup|rp|rt",
    re.IGNORECASE,
)
_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_ON_THE_WEB = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030"}  # what browsers mean
_MEMORY_BYTES = 2 << 30
_MOST_PDF_PAGES = 500


@dataclass(frozen=True)
class PageText:
    """What a page holds.

    Args:
        links: as they are written, those marked nofollow left out.
        metas: (name, content) of its `meta` elements.
        base: what its links are relative to, if the page says so.
    """

    text: str
    title: str = ""
    links: tuple[str, ...] = ()
    metas: tuple[tuple[str, str], ...] = ()
    base: str = ""


def page_text(body: bytes, content_type: str, most_depth: int) -> PageText:
    """Return the text of HTML, plain text or PDF; of HTML the main part, without navigation.

    Raises:
        RefusedError: if it is of another type, binary, or nested too deeply.
    """
    kind, _, rest = content_type.partition(";")
    kind = kind.strip().lower()
    if kind == PDF:
        return _pdf_text(body)
    if kind not in (*HTML, PLAIN):
        raise RefusedError(f"type: {kind[:60] or 'none is given'}", lasting=True)
    text = _decoded(body, rest)
    if "\0" in text or body.startswith(b"%PDF-"):
        raise RefusedError(f"type: {kind} is binary", lasting=True)
    return PageText(text) if kind == PLAIN else _html_text(text, most_depth)


def depth(html: str) -> int:
    """Return how deep the elements are nested, at most: resiliparse is quadratic in it."""
    deepest = now = drawings = 0
    for end, name, closed in _TAG.findall(html):
        if name.lower() in ("svg", "math"):
            drawings = max(0, drawings - 1) if end else drawings + 1
        if _NOT_COUNTED.fullmatch(name) or (closed and drawings):  # only there `/>` ends an element
            continue
        now = max(0, now - 1) if end else now + 1
        deepest = max(deepest, now)
    return deepest


def _html_text(html: str, most_depth: int) -> PageText:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    if depth(html) > most_depth:
        raise RefusedError(f"size: nested more than {most_depth} deep", lasting=True)
    tree = HTMLTree.parse(html)
    document: Any = tree.document
    anchors = document.query_selector_all("a[href]")
    metas = document.query_selector_all("meta[name][content]")
    base = document.query_selector("base[href]")
    return PageText(
        extract_plain_text(tree, main_content=True, alt_texts=False),
        (tree.title or "").strip(),
        tuple(_value(a, "href") for a in anchors if "nofollow" not in _value(a, "rel").lower()),
        tuple((_value(meta, "name"), _value(meta, "content")) for meta in metas),
        _value(base, "href") if base else "",
    )


def _value(element: Any, name: str) -> str:
    return element.getattr(name, "") or ""


def _pdf_text(body: bytes) -> PageText:
    try:
        import pypdfium2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RefusedError("type: application/pdf; to read it: pip install pypdfium2") from error
    try:
        with contextlib.closing(pypdfium2.PdfDocument(io.BytesIO(body))) as document:
            pages = range(min(len(document), _MOST_PDF_PAGES))
            texts = [document[number].get_textpage().get_text_bounded() for number in pages]
    except pypdfium2.PdfiumError as error:
        raise RefusedError("type: application/pdf is damaged or locked", lasting=True) from error
    return PageText("\n\n".join(texts).replace("\r\n", "\n"))


def _decoded(body: bytes, parameters: str) -> str:
    """Decode by the file's own mark, the header, the `meta` element or the look of it."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    match = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", parameters, re.IGNORECASE)
    marked = next((code for mark, code in _MARKS.items() if body.startswith(mark)), None)
    named = map_encoding_to_html5(match[1], False) if match else None  # no codec of Python's own
    seen = detect_encoding(body, from_html_meta=True) or "utf-8"
    for encoding in filter(None, (marked, named, seen)):
        with contextlib.suppress(LookupError, UnicodeError):
            return body.decode(_ON_THE_WEB.get(encoding, encoding)).removeprefix("\ufeff")
    return bytes_to_str(body, _ON_THE_WEB.get(seen, seen), "replace")


class Extractor:
    """Runs `page_text` in one other process, limited in time and memory; begun anew if it fails."""

    def __init__(
        self,
        *,
        most_depth: int,
        seconds: float = 20.0,
        extract: Callable[[bytes, str, int], PageText] = page_text,
    ) -> None:
        self.most_depth, self.seconds, self.extract = most_depth, seconds, extract
        self._process: BaseProcess | None = None

    def _begin(self) -> BaseProcess:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.extract), daemon=True)
        process.start()
        theirs.close()
        self._pipe.recv_bytes()  # it has started; that takes what it takes
        return process

    def __call__(self, body: bytes, content_type: str) -> PageText:
        """Return what `page_text` does.

        Raises:
            RefusedError: as it does, or if it takes too long or dies.
        """
        try:
            self._process = self._process or self._begin()
            self._pipe.send((body, content_type, self.most_depth))
            if not self._pipe.poll(self.seconds):
                self.close()
                raise RefusedError(f"time: not read in {self.seconds:g} s", lasting=True)
            answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            self.close()
            raise RefusedError("type: the parser fails on it", lasting=True) from error
        if "reason" in answer:
            raise RefusedError(answer["reason"], lasting=answer["lasting"])
        metas = tuple((name, content) for name, content in answer["metas"])
        return PageText(**{**answer, "links": tuple(answer["links"]), "metas": metas})

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection, extract: Callable[[bytes, str, int], PageText]) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a stop is its parent's to make
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    pipe.send_bytes(b"ready")
    for request in _requests(pipe):
        try:
            answer: dict[str, Any] = asdict(extract(*request))
        except RefusedError as error:
            answer = {"reason": error.reason, "lasting": error.lasting}
        except Exception as error:
            answer = {"reason": f"type: the parser fails on it ({type(error).__name__})"}
            answer["lasting"] = True
        # JSON: what a page made of the parser must not reach further
        pipe.send_bytes(json.dumps(answer).encode())


def _requests(pipe: Connection) -> Iterator[tuple[bytes, str, int]]:
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield pipe.recv()
