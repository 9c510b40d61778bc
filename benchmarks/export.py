"""Claims: exporting a folded model to f16, Q8_0 and Q4_K_M takes at most 90 s, certificate
included, and at most 2.2 times the f16 file in memory; f16 says the same most probable token in at
least 99 % of the probes' positions.

Each round exports anew into an empty folder with the command line, in a process of its own. Memory
is the peak of the resident set of the whole tree of processes, pages of mapped files included, less
what the same process holds once the program is loaded and nothing else. The peer is the plain way:
transformers loads the folder in float32.

    python benchmarks/export.py --model runs/latest/model
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from claims import Claim, median, report

LOADED = "import aegis.export.gguf, aegis.cli, cyllama.llama.llama_cpp"
PEER = """
import sys, torch
from pathlib import Path
from aegis.model.base import ModelFolder
model = ModelFolder(Path(sys.argv[1])).load_model(dtype=torch.float32)
model(input_ids=torch.arange(8).reshape(1, 8))
"""
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("runs/latest/model"))
    parser.add_argument("--types", default="f16,Q8_0,Q4_K_M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    options = parser.parse_args()
    program, _ = peak([sys.executable, "-c", LOADED])
    peer, _ = peak([sys.executable, "-c", PEER, str(options.model)])
    peaks, seconds = [], []
    entries: dict[str, Any] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.model.resolve().parent) as folder:
            output = Path(folder) / "gguf"
            command = [sys.executable, "-m", "aegis", "export", "gguf", str(options.model)]
            found, took = peak([*command, "-o", str(output), "--types", options.types, "--json"])
            entries = json.loads((output / "certificate.json").read_text(encoding="utf-8"))["gguf"]
            peaks.append(found)
            seconds.append(took)
    f16 = entries["f16"]["bytes"]
    agreement = entries["f16"]["top1_agreement"]
    claims = [
        Claim("seconds", median(seconds), 90, options.rounds),
        Claim(
            "peak memory less the program's / f16 file",
            median([(found - program) / f16 for found in peaks]),
            2.2,
            options.rounds,
        ),
        Claim(
            "peak memory less the program's / plain loading's",
            median([(p - program) / (peer - program) for p in peaks]),
            1,
            3,
        ),
        Claim(
            "f16: same most probable token",
            (agreement,) * 3,
            0.99,
            entries["f16"]["positions"],
            floor=True,
        ),
    ]
    lines = [
        f"peak {median(peaks)[0] / MIB:.0f} MiB, the loaded program {program / MIB:.0f} of them; "
        f"f16 file {f16 / MIB:.0f} MiB"
    ]
    lines += [
        f"{kind:7} {entry['bytes'] / MIB:5.0f} MiB  mean KL {entry['kl_mean']:.2e}  "
        f"largest {entry['kl_max']:.2e}  same top token {entry['top1_agreement']:.4f}"
        for kind, entry in entries.items()
    ]
    details = {"gguf": entries, "peak_bytes": peaks, "program_bytes": program, "peer_bytes": peer}
    sys.exit(not report(claims, lines=lines, json_path=options.json, details=details))


def peak(command: list[str]) -> tuple[int, float]:
    """Return the command's largest resident set with its children, in bytes, and its seconds."""
    begun, most = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        held = 0
        for one in [process, *_children(process)]:
            try:
                held += one.memory_info().rss
            except psutil.Error:
                continue
        most = max(most, held)
        time.sleep(0.02)
    if process.returncode:
        errors = process.stderr.read()[-500:] if process.stderr else ""
        raise SystemExit(f"{' '.join(command[:6])} failed: {errors}")
    return most, time.perf_counter() - begun


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


if __name__ == "__main__":
    main()
