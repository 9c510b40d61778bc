"""report.html: the tables of the summary and Optuna's own pictures, in one file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.visualization import matplotlib as draw

from aegis.evaluate.page import Page, Section
from aegis.storage.files import write_text
from aegis.tune.report import StudyResult, measure_rows, setting_rows, succeeded

REPORT = "report.html"


def write_report(folder: Path, study: optuna.Study, result: StudyResult) -> None:
    """Write report.html, which needs no other file."""
    with tempfile.TemporaryDirectory() as scratch:
        sections = [
            Section("Settings", columns=("setting", *result.columns), rows=setting_rows(result)),
            Section("Measures", columns=("measure", *result.columns), rows=measure_rows(result)),
            *_pictures(study, [*result.objective], Path(scratch)),
        ]
        lead = [f"{result.told_trials}. {result.sentence}"]
        write_text(folder / REPORT, Page(f"Study {result.name}", lead, sections).html())


def _pictures(study: optuna.Study, names: list[str], folder: Path) -> Iterator[Section]:
    """Yield a section for each picture that can be drawn."""
    if sum(map(succeeded, study.get_trials(deepcopy=False))) < 2:
        yield Section("Pictures", "There are none before two trials have come to a result.")
        return
    if len(study.directions) == 1:
        names = ["objective"]
    elif len(names) in (2, 3):
        front = "Pareto front"
        yield _drawn(front, folder, lambda: draw.plot_pareto_front(study, target_names=names))
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
            shown = title if len(names) == 1 else f"{title}: {name}"
            yield _drawn(shown, folder, lambda plot=plot, values=values: plot(study, **values))


def _drawn(title: str, folder: Path, plot: Callable[[], Any]) -> Section:
    """Return a section with a picture, or with why there is none."""
    matplotlib.use("Agg")
    path = folder / f"{title.replace(': ', '_').replace(' ', '_')}.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            axes = np.ravel(np.asarray(plot(), dtype=object))
            axes[0].figure.savefig(path, dpi=110, bbox_inches="tight")
        except (ValueError, RuntimeError) as error:  # all values alike, one trial, …
            return Section(title, f"Not drawn: {str(error).splitlines()[0]}")
        finally:
            plt.close("all")
    return Section(title, figures=[path])
