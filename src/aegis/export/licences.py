"""The licence under which a model may be handed on: its base's, where that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from aegis.export.fold import METADATA_FILE
from aegis.model.base import EMBEDDED

EMBEDDED_LICENCE, EMBEDDED_NAME = "apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"


def read_metadata(model: Path) -> dict[str, Any]:
    """Return what `metadata.json` says; nothing where there is none."""
    try:
        return dict(json.loads((model / METADATA_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def licence_of(model: Path) -> str | None:
    """Return the base's licence as the hub names it, from the base's own model card."""
    spec = str(read_metadata(model).get("base", {}).get("spec", ""))
    if spec == EMBEDDED:
        return EMBEDDED_LICENCE
    card = Path(spec).expanduser() / "README.md"
    if not spec or not card.is_file():
        return None
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):
        return None
    licence = data.get("license")
    return licence if isinstance(licence, str) else None
