"""aegis doctor: what is installed, what this machine can do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from aegis.cli.options import AsJson
from aegis.cli.show import print_json, print_table

_PACKAGES = ["torch", "transformers", "peft", "accelerate"]
_PACKAGES += ["safetensors", "numpy", "scipy", "scikit-learn"]
_EXTRAS = {
    "gguf": ("gguf",),
    "gguf-export": ("convert_hf_to_gguf", "cyllama", "httpx"),
    "serve": ("fastapi", "uvicorn"),
    "tune": ("optuna",),
    "data": ("datatrove", "protego", "httpx"),
    "tracking": ("mlflow",),
    "quantised bases": ("bitsandbytes",),
}
_GGUF_REMEDY = "missing: pip install 'aegis-so8t[gguf-serve]'"
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")


def doctor(json: AsJson = False) -> None:
    """Show what is installed and what this machine can do, with a remedy for what is missing."""
    report = examine()
    if json:
        print_json(report)
        return
    rows = [
        (f"{group} · {name}", _as_text(value))
        for group, values in report.items()
        for name, value in values.items()
    ]
    print_table(("what", "found"), rows, title="aegis doctor")


def examine() -> dict[str, dict[str, Any]]:
    """Return everything that doctor reports, by group; change nothing."""
    from aegis.model.embedded import MODELS

    gguf = importlib.util.find_spec("cyllama") and f"cyllama {_version('cyllama')}"
    missing = "missing (needed for {} only)".format
    ollama = shutil.which("ollama") or os.environ.get("OLLAMA_HOST")
    return {
        "machine": _machine(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "extras": {extra: {name: _version(name) for name in _EXTRAS[extra]} for extra in _EXTRAS},
        "models": {
            name: _version(model.package) if model.installed else f"missing: {model.install}"
            for name, model in MODELS.items()
        },
        "tools": {
            "K-quants": gguf or shutil.which("llama-quantize") or _GGUF_REMEDY,
            "GGUF serving": gguf or _GGUF_REMEDY,
            "ollama": ollama or missing("Ollama export"),
            "strace": shutil.which("strace") or missing("crash tests"),
        },
    }


def _machine() -> dict[str, Any]:
    import psutil
    import torch

    from aegis.model.device import bfloat16_is_fast
    from aegis.model.embedded import cache_folder
    from aegis.storage.files import free_space

    memory = psutil.virtual_memory()
    cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    gpus = {
        f"gpu {index}": f"{card.name}, {card.total_memory / 2**30:.1f} GiB"
        for index, card in enumerate(cards)
    }
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_flags": _cpu_flags(),
        "fast_bfloat16": bfloat16_is_fast(),
        "memory_gib": round(memory.total / 2**30, 1),
        "memory_free_gib": round(memory.available / 2**30, 1),
        "cache_folder": str(cache_folder()),
        "disk_free_gib": round(free_space(cache_folder()) / 2**30, 1),
        **(gpus or {"gpu": "none; training runs on the CPU"}),
    }


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"missing: pip install {package}"


def _cpu_flags() -> list[str]:
    """Return those of `_FLAGS` that the processor has; torch's own word where /proc is not."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        import torch

        return [torch.backends.cpu.get_cpu_capability()]
    lines = path.read_text(errors="replace").splitlines()
    flags = [line for line in lines if line.lower().startswith(("flags", "features"))]
    present = flags[0].partition(":")[2].split() if flags else []
    return [flag for flag in _FLAGS if flag in present]


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none known"
    return "yes" if value is True else "no" if value is False else str(value)
