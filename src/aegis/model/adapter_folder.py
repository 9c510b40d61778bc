"""The adapter folder: what training made, without the base."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aegis.config import ModelSettings
from aegis.errors import AdapterError, ArtifactError
from aegis.model.adapted import Adapted, attach
from aegis.model.base import Base
from aegis.model.heads import DecisionHead
from aegis.model.tags import Tags
from aegis.model.token_head import TokenHead
from aegis.storage.artifact import verify
from aegis.storage.files import to_json

ADAPTER_CARD_FILE, GATES_FILE = "so8.json", "so8.safetensors"
_LORA_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterCard:
    """What `so8.json` says: the base it belongs to, how it was attached, how it was trained."""

    base: dict[str, Any]
    model: dict[str, Any]
    alpha: float
    training: dict[str, Any]
    session_id: str

    @property
    def settings(self) -> ModelSettings:
        return ModelSettings.model_validate(self.model)


def save_adapter(folder: Path, adapted: Adapted, card: AdapterCard) -> None:
    """Write PEFT's own files, gates, decision head and card into an artifact's staging folder."""
    adapted.peft.save_pretrained(
        str(folder), selected_adapters=["default"], save_embedding_layers=False
    )
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    gates = {
        f"{name}:{key}": value.contiguous()
        for name in adapted.gate_names
        for key, value in adapted.gate(name).state_dict().items()
    }
    save_file(gates, folder / GATES_FILE)
    adapted.head.save(folder)
    if adapted.rows:
        adapted.rows.save(folder)
    (folder / ADAPTER_CARD_FILE).write_text(to_json(asdict(card)), encoding="utf-8")


def read_card(folder: Path) -> AdapterCard:
    """Read `so8.json` after checking that the folder is as it was written.

    Raises:
        AdapterError: if the folder is no adapter, or damaged.
    """
    detail: Any = "so8.json is missing, unreadable or of another version"
    try:
        verify(folder)
        card = AdapterCard(**json.loads((folder / ADAPTER_CARD_FILE).read_text(encoding="utf-8")))
        if not ({"spec", "fingerprint"} <= card.base.keys() and card.settings):
            raise KeyError("base")
        return card
    except (ArtifactError, OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, ArtifactError):
            detail = error
        raise AdapterError(
            f"{folder}: not a whole adapter folder ({detail}); give one that `aegis run` wrote"
        ) from error


def require_base(card: AdapterCard, base: Base, *, folder: Path) -> None:
    """Check that the adapter was trained on exactly this base.

    Raises:
        AdapterError: if it was not.
    """
    if card.base["fingerprint"] != base.fingerprint:
        raise AdapterError(
            f"{folder}: made for another base ({card.base['spec']!r}, "
            f"{card.base['fingerprint'][:12]}) than {base.spec!r} ({base.fingerprint[:12]}); "
            "pass --base with the one it was trained on"
        )


def load_adapter(
    folder: Path, model: Any, card: AdapterCard, *, tags: Tags | None = None
) -> Adapted:
    """Attach a saved adapter to its base, gates at the α where training left them.

    Args:
        tags: the base's tags (`add_tags`), if the adapter was trained with them.

    Raises:
        AdapterError: if the tensors do not fit the model.
    """
    adapted = attach(model, card.settings, tags=tags)
    if isinstance(adapted.head, TokenHead):
        ids, adapted.head = adapted.head.ids, TokenHead.load(folder)
        adapted.head.ids = ids
    else:
        adapted.head = DecisionHead.load(folder)
    if adapted.rows:
        adapted.rows.load(folder)
    try:
        _load_lora(adapted.peft, folder)
        gates = {}
        for key, value in load_file(folder / GATES_FILE).items():
            name, _, part = key.partition(":")
            gates[f"{name.replace('.', '/')}.{part}"] = value
        adapted.gates.load_state_dict(gates)
    except (RuntimeError, SafetensorError, OSError, KeyError) as error:
        raise AdapterError(
            f"{folder}: the adapter's tensors do not fit the base; train it again"
        ) from error
    return adapted.eval()


def _load_lora(peft: PeftModel, folder: Path) -> None:
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(peft, load_file(folder / _LORA_FILE))
    missing = [key for key in result.missing_keys if "lora_" in key]
    if result.unexpected_keys or missing:
        raise KeyError(missing or result.unexpected_keys)
