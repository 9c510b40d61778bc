"""Under which licence a model may be handed on: its base's, where that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from aegis.export.fold import METADATA_FILE
from aegis.model.base import EMBEDDED

EMBEDDED_LICENCE, EMBEDDED_NAME = "apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct"


def read_metadata(model: Path) -> dict[str, Any]:
    """What `metadata.json` says; empty where there is none."""
    try:
        return dict(json.loads((model / METADATA_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def licence_of(model: Path) -> str | None:
    """The base's licence as the hub names it: known for the embedded base, else what the base's own
    model card says."""
    spec = str(read_metadata(model).get("base", {}).get("spec", ""))
    if spec == EMBEDDED:
        return EMBEDDED_LICENCE
    card = Path(spec).expanduser() / "README.md"
    if not spec or not card.is_file():
        return None
    try:
        found = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None
