"""A Hugging Face model card that says what was measured, where the model ends, and how to use
it."""

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
from aegis.export.licences import EMBEDDED_NAME, licence_of, read_metadata
from aegis.model.base import EMBEDDED
from aegis.storage.artifact import MANIFEST, verify

TEMPLATE = Path(__file__).with_name("card.md.j2")
MARKER = "<!-- Written by `aegis export card` from what was measured; write it again rather than edit it. -->"
# Key in metrics.json, name, the hub's metric and whether it belongs in the model index.
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
    """The card's text for a folded model.

    Args:
        licence: the hub's id of a licence; the base's where it is not given.
        results: a `results` folder of a run; the one beside the model where it is not given.

    Raises:
        ModelError: if the folder is no folded model.
        ArtifactError: if the results are not as they were written.
    """
    certificate = _json(model / CERTIFICATE_FILE, needed=True)
    metadata = read_metadata(model)
    measured = _results(model, results)
    candidate, base = measured.get("candidate"), measured.get("base")
    known = licence or licence_of(model)
    languages = (
        sorted((candidate or {}).get("per_language", {}))
        or sorted(certificate.get("languages", {}))
        or ["en"]
    )
    title = name or f"aegis-{base_name(metadata).rpartition('/')[2]}"
    data = ModelCardData(
        language=languages,
        license=known or "unknown",
        base_model=base_name(metadata) if _HUB_ID.fullmatch(base_name(metadata)) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["aegis", "safety", "content-moderation", "so8"],
        model_name=title,
        eval_results=_evaluations(candidate) if candidate else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        marker=MARKER,
        name=title,
        version=metadata.get("aegis_version", __version__),
        base=f"`{base_name(metadata)}`",
        gguf=[_gguf_row(entry) for entry in certificate.get("gguf", {}).values()],
        measures=[_measure(key, label, candidate, base) for key, label, _ in MEASURES]
        if candidate
        else [],
        with_base=base is not None,
        n=(candidate or {}).get("n"),
        confidence=f"{100 * (candidate or {}).get('confidence', 0.95):g}",
        judge=f"the {(candidate or {}).get('judge')}",
        fold={
            "difference": f"{certificate['max_abs_logit_difference']:.1e}",
            "kl": f"{certificate['kl']:.1e}",
            "top1": f"{100 * certificate['top1_agreement']:.2f} %",
            **{key: certificate[key] for key in ("dtype", "positions", "probes")},
            "languages": ", ".join(certificate["languages"]),
        },
        algorithm=_training(metadata, "settings", "algorithm"),
        gates=_gates(metadata),
        features=", ".join(metadata.get("features", [])) or "unknown",
        seed=_training(metadata, "seed"),
        session=metadata.get("session_id", "unknown"),
        languages=", ".join(languages),
        licence=known,
        licence_known=known is not None,
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def require_card_path(path: Path) -> None:
    """The file may be written: it is absent or an earlier card, and not inside a folder that a
    manifest answers for.

    Raises:
        BadInputError: if it is anything else.
    """
    if path.is_dir():
        raise BadInputError(f"-o {path}: is a folder; give a file, e.g. card.md")
    if any((folder / MANIFEST).is_file() for folder in path.absolute().parents):
        raise BadInputError(
            f"-o {path}: a file more would make this folder count as damaged; give a path outside it"
        )
    if path.exists() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
        raise BadInputError(
            f"-o {path}: is no card that `aegis export card` wrote; give another path"
        )


def base_name(metadata: Mapping[str, Any]) -> str:
    """The base as others may know it: its name on the hub, or the last part of its path."""
    spec = str(metadata.get("base", {}).get("spec", "unknown"))
    if spec == EMBEDDED:
        return EMBEDDED_NAME
    return spec if _HUB_ID.fullmatch(spec) and not Path(spec).exists() else Path(spec).name


def _results(model: Path, given: Path | None) -> dict[str, dict[str, Any]]:
    """metrics.json of candidate and base, as far as they are there."""
    folder = given or model.resolve().parent / "results"
    if given is None and not (folder / MANIFEST).is_file():
        return {}
    verify(folder)
    found = {name: _json(folder / name / "metrics.json") for name in ("candidate", "base")}
    if not found["candidate"]:
        raise ArtifactError(
            f"{folder}: holds no candidate/metrics.json; give the `results` folder of a run"
        )
    return {name: metrics for name, metrics in found.items() if metrics}


def _json(path: Path, *, needed: bool = False) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if needed:
            raise ModelError(
                f"{path}: cannot be read; give a model folder that `aegis run` or `aegis fold` wrote"
            ) from error
        return {}


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


def _measure(
    key: str, label: str, candidate: Mapping[str, Any], base: Mapping[str, Any] | None
) -> dict[str, str]:
    return {
        "name": label,
        "value": _shown(candidate[key]),
        "base": _shown(base[key]) if base else "",
        "n": str(candidate[key]["n"]),
    }


def _shown(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def _gguf_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "file": entry["file"],
        "mib": f"{entry['bytes'] / 2**20:.0f}",
        "kl_mean": f"{entry['kl_mean']:.1e}",
        "kl_max": f"{entry['kl_max']:.1e}",
        "top1": f"{100 * entry['top1_agreement']:.2f} %",
        "within": "" if entry["within"] else f"**over the limit {entry['limit']:g}**",
        "positions": entry["positions"],
    }


def _gates(metadata: Mapping[str, Any]) -> str:
    mode, alpha = metadata.get("model", {}).get("gates", {}).get("mode"), metadata.get("alpha")
    return f"{mode}, α = {alpha:.3f}" if mode and isinstance(alpha, float) else "unknown"


def _training(metadata: Mapping[str, Any], *path: str) -> str:
    found: Any = metadata.get("training", {})
    for name in path:
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    return "unknown" if found == {} else str(found)
