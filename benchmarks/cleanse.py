"""Cleaning against a datatrove pipeline of its own nearest filters, and against itself: two
processes beside one, and many records beside few.

    python benchmarks/cleanse.py [--records 20000] [--many 1000000] [--json FILE]

The peer reads and writes the same files in as many processes: FTFY, PII, Gopher's repetition and
quality, FineWeb's quality, and MinHash in its four stages (14 bands of 8, words of 5). It keeps
neither rejects' twins nor traces, checks no decision and identifies no language, which needs a
download there. Its filters get a tokenizer by regular expression, quicker than spaCy's, theirs by
default. Needs the extra `data`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from aegis.data.seed import seed_records

DECISIONS = ("ALLOW", "ESCALATION", "DENY", "REFUSE")


def write_records(path: Path, count: int, seed: int = 0) -> None:
    """Write synthetic records in both languages: of every twenty one is a near copy of an earlier
    one, one is stuck, one holds personal data."""
    random_ = random.Random(seed)
    prompts = {
        name: [r.prompt for r in seed_records() if r.language == name] for name in ("ja", "en")
    }
    words = [word for prompt in prompts["en"] for word in prompt.split()]
    chunks = [prompt[i : i + 6] for prompt in prompts["ja"] for i in range(0, len(prompt) - 6, 6)]
    earlier = ["How do trains brake in the rain when the rails are wet?"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            kind = number % 20
            if kind == 3:
                text = random_.choice(earlier) + random_.choice("!?.")
            elif kind == 7:
                text = random_.choice(words) * 30
            elif number % 2:
                text = " ".join(random_.choices(words, k=random_.randint(8, 24))) + "."
            else:
                text = "".join(random_.choices(chunks, k=random_.randint(4, 12))) + "。"
            if kind == 11:
                text += f" taro{number}@example.com 090-{number % 10000:04}-1234"
            if kind == 5:
                earlier[number % 97 :] = [text, *earlier[number % 97 + 1 :]]
            row = {
                "id": f"r{number}",
                "prompt": text,
                "text": text,
                "decision": DECISIONS[number % 4],
            }
            del row["text"]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def ours(source: Path, out: Path, processes: int) -> None:
    from aegis.config import QualitySettings
    from aegis.data.clean.run import Cleaning, clean_files

    settings = QualitySettings(route_toxic=True, check_decisions=True, balance="off")
    clean_files(Cleaning((source,), settings), out, processes=processes)


def peer(source: Path, out: Path, processes: int) -> None:
    """Run datatrove's pipeline over as many tasks as there are processes."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import (
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        """Words of Latin letters, and each other letter."""

        def word_tokenize(self, text: str) -> list[str]:
            return re.findall(r"[A-Za-z0-9'’_-]+|[^\sA-Za-z0-9]", text)

        def sent_tokenize(self, text: str) -> list[str]:
            return re.findall(r"[^.!?。！？]+[.!?。！？]*", text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [match.span() for match in re.finditer(r"[^.!?。！？]+[.!?。！？]*", text)]

    words: Any = Words()
    parts = out / "parts"
    parts.mkdir(parents=True)
    files = [(parts / f"{n}.jsonl").open("wb") for n in range(processes)]
    with source.open("rb") as lines:  # datatrove deals whole files to tasks
        for number, line in enumerate(lines):
            files[number % processes].write(line)
    for file in files:
        file.close()
    kept, signatures, buckets, remove = (str(out / n) for n in ("kept", "sig", "buckets", "remove"))
    shared: dict[str, Any] = {"workers": processes}
    quality: dict[str, Any] = {
        "min_doc_words": 1,
        "min_stop_words": 0,
        "max_non_alpha_words_ratio": 0,
    }
    quality |= {"min_avg_word_length": None, "max_avg_word_length": None}
    stages = [
        (
            [
                JsonlReader(str(parts), text_key="prompt"),
                FTFYFormatter(),
                PIIFormatter(),
                GopherRepetitionFilter(language=words),
                GopherQualityFilter(**quality, language=words),
                FineWebQualityFilter(
                    line_punct_thr=0, short_line_thr=1.1, new_line_ratio=1, language=words
                ),
                JsonlWriter(kept, compression=None),
            ],
            processes,
        ),
        (
            [JsonlReader(kept), MinhashDedupSignature(output_folder=signatures, language=words)],
            processes,
        ),
        ([MinhashDedupBuckets(input_folder=signatures, output_folder=buckets)], 14),
        ([MinhashDedupCluster(input_folder=buckets, output_folder=remove)], 1),
        (
            [
                JsonlReader(kept),
                MinhashDedupFilter(input_folder=remove),
                JsonlWriter(str(out / "out"), compression=None),
            ],
            processes,
        ),
    ]
    for number, (pipeline, tasks) in enumerate(stages):
        logs = str(out / "logs" / str(number))
        LocalPipelineExecutor(pipeline, tasks=tasks, logging_dir=logs, **shared).run()


def measured(work: Path, name: str, source: Path, processes: int) -> tuple[float, float]:
    """Return seconds, and MiB of the largest process, of one run in a process of its own."""
    out = work / f"{name}-{processes}"
    command = [sys.executable, __file__, "--run", name, str(source), str(out), str(processes)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    shutil.rmtree(out, ignore_errors=True)
    return took, float(done.stdout.split()[-1]) / 1024


def main() -> None:
    if "--run" in sys.argv:
        name, source, out, processes = sys.argv[2:6]
        {"ours": ours, "peer": peer}[name](Path(source), Path(out), int(processes))
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        print(max(resource.getrusage(kind).ru_maxrss for kind in kinds))
        return
    parser = argparse.ArgumentParser(description="Cleaning against datatrove and against itself.")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--many", type=int, default=0, help="records of the long run, 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    facts: dict[str, Any] = {"records": options.records, "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = work / "records.jsonl"
        write_records(source, options.records)
        times: dict[str, list[float]] = {"ours 1": [], "ours 2": [], "peer 1": []}
        memory: dict[str, float] = {}
        for _ in range(options.repeats):  # in turns: what else the machine does meets all alike
            for key in times:
                name, processes = key.split()
                took, peak = measured(work, name, source, int(processes))
                times[key].append(took)
                memory[key] = max(peak, memory.get(key, 0))
        for key, values in times.items():
            rates = ", ".join(f"{options.records / value:,.0f}" for value in sorted(values))
            print(f"{key} process(es): {rates} records/s, largest process {memory[key]:.0f} MiB")
        ratios = [b / a for a, b in zip(times["ours 1"], times["peer 1"], strict=True)]
        gains = [a / b for a, b in zip(times["ours 1"], times["ours 2"], strict=True)]
        facts |= {"times_s": times, "peak_mib": memory, "against_peer": ratios, "two": gains}
        for name, values, floor in (
            ("against datatrove", ratios, 1.0),
            ("two processes", gains, 1.7),
        ):
            low, high = min(values), max(values)
            print(f"{name}: {median(values):.2f}× [{low:.2f}, {high:.2f}], limit ≥ {floor}×")
        if options.many:
            facts["growth"] = growth(work, options.many)
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def growth(work: Path, many: int) -> dict[str, list[float]]:
    """Measure a hundredth, a tenth and all of the records, in two processes."""
    found = {}
    for count in (many // 100, many // 10, many):
        source = work / f"{count}.jsonl"
        write_records(source, count)
        took, peak = measured(work, "ours", source, 2)
        found[str(count)] = [took, peak]
        each = took / count * 1e6
        print(
            f"{count:,} records: {took:.0f} s, {each:.0f} µs each, largest process {peak:.0f} MiB"
        )
        source.unlink()
    return found


if __name__ == "__main__":
    main()
