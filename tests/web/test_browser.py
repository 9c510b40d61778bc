"""The pages in a real browser: Debian's Chromium, driven by Playwright, checked by axe-core."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis.protocol.decisions import Decision
from aegis.runs.events import LogMessage
from aegis.serve.server import Server, bind
from aegis.web.app import with_pages
from tests.serve.fakes import BODIES, FakeEngine, House, house, thinking
from tests.serve.live import soon
from tests.serve.test_reviews import ask
from tests.web.runs import judged, measured, new_run, told

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium"),
]
playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright here: pip install 'aegis-so8t[browser]'"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="no axe-core here: pip install 'aegis-so8t[browser]'",
)
OTHERS = ("/ui/audit", "/ui/ask", "/ui/judge", "/ui/review", "/ui/nothing")
LANGUAGES = {"en": "en-GB", "ja": "ja-JP"}


@contextlib.contextmanager
def listening(made: House, port: int = 0) -> Iterator[str]:
    """Serve the house and its pages until the end of the block, on this port or any."""
    bound = bind("127.0.0.1", port)
    bound.listen(16)
    server = Server(made.app, made.service, grace_s=0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    soon(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture
def made(tmp_path: Path, runs: Path) -> Iterator[House]:
    """A server with the pages, a run that has measured something, and a case that waits."""
    made = house(tmp_path, FakeEngine())
    made.app = with_pages(made.app, made.service, runs)
    with contextlib.closing(made.cases):
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a page in a browser of its own; what it complains of fails the test."""
    with contextlib.ExitStack() as stack:
        complaints: list[str] = []

        def open_page(language: str = "en", **options: Any) -> Any:
            context = chromium.new_context(locale=LANGUAGES[language], **options)
            stack.callback(context.close)
            page = context.new_page()
            page.add_init_script(
                "document.addEventListener('securitypolicyviolation', "
                "(event) => console.error('policy: ' + event.violatedDirective))"
            )
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
            page.on(
                "console",
                lambda line: complaints.append(line.text) if "policy" in line.text else None,
            )
            return page

        yield open_page
        assert not complaints


def serious(page: Any) -> list[str]:
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_by_everybody_and_on_a_telephone(
    made: House, runs: Path, opened: Callable[..., Any], language: str, scheme: str
) -> None:
    session = new_run(runs, settings="base: other")
    judged(session)
    told(session, measured(1, loss=4.0), measured(2, loss=2.0))
    beside = f"/ui/compare?a={session.session_id}&b={new_run(runs).session_id}"
    told(session, LogMessage(text="the machine is hot", level="warning"))
    ask(made.cases, 1, "May I stop my pills?")
    viewport = {"width": 390, "height": 800}
    page = opened(language, color_scheme=scheme, viewport=viewport)
    with listening(made) as url:
        for path in ("/ui/runs", f"/ui/runs/{session.session_id}", *OTHERS, beside):
            page.goto(url + path)
            assert page.locator("html").get_attribute("lang") == language
            if path == "/ui/review":
                page.keyboard.press("j")
                page.wait_for_selector("textarea")
            assert not serious(page), path
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_a_run_is_followed_and_a_lost_server_is_told_and_found_again(
    made: House, runs: Path, opened: Callable[..., Any]
) -> None:
    session, page = new_run(runs), opened()
    with listening(made) as url:
        page.goto(f"{url}/ui/runs/{session.session_id}")
        told(session, measured(1, loss=4.0), measured(2, loss=3.0))
        told(session, LogMessage(text="it got hot", level="warning"))
        page.wait_for_selector("text=it got hot", timeout=20_000)
        page.wait_for_selector("svg polyline", timeout=20_000)
    page.wait_for_selector("#connection:has-text('does not answer')", timeout=30_000)
    with listening(made, int(url.rsplit(":", 1)[1])):
        page.wait_for_selector("#connection:has-text('answers again')", timeout=40_000)
        shutil.rmtree(session.folder)
        page.wait_for_selector("text=moved or removed", timeout=20_000)


def test_cases_are_reviewed_by_keyboard_alone(made: House, opened: Callable[..., Any]) -> None:
    ids, page = [ask(made.cases, number, f"Question {number}") for number in (1, 2)], opened()
    with listening(made) as url:
        page.goto(f"{url}/ui/review")
        page.keyboard.press("j")
        page.wait_for_selector("text=Question 1")
        page.wait_for_load_state()  # keys are heard from here on
        page.keyboard.press("a")
        page.focus("#answer")
        page.keyboard.type("You may, ad libitum.")  # letters that are keys elsewhere
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("text=Question 2")
        page.wait_for_load_state()  # keys are heard from here on
        assert made.cases.get(ids[0]).answer == "You may, ad libitum."
        page.keyboard.press("u")
        page.wait_for_selector("text=Question 1")
        page.wait_for_load_state()  # keys are heard from here on
        assert made.cases.get(ids[0]).answer is None
        page.keyboard.press("j")
        page.wait_for_selector("text=Question 2")
        page.wait_for_load_state()  # keys are heard from here on
    page.fill("#answer", "typed while the server is gone")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#connection:has-text('does not answer')")
    assert page.input_value("#answer") == "typed while the server is gone"


