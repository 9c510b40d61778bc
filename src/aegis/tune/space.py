"""A study file: which settings trials may change and how far, and what is measured."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.config import Config, parse_config
from aegis.config.explain import explain
from aegis.errors import BadInputError, ConfigError
from aegis.inputs.strict_yaml import MOST_CHARACTERS, read_yaml
from aegis.inputs.text import read_text
from aegis.storage.files import fingerprint
from aegis.tune.objectives import StudyObjective

if TYPE_CHECKING:
    import optuna

SHIPPED = Path(__file__).with_name("studies")
PRUNERS = ("median", "hyperband", "none")
_KINDS = ("choices", "int", "float")


@dataclass(frozen=True)
class Parameter:
    """One setting that trials change.

    Args:
        setting: its dotted name; of a setting that is a list of numbers, each takes the value.
        choices: the values to choose from; else any from `low` to `high`.
        log: whether it is drawn evenly by its logarithm.
        only_if: setting and value of an earlier parameter without which this one keeps the
            config's own value.
    """

    setting: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    only_if: tuple[str, Any] | None = None

    def suggest(self, trial: optuna.Trial) -> Any:
        """Draw a value from Optuna."""
        if self.choices:
            return trial.suggest_categorical(self.setting, self.choices)
        if self.whole:
            return trial.suggest_int(self.setting, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.setting, self.low, self.high, log=self.log)

    def extremes(self) -> tuple[Any, ...]:
        """Return every choice, or both ends."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


@dataclass(frozen=True)
class StudyPlan:
    """A study file as read.

    Args:
        settings: what every trial has instead of the config's own values: its budget.
        until: the step of training that a trial ends with.
    """

    name: str
    about: str
    space: tuple[Parameter, ...]
    objective: StudyObjective
    settings: dict[str, Any] = field(default_factory=dict)
    pruner: str = "median"
    until: str = "sft"

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a trial's settings."""
        drawn: dict[str, Any] = {}
        for parameter in self.space:
            if parameter.only_if is None or drawn.get(parameter.only_if[0]) == parameter.only_if[1]:
                drawn[parameter.setting] = parameter.suggest(trial)
        return drawn

    def identity(self) -> str:
        """Return what two workers of one study must have in common."""
        return fingerprint([repr(getattr(self, each.name)) for each in fields(self)[2:]])


def shipped_studies() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_plan(study: str) -> StudyPlan:
    """Read a shipped study by its name, or a YAML file.

    Raises:
        ConfigError: what is wrong in it, with its place and a remedy.
    """
    path = Path(study).expanduser()
    if study in shipped_studies():
        path = SHIPPED / f"{study}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        known = ", ".join(shipped_studies())
        raise BadInputError(f"{study}: no such study; give {known}, or a YAML file of your own")
    raw = read_yaml(read_text(path, most=MOST_CHARACTERS, kind="YAML", error=ConfigError), study)
    raw = _section(raw, study, ("about", "settings", "space", "objective", "pruner", "until"))
    pruner = raw.get("pruner", "median")
    if pruner not in PRUNERS:
        raise ConfigError(f"{study}: pruner must be one of {', '.join(PRUNERS)}, got {pruner!r}")
    settings = _section(raw.get("settings") or {}, f"{study}: settings")
    for key in settings:
        _require_setting(key, f"{study}: settings")
    return StudyPlan(
        path.stem,
        str(raw.get("about", "")),
        tuple(_parameters(_section(raw.get("space"), f"{study}: space"), f"{study}: space")),
        StudyObjective.parse(_section(raw.get("objective"), f"{study}: objective"), study),
        settings,
        pruner,
        str(raw.get("until", "sft")),
    )


def with_settings(config: Config, changes: dict[str, Any], *, where: str) -> Config:
    """Return the config with these values at dotted settings.

    Raises:
        ConfigError: if they are impossible, alone or together.
    """
    raw = config.model_dump(mode="json")
    for key, value in changes.items():
        *groups, name = key.split(".")
        group = raw
        for part in groups:
            group = group[part]
        old = group[name]
        numbers = isinstance(old, list) and old and not isinstance(old[0], str)
        group[name] = [value] * len(old) if numbers and not isinstance(value, list) else value
    return parse_config(raw, where=where)


def check_space(plan: StudyPlan, config: Config) -> Config:
    """Return the config with the plan's own settings, if each end of the space is possible in it.

    Raises:
        ConfigError: if one is not.
    """
    config = with_settings(config, plan.settings, where=f"{plan.name}: settings")
    for parameter in plan.space:
        for value in parameter.extremes():
            change = {parameter.only_if[0]: parameter.only_if[1]} if parameter.only_if else {}
            where = f"{plan.name}: space: {value!r}"
            with_settings(config, change | {parameter.setting: value}, where=where)
    return config


def _parameters(raw: dict[str, Any], where: str) -> Iterator[Parameter]:
    if not raw:
        raise ConfigError(
            f"{where} is empty; name a setting, e.g. train.lr: {{float: [1e-5, 1e-3]}}"
        )
    earlier = set[str]()
    for setting, text in raw.items():
        _require_setting(setting, where)
        yield _parameter(setting, text, f"{where}: {setting}", earlier)
        earlier.add(setting)


def _parameter(setting: str, raw: Any, where: str, earlier: set[str]) -> Parameter:
    raw = _section(raw, where, (*_KINDS, "log", "if"))
    kinds = [kind for kind in _KINDS if kind in raw]
    if len(kinds) != 1:
        raise ConfigError(f"{where} must have one of {', '.join(_KINDS)}, got {sorted(raw)}")
    kind, values, log = kinds[0], raw[kinds[0]], raw.get("log", False)
    only_if = None
    if condition := raw.get("if"):
        if not isinstance(condition, dict) or len(condition) != 1 or not earlier >= {*condition}:
            raise ConfigError(f"{where}: if must name one setting that stands above, as in "
                              "{train.anneal.shape: sigmoid}")  # fmt: skip
        only_if = next(iter(condition.items()))
    if not isinstance(values, list):
        raise ConfigError(f"{where}: {kind} must be a list, got {values!r}")
    if kind == "choices":
        if len(values) < 2 or len({repr(value) for value in values}) < len(values):
            raise ConfigError(f"{where}: choices must be at least two different values")
        return Parameter(setting, choices=tuple(values), only_if=only_if)
    numbers = [value for value in values if isinstance(value, int | float) and value is not True]
    if len(values) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{where}: {kind} must be two numbers, [min, max], got {values}")
    low, high = numbers
    if kind == "int" and not (isinstance(low, int) and isinstance(high, int)):
        raise ConfigError(f"{where}: int must have whole numbers, got {values}; use float")
    if low >= high:
        raise ConfigError(f"{where}: min must be below max, got {low} and {high}; swap or widen")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log must be true or false, got {log!r}")
    if log and low <= 0:
        raise ConfigError(f"{where}: log needs min > 0, got {low}; raise it, or leave log out")
    return Parameter(setting, (), float(low), float(high), kind == "int", log, only_if)


def _section(raw: Any, where: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must hold keys and values, got {raw!r}")
    for key in raw if known else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise ConfigError(f"{where}: {key} is not known; did you mean {near[0]}?")
    return raw


def _require_setting(key: str, where: str) -> None:
    try:
        explanation = explain(str(key))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if explanation.settings:
        raise ConfigError(f"{where}: {key} is a group of settings; name one of them")
