"""Cleaning against a datatrove pipeline of its own nearest filters, and against itself: two
processes beside one, and many records beside few.

    python benchmarks/cleanse.py [--records 20000] [--many 1000000] [--json FILE]

The peer reads and writes the same files in as many processes: FTFY, PII, Gopher's repetition and
quality, FineWeb's quality, and MinHash in its four stages (14 bands of 8, words of 5). It keeps
neither rejects' twins nor traces, checks no decision and identifies no language, which needs a
download there. Its filters get a tokenizer by regular expression, quicker than spaCy's, theirs by
default. Needs the extras `data` and `dev`.
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
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Run:
    """One run in processes of its own.

    Args:
        wall_s: from start to end.
        cpu_s: of all processes together, which other work on the machine hardly changes.
        peak_mib: resident memory of the largest process.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float


def measured(work: Path, name: str, source: Path, processes: int) -> Run:
    """Run once and measure."""
    out = work / f"{name}-{processes}"
    command = [sys.executable, __file__, "--run", name, str(source), str(out), str(processes)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    shutil.rmtree(out, ignore_errors=True)
    cpu_s, peak = map(float, done.stdout.split()[-2:])
    return Run(took, cpu_s, peak / 1024)


def main() -> None:
    if "--run" in sys.argv:
        name, source, out, processes = sys.argv[2:6]
        {"ours": ours, "peer": peer}[name](Path(source), Path(out), int(processes))
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        usages = [resource.getrusage(kind) for kind in kinds]
        print(sum(use.ru_utime + use.ru_stime for use in usages), max(u.ru_maxrss for u in usages))
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
        runs: dict[str, list[Run]] = {"ours 1": [], "ours 2": [], "peer 1": []}
        for _ in range(options.repeats):  # in turns: what else the machine does meets all alike
            for key, done in runs.items():
                name, processes = key.split()
                done.append(measured(work, name, source, int(processes)))
        for key, done in runs.items():
            wall = ", ".join(f"{options.records / run.wall_s:,.0f}" for run in done)
            cpu = ", ".join(f"{options.records / run.cpu_s:,.0f}" for run in done)
            peak = max(run.peak_mib for run in done)
            print(f"{key}: {wall} records/s, {cpu} a CPU second, largest process {peak:.0f} MiB")
        facts["runs"] = {key: [asdict(run) for run in done] for key, done in runs.items()}
        pairs = list(zip(runs["ours 1"], runs["peer 1"], strict=True))
        compare("against datatrove", [peer.wall_s / our.wall_s for our, peer in pairs], 1.0)
        compare("against datatrove, by CPU", [p.cpu_s / o.cpu_s for o, p in pairs], 1.0)
        gains = zip(runs["ours 1"], runs["ours 2"], strict=True)
        compare("two processes", [one.wall_s / two.wall_s for one, two in gains], 1.7)
        if options.many:
            facts["growth"] = growth(work, options.many)
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def compare(name: str, ratios: list[float], floor: float) -> None:
    """Print the ratios' median and spread beside their limit."""
    shown = f"{median(ratios):.2f}× [{min(ratios):.2f}, {max(ratios):.2f}]"
    print(f"{name}: {shown}, n {len(ratios)}, limit ≥ {floor}×")


def growth(work: Path, many: int) -> dict[str, Any]:
    """Measure a hundredth, a tenth and all of the records, in two processes."""
    found = {}
    for count in (many // 100, many // 10, many):
        source = work / f"{count}.jsonl"
        write_records(source, count)
        run = measured(work, "ours", source, 2)
        found[str(count)] = asdict(run)
        each = f"{run.wall_s / count * 1e6:.0f} µs each, {run.cpu_s / count * 1e6:.0f} µs of CPU"
        print(f"{count:,} records: {run.wall_s:.0f} s, {each}, largest {run.peak_mib:.0f} MiB")
        source.unlink()
    return found


if __name__ == "__main__":
    main()