def test_answers_tell_their_decision_and_never_what_was_thought(
    made: House, opened: Callable[..., Any]
) -> None:
    private = [f"secret thought {name}" for name in BODIES]
    bodies = dict(zip(BODIES, private, strict=True))
    made.engine.says = lambda prompt, seed: thinking("Paris, it is.", bodies)
    made.engine.judges = lambda prompt: Decision["ESCALATION" if "pills" in prompt else "ALLOW"]
    page, traffic = opened(), list[bytes]()
    page.on("response", lambda response: traffic.append(response.body()))
    with listening(made) as url:
        page.goto(f"{url}/ui/ask")
        for number, question in enumerate(("Which city?", "<b>May I stop my pills?</b>"), 1):
            page.fill("#question", question)
            page.keyboard.press("Control+Enter")
            page.wait_for_selector(f"#talk article:nth-child({2 * number})", timeout=20_000)
        shown = page.locator("#talk").inner_text()
        for words in ("Paris, it is.", "ALLOW · rule: most probable", "<b>May I", "ESCALATION"):
            assert words in shown
        (case,) = made.cases.list()
        made.cases.resolve(case.id, "Ask your doctor.", reviewer="mai")
        page.wait_for_selector("text=Ask your doctor.", timeout=20_000)
        page.goto(f"{url}/ui/review")
        stored = "[document.cookie, ...Object.entries({...localStorage, ...sessionStorage})].join()"
        everything = b"\n".join([*traffic, page.evaluate(stored).encode(), shown.encode()])
    assert made.engine.thought == 2
    assert len(traffic) > 6
    assert b"Paris, it is." in everything
    assert b"secret" not in everything


def test_verdicts_are_sorted_filtered_and_moved_by_the_threshold(
    made: House, opened: Callable[..., Any], tmp_path: Path
) -> None:
    made.engine.judges = lambda prompt: Decision["ALLOW" if "a" in prompt else "DENY"]
    file, page = tmp_path / "prompts.csv", opened()
    file.write_text("prompt,decision\nab,ALLOW\nx,DENY\nca,REFUSE\n")
    with listening(made) as url:
        page.goto(f"{url}/ui/judge")
        page.set_input_files("#file", str(file))
        page.wait_for_function("document.getElementById('prompts').value !== ''")
        page.click("main button")
        page.wait_for_selector("#effect:has-text('allowed: 2 / 3; 1 of the allowed')")
        page.fill("#threshold", "0.8")
        assert page.inner_text("#effect").startswith("allowed: 0 / 3; 0 of the allowed")
        page.click("th:nth-child(1) .sort")
        page.click("th:nth-child(1) .sort")
        cells = page.locator("#verdicts tbody tr:not([hidden]) td:first-child")
        assert cells.all_inner_texts() == ["x", "ca", "ab"]
        page.fill("#filter", "allow")
        assert cells.all_inner_texts() == ["ca", "ab"]
        with page.expect_download() as waiting:
            page.click("#download")
        lines = Path(waiting.value.path()).read_text().splitlines()
        assert [json.loads(line)["prompt"] for line in lines] == ["ca", "ab"]
        file.write_bytes(b"\xff" * 200_000)
        page.set_input_files("#file", str(file))
        page.wait_for_selector("#file-problem:has-text('too large')")
        file = tmp_path / "other.csv"
        file.write_bytes(b"\xff" * 20)
        page.set_input_files("#file", str(file))
        page.wait_for_selector("#file-problem:has-text('no text')")


SHAPES = [
    "<script>alert({n})</script>", "<img src=x onerror=alert({n})>", "<svg onload=alert({n})>",
    "\"'><script>alert({n})</script>", "{{{{ {n} * 7 }}}}", "{{% raw %}}{n}",
    "javascript:alert({n})",
    "</pre><iframe srcdoc='<script>alert({n})</script>'>", "\u202e{n}\u2066", "\x00\x1b[2J{n}",
    "<style>*{{display:none}}</style>{n}", "<base href=//x.example>{n}", "&lt;b&gt;{n}",
    "<a href=javascript:alert({n})>x</a>", "<form action=//x.example><button>{n}",
    "</textarea><script>alert({n})</script>", "<math><mtext><img src onerror=alert({n})>",
    "<meta http-equiv=refresh content='0;url=//x.example'>{n}", "\ufeff\u2028{n}", "<!--{n}",
]  # fmt: skip


@pytest.mark.slow
def test_two_hundred_hostile_texts_are_shown_as_text(
    made: House, runs: Path, opened: Callable[..., Any]
) -> None:
    payloads = [shape.format(n=n) for n in range(10) for shape in SHAPES]
    assert len(set(payloads)) == 200
    session = new_run(runs)
    for number, text in enumerate([*payloads, "<b>" * 10_000]):
        ask(made.cases, number, text)
        told(session, LogMessage(text=text, level="warning"), measured(1, **{text: 1.0}))
    for text in ("<script>alert(1)<script>", "%2e%2e", "a b#c?d", "\u202e'\"", "&amp;{{7*7}}"):
        (runs / f"aegis_v2_{text}").mkdir()
    page = opened()
    with listening(made) as url:
        page.goto(f"{url}/ui/runs/{session.session_id}")
        assert page.locator(".warning").count() >= 200
        page.goto(f"{url}/ui/runs")
        hrefs = [a.get_attribute("href") for a in page.locator("tbody a").all()]
        assert len(hrefs) == 6
        for href in hrefs:
            page.goto(url + href)
            assert page.locator("h1").inner_text().startswith("aegis_v2_")
        page.goto(f"{url}/ui/review")
        with page.expect_navigation():
            page.keyboard.press("j")
        for _ in range(201):
            assert page.locator("pre *").count() == 1  # the bdi, and nothing of the text's own
            with page.expect_navigation():
                page.click("text=Pass on")
