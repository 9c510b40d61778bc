"""What came out of a study: the best settings as JSON, and a page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from aegis import __version__
from aegis.config import Config
from aegis.pipeline.step import read_settings
from aegis.storage.files import write_json, write_text
from aegis.tune.comparison import SeedComparison, compare_seeds
from aegis.tune.database import counted

SEEDS = "seeds"  # of the study's attributes: "TRIAL SEED" → measures
SETTINGS_FILE, SUMMARY = "optimal_hyperparameters.json", "summary.md"


def succeeded(trial: FrozenTrial) -> bool:
    """Return whether the trial came to a result that was measured."""
    return trial.state is TrialState.COMPLETE and "measures" in trial.user_attrs


def counts(study: optuna.Study) -> dict[str, int]:
    """Return how many trials are done, pruned, failed, running and waiting."""
    trials = study.get_trials(deepcopy=False)
    known = counted(trials)

    def number(state: TrialState) -> int:
        return sum(trial.state is state for trial in known)

    complete = sum(map(succeeded, known))
    return {
        "complete": complete,
        "pruned": number(TrialState.PRUNED),
        "failed": number(TrialState.FAIL) + number(TrialState.COMPLETE) - complete,
        "running": number(TrialState.RUNNING),
        "waiting": sum(trial.state is TrialState.WAITING for trial in trials),
    }


def worth(study: optuna.Study, measures: Mapping[str, float]) -> float:
    """Return the weighted sum of the objective, by which trials of any study are compared."""
    weights: dict[str, float] = study.user_attrs["objective"]
    return sum(weight * measures[name] for name, weight in weights.items())


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the trial with the highest weighted sum; None before one has come to a result."""
    results = [trial for trial in counted(study.get_trials(deepcopy=False)) if succeeded(trial)]
    return max(results, key=lambda t: worth(study, t.user_attrs["measures"]), default=None)


def describe(study: optuna.Study) -> str:
    """Return one line about how the study stands."""
    best = best_trial(study)
    shown = f"best {worth(study, best.user_attrs['measures']):.4f}" if best else "no result yet"
    numbers = counts(study)
    return ", ".join([shown, *(f"{numbers[key]} {key}" for key in ("running", "pruned", "failed"))])


@dataclass(frozen=True)
class StudyResult:
    """A study's best settings beside the config's own."""

    name: str
    objective: dict[str, float]
    trials: dict[str, int]
    settings: dict[str, Any]
    default: dict[str, Any]
    measures: dict[str, float]
    default_measures: dict[str, float]
    value: float
    default_value: float
    trial: int
    front: list[dict[str, Any]]
    comparison: SeedComparison | None

    def to_json(self) -> dict[str, Any]:
        """Return the content of optimal_hyperparameters.json."""
        compared = self.comparison.to_json() if self.comparison else None
        return {"aegis_version": __version__, **vars(self), "comparison": compared}

    @property
    def columns(self) -> tuple[str, str, str]:
        """What the values of a row are, in tables of settings and of measures."""
        return ("config's own", f"trial {self.trial}", "change")

    @property
    def told_trials(self) -> str:
        """What became of the trials, as `6 complete, 2 pruned`."""
        return ", ".join(f"{number} {state}" for state, number in self.trials.items() if number)

    @property
    def sentence(self) -> str:
        """Say whether the best is better than the config's own settings."""
        if self.comparison:
            return self.comparison.sentence
        return (
            "Both were trained with the seed, and judged by the records, by which the best of many "
            "trials was picked: part of the difference is luck (--seeds tells how much)."
        )


def result_of(study: optuna.Study, config: Config) -> StudyResult | None:
    """Return what came out so far; None if no trial came to a result.

    Args:
        config: with the values that trials were to beat.
    """
    best = best_trial(study)
    if best is None:
        return None
    default = read_settings(config, tuple(best.params))
    measures, before = best.user_attrs["measures"], study.user_attrs["default"]
    front = study.best_trials if len(study.directions) > 1 else []
    names = [*study.user_attrs["objective"]]
    return StudyResult(
        study.study_name,
        study.user_attrs["objective"],
        counts(study),
        best.params,
        default,
        measures,
        before,
        worth(study, measures),
        worth(study, before),
        best.number,
        [
            {
                "trial": each.number,
                "values": dict(zip(names, each.values, strict=True)),
                "settings": each.params,
            }
            for each in front
        ],
        _compared(study, best.number),
    )


def _compared(study: optuna.Study, best: int) -> SeedComparison | None:
    """Return the comparison over the seeds that both were trained with; None for fewer than two."""
    rows: dict[str, dict[str, float]] = study.user_attrs.get(SEEDS, {})
    seeds = sorted(int(key.split()[1]) for key in rows if key.split()[0] == "default")
    seeds = [seed for seed in seeds if f"{best} {seed}" in rows]
    if len(seeds) < 2:
        return None
    values = [[worth(study, rows[f"{n} {seed}"]) for seed in seeds] for n in ("default", best)]
    return compare_seeds(seeds, *values)


def write_results(folder: Path, study: optuna.Study, config: Config) -> StudyResult | None:
    """Write optimal_hyperparameters.json and summary.md into the study's folder."""
    result = result_of(study, config)
    if result:
        write_json(folder / SETTINGS_FILE, result.to_json())
        write_text(folder / SUMMARY, summary(result, folder))
    return result


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Return every trial by number: what became of it, its worth, its time, its settings."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        measures, reason = trial.user_attrs.get("measures"), trial.user_attrs.get("failed")
        settings = ", ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
        rows.append(
            {
                "trial": trial.number,
                "state": f"failed: {reason}" if reason else trial.state.name.lower(),
                "objective": round(worth(study, measures), 4) if measures else None,
                "seconds": trial.user_attrs.get("seconds"),
                "settings": settings,
            }
        )
    return rows


def setting_rows(result: StudyResult) -> list[tuple[str, str, str, str]]:
    """Return setting, default, best and the change of each."""
    rows = []
    for key, value in result.settings.items():
        before = result.default[key]
        rows.append((key, _short(before), _short(value), _change(before, value)))
    return rows


def measure_rows(result: StudyResult) -> list[tuple[str, str, str, str]]:
    """Return the objective and each measure: before, after and the change."""
    pairs = {"objective": (result.default_value, result.value)}
    pairs |= {
        name: (result.default_measures[name], value) for name, value in result.measures.items()
    }
    return [(n, _short(a), _short(b), _change(a, b)) for n, (a, b) in pairs.items()]


def summary(result: StudyResult, folder: Path) -> str:
    """Return summary.md."""
    weights = " + ".join(f"{weight:g} · {name}" for name, weight in result.objective.items())
    parts = [
        f"# Study {result.name}",
        f"Objective (higher is better): {weights}. Trials: {result.told_trials}.",
        _table(("setting", *result.columns), setting_rows(result)),
        _table(("measure", *result.columns), measure_rows(result)),
        result.sentence,
        f"Use them: `aegis run CONFIG --set-from {folder / SETTINGS_FILE}`",
    ]
    if result.front:
        names = tuple(result.objective)
        rows = [
            (str(each["trial"]), *(_short(each["values"][name]) for name in names))
            for each in result.front
        ]
        parts.insert(4, "## Pareto front\n\nNo trial is better than one of these in everything.")
        parts.insert(5, _table(("trial", *names), rows))
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(before: Any, after: Any) -> str:
    numbers = [v for v in (before, after) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or not before:
        return "as before" if before == after else "changed"
    return f"{100 * (after - before) / abs(before):+.1f} %"
