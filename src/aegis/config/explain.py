"""What a setting means: its description, type, bounds and default, from the settings' schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aegis.config.root import Config
from aegis.errors import ConfigError

_TYPES = {"string": "text", "boolean": "true | false", "object": "section"}
_BOUNDS = {
    "minimum": ">= {:g}",
    "exclusiveMinimum": "> {:g}",
    "maximum": "<= {:g}",
    "exclusiveMaximum": "< {:g}",
    "minLength": "not empty",
    "minItems": "not empty",
}


@dataclass(frozen=True)
class Explanation:
    """A setting, or a section with its settings; `default` is "required" where there is none."""

    key: str
    description: str
    type: str
    bounds: str
    default: Any
    settings: tuple[Explanation, ...] = ()


def explain(key: str = "") -> Explanation:
    """Explain the setting or section at a dotted path; the empty one is the whole.

    Raises:
        ConfigError: if there is none; the message names the nearest.
    """
    schema = Config.model_json_schema()
    whole = _describe("", schema, Config().model_dump(mode="json"), schema["$defs"])
    known = {explanation.key: explanation for explanation in _walk(whole)}
    if key not in known:
        near = [name for name in known if name.endswith(f".{key}")]
        near = near or difflib.get_close_matches(key, known, n=1, cutoff=0)
        raise ConfigError(f"{key} is not a setting; did you mean {' or '.join(near)}?")
    return known[key]


def _walk(explanation: Explanation) -> Iterator[Explanation]:
    yield explanation
    for setting in explanation.settings:
        yield from _walk(setting)


def _describe(key: str, node: dict[str, Any], default: Any, defs: dict[str, Any]) -> Explanation:
    inner = _resolve(node, defs)
    holder = _resolve(inner.get("items", inner), defs)  # a list of sections has their settings
    settings = [
        _describe(
            f"{key}.{name}".removeprefix("."),
            child,
            default[name] if isinstance(default, dict) else child.get("default", "required"),
            defs,
        )
        for name, child in holder.get("properties", {}).items()
    ]
    description = " ".join((node.get("description") or inner.get("description", "")).split())
    bounds = ", ".join(dict.fromkeys(_bounds(inner)))
    return Explanation(key, description, _type(inner, defs), bounds, default, tuple(settings))


def _resolve(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    return defs[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _type(node: dict[str, Any], defs: dict[str, Any]) -> str:
    node = _resolve(node, defs)
    if options := node.get("anyOf"):
        return " | ".join(_type(option, defs) for option in options)
    if options := node.get("enum", [node["const"]] if "const" in node else []):
        return " | ".join(map(str, options))
    if node["type"] == "array":
        if parts := node.get("prefixItems"):
            return f"[{', '.join(_type(part, defs) for part in parts)}]"
        return f"list of {_type(node['items'], defs)}"
    return _TYPES.get(node["type"]) or str(node["type"])


def _bounds(node: dict[str, Any]) -> Iterator[str]:
    for name, text in _BOUNDS.items():
        if name in node and "prefixItems" not in node:
            yield text.format(node[name])
    for part in [*node.get("anyOf", ()), *node.get("prefixItems", ())]:
        yield from _bounds(part)
