"""report.html: the tables of the summary and Optuna's own pictures, in one file."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.visualization import matplotlib as draw

from aegis.storage.files import write_text
from aegis.tune.report import StudyResult, measure_rows, setting_rows, succeeded

REPORT = "report.html"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}img{max-width:100%}"
    "td,th{border-bottom:1px solid #ccc;padding:.3em 1em;text-align:left}"
)


def write_report(folder: Path, study: optuna.Study, result: StudyResult) -> None:
    """Write report.html, which needs no other file."""
    trials = ", ".join(f"{number} {state}" for state, number in result.trials.items() if number)
    columns = ("config's own", f"trial {result.trial}", "change")
    parts = [
        f"<h1>Study {html.escape(result.name)}</h1>",
        f"<p>{html.escape(trials)}. {html.escape(result.sentence)}</p>",
        _table(("setting", *columns), setting_rows(result)),
        _table(("measure", *columns), measure_rows(result)),
        *(f"<h2>{title}</h2>{body}" for title, body in _pictures(study, [*result.objective])),
    ]
    head = f"<!doctype html><meta charset=utf-8><title>Study {html.escape(result.name)}</title>"
    write_text(folder / REPORT, f"{head}<style>{_STYLE}</style>{''.join(parts)}\n")


def _pictures(study: optuna.Study, names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield title and image of each picture that can be drawn."""
    if sum(map(succeeded, study.get_trials(deepcopy=False))) < 2:
        yield "Pictures", "<p>There are none before two trials have come to a result.</p>"
        return
    if len(study.directions) == 1:
        names = ["objective"]
    elif len(names) in (2, 3):
        yield "Pareto front", _drawn(lambda: draw.plot_pareto_front(study, target_names=names))
    kinds: dict[str, Callable[..., Any]] = {
        "History": draw.plot_optimization_history,
        "Importance": draw.plot_param_importances,
        "Parallel coordinates": draw.plot_parallel_coordinate,
        "Slices": draw.plot_slice,
    }
    for title, plot in kinds.items():
        for number, name in enumerate(names):
            values: dict[str, Any] = {"target_name": name}
            if len(names) > 1:
                values["target"] = lambda trial, number=number: trial.values[number]
            shown = title if len(names) == 1 else f"{title}: {html.escape(name)}"
            yield shown, _drawn(lambda plot=plot, values=values: plot(study, **values))


def _drawn(plot: Callable[[], Any]) -> str:
    """Return an image, or why there is none."""
    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            axes = np.ravel(np.asarray(plot(), dtype=object))
            figure, image = axes[0].figure, io.BytesIO()
            figure.savefig(image, format="png", dpi=110, bbox_inches="tight")
        except (ValueError, RuntimeError) as error:  # all values alike, one trial, …
            return f"<p>Not drawn: {html.escape(str(error).splitlines()[0])}</p>"
        finally:
            plt.close("all")
    return f'<img src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_cells("th", columns), *(_cells("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _cells(tag: str, row: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
