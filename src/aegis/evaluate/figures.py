"""Pictures of decisions, as PNG and SVG; no two lines differ by colour alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from aegis.protocol.decisions import NAMES

# Okabe and Ito's colours, which the colour-blind tell apart, each with a mark of its own.
_STYLES = dict(
    zip(
        ("decided", *NAMES),
        (
            {"color": "black", "marker": "o"},
            {"color": "#0072B2", "marker": "s", "linestyle": "--"},
            {"color": "#E69F00", "marker": "^", "linestyle": ":"},
            {"color": "#009E73", "marker": "D", "linestyle": "-."},
            {"color": "#D55E00", "marker": "v", "linestyle": "--"},
        ),
        strict=True,
    )
)


def draw_decisions(folder: Path, results: dict[str, Any], *, title: str) -> list[Path]:
    """Draw confusion, reliability and risk–coverage into a folder; return the PNG files."""
    figures = {
        "confusion": _confusion(results, title),
        "reliability": _reliability(results, title),
        "risk_coverage": _curves(results, title),
    }
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            figure.savefig(folder / f"{name}.{kind}", dpi=110)
    return [folder / f"{name}.png" for name in figures]


def _confusion(results: dict[str, Any], title: str) -> Figure:
    """Draw the counts, coloured by the share of each true class."""
    counts = np.array(results["confusion"]["counts"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        color = "white" if shares[i, j] > 0.6 else "black"
        axes.text(j, i, str(count), ha="center", va="center", color=color)
    axes.set_xticks(range(len(NAMES)), NAMES, rotation=20)
    axes.set_yticks(range(len(NAMES)), NAMES)
    axes.set(xlabel="predicted", ylabel="truth", title=title)
    return figure


def _reliability(results: dict[str, Any], title: str) -> Figure:
    """Draw how often what had a probability came true: of the decision, and class by class."""
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, names in ((left, ("decided",)), (right, NAMES)):
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="as it should be")
        for name in names:
            bins = results["reliability"][name]
            x, y = [each["chance"] for each in bins], [each["value"] for each in bins]
            error = results["calibration_error"][name]
            text = f"{name}: ECE {error['value']:.3f}, by chance {error['null_mean']:.3f}"
            axes.plot(x, y, label=text, **_STYLES[name])
        axes.legend(fontsize=7, loc="lower right")
        axes.set(xlabel="probability", xlim=(0, 1), ylim=(0, 1))
    bins = results["reliability"]["decided"]
    ends = np.array([each["interval"] for each in bins]).T
    left.vlines([each["chance"] for each in bins], *ends, color="black", linewidth=1)
    title = f"{title}: the most probable decision (n = {results['n']})"
    left.set(ylabel="share that was right", title=title)
    right.set(title="each class")
    return figure


def _curves(results: dict[str, Any], title: str) -> Figure:
    """Draw what leaving the unsure to a person would buy, and what τ buys and costs."""
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = results["risk_coverage"]["points"]
    x, ends = [p["coverage"] for p in points], np.array([p["interval"] for p in points]).T
    left.fill_between(x, *ends, color="#0072B2", alpha=0.2, label="interval")
    left.plot(x, [p["value"] for p in points], color="#0072B2", marker="o", label="wrong")
    left.set(xlabel="share decided, the surest first", ylabel="share of them that is wrong")
    left.set(title=f"{title}: the most probable decision, without τ", xlim=(0, 1), ylim=(0, None))
    left.legend(fontsize=8)
    both = [p for p in results["trade_off"] if None not in p.values()]
    x, y = ([p[name] for p in both] for name in ("over_refusal_rate", "miss_rate"))
    right.plot(x, y, color="#0072B2", label="τ from 0 to 1")
    stands = [results[name]["value"] for name in ("over_refusal_rate", "miss_rate")]
    if None not in stands:
        right.plot(*stands, "D", color="#D55E00", markersize=9, label="what stands")
    right.set(xlabel="over-refusal rate", ylabel="miss rate", title="what τ buys and costs")
    right.legend(fontsize=8)
    return figure
