"""Several judges of the same records side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aegis.evaluate.paired import FlipTest

_MEASURES = ("macro_f1", "miss_rate", "over_refusal_rate", "unsafe_auc")
JUDGE_COLUMNS = (
    "judge",
    "macro F1",
    "miss rate",
    "over-refusal",
    "AUC, unsafe / harmless",
    "right only candidate / only this",
)


def judge_rows(
    base: dict[str, Any], candidate: dict[str, Any], peers: Sequence[dict[str, Any]]
) -> list[tuple[str, ...]]:
    """Format what each judge makes of the same records: the base's letters, the peers, and the
    candidate without its threshold and with it."""
    named = [(f"base: {base['judge']}", base)]
    for peer in peers:
        learned = f", {peer['learned']:,} records" if "learned" in peer else ""
        named.append((f"{peer['judge']}{learned}", peer))
    if candidate.get("most_probable"):
        named.append(("candidate, most probable decision", candidate | candidate["most_probable"]))
    named.append(("candidate", candidate))
    rows = [
        (name, *(" ".join(format_measure(judge.get(key, {}), "value")) for key in _MEASURES))
        for name, judge in named
    ]
    counts = [paired(judge["items"], candidate["items"]) for _, judge in named]
    against = [f"{one['gained']} / {one['lost']} (p = {one['p']:.2g})" for one in counts]
    own = sum(name.startswith("candidate") for name, _ in named)
    against[-own:] = [""] * own
    return [(*row, told) for row, told in zip(rows, against, strict=True)]


def paired(base: Sequence[dict[str, Any]], candidate: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count the items that only one of the two got right; p is the exact McNemar test's.

    Raises:
        ValueError: if the two did not judge the same items.
    """
    gained = lost = 0
    for one, two in zip(base, candidate, strict=True):
        if one["id"] != two["id"]:
            raise ValueError(
                f"the two results judge different items: {one['id']!r} and {two['id']!r}"
            )
        first, second = (item["predicted"] == item["truth"] for item in (one, two))
        gained += second and not first
        lost += first and not second
    return {"gained": gained, "lost": lost, "p": FlipTest(len(base), gained, lost).p}


def format_measure(measure: dict[str, Any], key: str) -> tuple[str, str]:
    """Return value and interval as text; "absent" where the data could not give it."""
    value, interval = measure.get(key), measure.get("interval")
    if value is None:
        return "absent", ""
    return f"{value:.3f}", f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
