"""The licence under which a model may be handed on: its base's, where that is known."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from aegis.model.embedded import MODELS
from aegis.model.token_head import read_metadata

_TERMS = ("licen", "notice", "terms", "gemma_terms", "use_policy")


def licence_of(model: Path) -> dict[str, str]:
    """Return the licence of a folded model: what its metadata says, or else its base."""
    metadata = read_metadata(model)
    spec = str(metadata.get("base", {}).get("spec", ""))
    return metadata.get("licence") or licence_of_base(spec, Path(spec).expanduser())


def licence_of_base(spec: str, folder: Path) -> dict[str, str]:
    """Return `id` (the hub's), and `name`, `url` and `notice` where they are known; {} for none.

    A base in a folder of its own says it in its model card.
    """
    if model := MODELS.get(spec):
        licence = model.licence
        facts = {"id": licence.id, "name": licence.name, "url": licence.url}
        return facts | ({"notice": licence.notice} if licence.notice else {})
    card = folder / "README.md"
    if not spec or not card.is_file():
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):
        return {}
    keys = {"id": "license", "name": "license_name", "url": "license_link"}
    facts = {key: data[given] for key, given in keys.items() if isinstance(data.get(given), str)}
    return facts if "id" in facts else {}


def terms_files(folder: Path) -> list[Path]:
    """Return the files of a base that have to go with every copy: licence, notice, terms of use."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.lower().startswith(_TERMS)
    ]
