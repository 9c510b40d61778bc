"""The report of a run: base and candidate side by side, in HTML with its pictures inside, and in
Markdown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from matplotlib.figure import Figure
from scipy.stats import binomtest

from aegis.protocol.decisions import NAMES

MEASURES = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("false_positive_rate", "false positive rate (miss rate)"),
    ("over_refusal_rate", "over-refusal rate"),
)


@dataclass(frozen=True)
class Row:
    """One measure of base and candidate as shown."""

    name: str
    base: str
    base_interval: str
    candidate: str
    candidate_interval: str


def comparison_rows(base: dict[str, Any], candidate: dict[str, Any]) -> list[Row]:
    """The measures that are always reported together, formatted."""

    def row(name: str, one: dict[str, Any], two: dict[str, Any], key: str = "value") -> Row:
        return Row(name, *shown(one, key), *shown(two, key))

    rows = [row(name, base[key], candidate[key]) for key, name in MEASURES]
    rows += [
        row(f"F1 {name}", base["per_class"][name], candidate["per_class"][name], "f1")
        for name in NAMES
    ]
    for language in candidate["per_language"]:
        one, two = (
            results["per_language"].get(language, {}).get("macro_f1", {})
            for results in (base, candidate)
        )
        rows.append(row(f"macro F1, {language}", one, two))
    for key, name in (("nll", "negative log likelihood"), ("brier", "Brier score"), ("ece", "ECE")):
        rows.append(Row(name, f"{base[key]:.3f}", "", f"{candidate[key]:.3f}", ""))
    return rows


def paired(base: Sequence[dict[str, Any]], candidate: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items that only one of the two got right, and the exact McNemar p-value (binomial test on the
    discordant ones).

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
        gained, lost = gained + (second and not first), lost + (first and not second)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {"gained": gained, "lost": lost, "p": float(p)}


def draw_confusion(path: Path, results: dict[str, Any], *, title: str) -> None:
    """Confusion matrix with counts, coloured by the share of each true class."""
    counts = np.array(results["confusion"]["counts"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        axes.text(
            j,
            i,
            str(count),
            ha="center",
            va="center",
            color="white" if shares[i, j] > 0.6 else "black",
        )
    axes.set_xticks(range(len(NAMES)), NAMES, rotation=20)
    axes.set_yticks(range(len(NAMES)), NAMES)
    axes.set(xlabel="predicted", ylabel="truth", title=title)
    figure.savefig(path, dpi=110)


def render(
    *,
    session_id: str,
    base_spec: str,
    base: dict[str, Any],
    candidate: dict[str, Any],
    certificate: dict[str, Any],
    statistics: dict[str, Any],
    decision_figures: Sequence[Path],
    training_figures: Sequence[Path],
) -> tuple[str, str]:
    """Return the report as (HTML, Markdown)."""
    rows = comparison_rows(base, candidate)
    comparison = paired(base["items"], candidate["items"])
    columns = sorted({key for counts in statistics["splits"].values() for key in counts})
    data = {
        "columns": columns,
        "rows": [
            {
                "split": split,
                "total": sum(counts.values()),
                "counts": [counts.get(key, 0) for key in columns],
            }
            for split, counts in statistics["splits"].items()
        ],
        "rejected": sorted(statistics["rejected"].items(), key=lambda item: -item[1]),
    }
    certificate = {
        **certificate,
        **{key: f"{certificate[key]:.2e}" for key in ("max_abs_logit_difference", "kl")},
    }
    loader = FileSystemLoader(Path(__file__).parent)
    template = Environment(
        loader=loader, autoescape=select_autoescape(["html", "j2"])
    ).get_template("report.html.j2")
    html = template.render(
        session_id=session_id,
        base=base_spec,
        n=candidate["n"],
        confidence=f"{100 * candidate['confidence']:g}",
        base_judge=base["judge"],
        candidate_judge=candidate["judge"],
        rows=rows,
        paired={**comparison, "p": f"{comparison['p']:.2g}"},
        figures={"decisions": _inline(decision_figures), "training": _inline(training_figures)},
        certificate=certificate,
        data=data,
    )
    return html, _markdown(session_id, rows, comparison, certificate, candidate["n"])


def _markdown(
    session_id: str,
    rows: Sequence[Row],
    comparison: dict[str, Any],
    certificate: dict[str, Any],
    n: int,
) -> str:
    lines = [f"# AEGIS report {session_id}", "", f"Held-out test split, n = {n}.", ""]
    lines += ["| measure | base | candidate |", "|---|---|---|"]
    lines += [
        f"| {r.name} | {r.base} {r.base_interval} | **{r.candidate}** {r.candidate_interval} |"
        for r in rows
    ]
    lines += [
        "",
        f"Right only with the candidate: {comparison['gained']}; only with the base: {comparison['lost']} "
        f"(exact McNemar p = {comparison['p']:.2g}).",
        "",
        f"Folding ({certificate['dtype']}, {certificate['probes']} probes): max abs logit difference "
        f"{certificate['max_abs_logit_difference']}, KL {certificate['kl']}, top-1 agreement "
        f"{certificate['top1_agreement']}.",
        "",
    ]
    return "\n".join(lines)


def shown(measure: dict[str, Any], key: str) -> tuple[str, str]:
    """A measure's value and interval as text; "absent" where the data could not give it."""
    value, interval = measure.get(key), measure.get("interval")
    if value is None:
        return "absent", ""
    return f"{value:.3f}", f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""


def _inline(paths: Sequence[Path]) -> list[dict[str, str]]:
    return [
        {"name": path.stem.replace("_", " "), "data": base64.b64encode(path.read_bytes()).decode()}
        for path in paths
        if path.exists()
    ]
