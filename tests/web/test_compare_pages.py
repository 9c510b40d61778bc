from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from aegis.web.compare_pages import differing, settings_of, together
from aegis.web.curves import HEIGHT, Curve
from tests.web.runs import judged, measured, new_run, told


def test_settings_that_differ_are_named_with_both_values(runs: Path) -> None:
    first = new_run(runs, settings="base: a\ntrain: {lr: 0.1, epochs: 2}\nseeds: [1]\n")
    second = new_run(runs, settings="base: a\ntrain: {lr: 0.2, epochs: 2}\nseeds: [2]\nx: null\n")
    assert list(differing(settings_of(first.folder), settings_of(second.folder))) == [
        ("seeds", "[1]", "[2]"),
        ("train.lr", "0.1", "0.2"),
        ("x", "–", "None"),
    ]
    assert settings_of(runs) == {}


def test_curves_of_both_share_their_axes() -> None:
    key, alone = ("sft", "loss"), ("sft", "kl")
    low, high = Curve([(0, 0.0), (10, 0.0)]), Curve([(0, 4.0), (20, 2.0)])
    kl, loss = together({key: low}, {key: high, alone: high})
    assert (loss.low, loss.high, loss.lasts) == ("0", "4", ("0", "2"))
    assert loss.lines[0] == f"8.0,{HEIGHT - 8}.0 320.0,{HEIGHT - 8}.0"
    assert loss.lines[1].startswith("8.0,8.0 ")
    assert (kl.lines[0], kl.lasts[0]) == ("", "–")


def test_two_runs_stand_side_by_side(browser: TestClient, runs: Path) -> None:
    first, second = new_run(runs, settings="base: '<b>one'\n"), new_run(runs)
    judged(first)
    told(first, measured(1, loss=1.0), measured(2, loss=2.0, hidden=1.0))
    address = f"/ui/compare?a={first.session_id}&b={second.session_id}"
    text = browser.get(address).text
    for words in ("&lt;b&gt;one", ">tiny<", "0.803", "2 · –"):
        assert words in text
    assert text.count("<polyline") == 1
    assert first.session_id in browser.get(f"/ui/runs/{second.session_id}").text
    assert browser.get("/ui/compare?a=none&b=none").status_code == 404
    assert browser.get("/ui/compare").status_code == 404
