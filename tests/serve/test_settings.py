from __future__ import annotations

import inspect

from aegis.cli.serve import serve
from aegis.serve.settings import ServeSettings


def test_every_setting_is_described() -> None:
    assert [
        name for name, field in ServeSettings.model_fields.items() if not field.description
    ] == []


def test_the_verb_has_the_settings_defaults() -> None:
    options = {name: option.default for name, option in inspect.signature(serve).parameters.items()}
    settings = {name: getattr(ServeSettings(), name) for name in ServeSettings.model_fields}
    assert settings.keys() - options.keys() == {"body_s", "keep_alive_s"}
    assert {name: settings[name] for name in options} == options
