"""A Hugging Face model card: what was measured, where the model ends, and how to use it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from aegis import __version__
from aegis.errors import ArtifactError, BadInputError, ModelError
from aegis.export.certificate import CERTIFICATE_FILE
from aegis.export.licences import licence_of
from aegis.model.embedded import MODELS
from aegis.model.token_head import read_metadata
from aegis.storage.artifact import MANIFEST, verify

TEMPLATE = Path(__file__).with_name("card.md.j2")
MARKER = (
    "<!-- Written by `aegis export card` from what was measured; "
    "write it again rather than edit it. -->"
)
# Key in metrics.json, name, and the hub's metric.
MEASURES = (
    ("accuracy", "accuracy", "accuracy"),
    ("macro_f1", "macro F1", "f1"),
    ("false_positive_rate", "false positive rate (miss rate)", "false_positive_rate"),
    ("over_refusal_rate", "over-refusal rate", "over_refusal_rate"),
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(
    model: Path, *, name: str | None = None, licence: str | None = None, results: Path | None = None
) -> str:
    """Return the card's text for a folded model.

    Args:
        licence: the hub's id of a licence; the base's where it is not given.
        results: a `results` folder of a run; the one beside the model where it is not given.

    Raises:
        ModelError: if the folder is no folded model.
        ArtifactError: if the results are not as they were written.
    """
    certificate = _read_certificate(model)
    metadata = read_metadata(model)
    metrics = _read_metrics(model, results)
    candidate = metrics.get("candidate")
    known = licence_of(model) if licence is None else {"id": licence}
    languages = list(
        sorted((candidate or {}).get("per_language", {}))
        or sorted(certificate.get("languages", {}))
        or ["en"]
    )
    base, training = base_name(metadata), metadata.get("training") or {}
    name = name or f"aegis-{base.rpartition('/')[2]}"
    data = ModelCardData(
        language=languages,
        license=known.get("id", "unknown"),
        base_model=base if _HUB_ID.fullmatch(base) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["aegis", "safety", "content-moderation", "so8"],
        model_name=name,
        eval_results=_evaluations(candidate) if candidate else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        marker=MARKER,
        name=name,
        version=metadata.get("aegis_version", __version__),
        base=f"`{base}`",
        gguf=list(certificate.get("gguf", {}).values()),
        measures=MEASURES,
        candidate=candidate,
        base_metrics=metrics.get("base"),
        fold=certificate,
        algorithm=(training.get("settings") or {}).get("algorithm", "unknown"),
        gates=_gates(metadata),
        tokens="decision" in metadata,
        features=", ".join(metadata.get("features", [])) or "unknown",
        seed=training.get("seed", "unknown"),
        session=metadata.get("session_id", "unknown"),
        languages=", ".join(languages),
        licence=known,
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def require_card_path(path: Path) -> None:
    """Check that a file there is an earlier card, and outside every artifact.

    Raises:
        BadInputError: if it is anything else.
    """
    if any((folder / MANIFEST).is_file() for folder in path.absolute().parents):
        raise BadInputError(
            f"-o {path}: a file more would make this folder count as damaged; "
            "give a path outside it"
        )
    if path.is_file() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
        raise BadInputError(
            f"-o {path}: is no card that `aegis export card` wrote; give another path"
        )


def base_name(metadata: Mapping[str, Any]) -> str:
    """Return the base's name on the hub, or the last part of its path: what others may know."""
    spec = str(metadata.get("base", {}).get("spec", "unknown"))
    if spec in MODELS:
        return MODELS[spec].hub_name
    return spec if _HUB_ID.fullmatch(spec) and not Path(spec).exists() else Path(spec).name


def _read_certificate(model: Path) -> dict[str, Any]:
    path = model / CERTIFICATE_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read; give a model folder that `aegis run` or `aegis fold` wrote"
        ) from error


def _read_metrics(model: Path, results: Path | None) -> dict[str, dict[str, Any]]:
    """Return metrics.json of candidate and base, as far as they are there."""
    folder = results or model.resolve().parent / "results"
    if results is None and not (folder / MANIFEST).is_file():
        return {}
    verify(folder)
    metrics = {}
    for name in ("candidate", "base"):
        try:
            content = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if content:
            metrics[name] = dict(content)
    if "candidate" not in metrics:
        raise ArtifactError(
            f"{folder}: holds no candidate/metrics.json; give the `results` folder of a run"
        )
    return metrics


def _evaluations(candidate: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-classification",
            task_name="four decisions",
            dataset_type="aegis-decisions",
            dataset_name=f"AEGIS held-out decision records (n = {candidate['n']})",
            dataset_split="test",
            metric_type=metric,
            metric_name=label,
            metric_value=round(candidate[key]["value"], 4),
        )
        for key, label, metric in MEASURES
    ]


def _gates(metadata: Mapping[str, Any]) -> str:
    mode, alpha = metadata.get("model", {}).get("gates", {}).get("mode"), metadata.get("alpha")
    return f"{mode}, α = {alpha:.3f}" if mode and isinstance(alpha, float) else "unknown"
