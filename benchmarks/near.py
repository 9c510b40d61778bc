"""Near-duplicates beside datasketch at equal settings: planted edits in both languages.

    python benchmarks/near.py [--texts 4000] [--json FILE]

Texts are three prompts of the seed in a row; as many copies have a few letters replaced. Truth is
the exact Jaccard similarity of 4-character shingles, at least 0.8, of every pair that a method
or the planting names. Both get 128 permutations in 16 bands of 8, and check candidates exactly.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH

from aegis.data.clean.near import RECORD, Prompt, band_keys, bands_for, find_copies
from aegis.data.clean.texts import normalise
from aegis.data.clean.whole import hash_text
from aegis.data.seed import seed_records

THRESHOLD = 0.8
LETTERS = {"ja": "あいうえおかきくけこさしすせそ", "en": "abcdefghijklmnoprstu"}


def shingles(text: str) -> set[str]:
    return {text[start : start + 4] for start in range(max(1, len(text) - 3))}


def similarity(one: str, other: str) -> float:
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def planted(language: str, count: int) -> list[str]:
    """Return `count` texts, and then a copy of each with about one letter in sixty replaced."""
    random_ = random.Random(5)
    prompts = [record.prompt for record in seed_records() if record.language == language]
    texts = [normalise(" ".join(random_.sample(prompts, 3))) for _ in range(count)]
    copies = []
    for text in texts:
        letters = list(text)
        for _ in range(random_.randint(1, len(text) // 40 + 1)):
            letters[random_.randrange(len(letters))] = random_.choice(LETTERS[language])
        copies.append(normalise("".join(letters)))
    return texts + copies


def ours(texts: list[str]) -> set[int]:
    kinds = np.full(len(texts), RECORD, np.uint8)
    exact = np.array([hash_text(text) for text in texts], np.uint64)
    keys = np.concatenate(
        [band_keys(texts[start : start + 2000], THRESHOLD) for start in range(0, len(texts), 2000)],
        axis=1,
    )
    prompts = [Prompt(str(number), text, RECORD) for number, text in enumerate(texts)]
    return set(find_copies(kinds, exact, keys, prompts.__getitem__, THRESHOLD))


def peer(texts: list[str]) -> set[int]:
    """Query, then insert what is no copy, as its documentation does it."""
    bands = bands_for(THRESHOLD)
    index = MinHashLSH(num_perm=128, params=(bands, 128 // bands))
    found = set()
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        near = (int(str(key)) for key in index.query(sketch))
        if any(similarity(text, texts[other]) >= THRESHOLD for other in near):
            found.add(number)
        else:
            index.insert(str(number), sketch)
    return found


def measured(find: Callable[[list[str]], set[int]], texts: list[str]) -> dict[str, Any]:
    """Return recall and precision over the copies, and texts a CPU second."""
    begun = time.process_time()
    found = find(texts)
    took = time.process_time() - begun
    half = len(texts) // 2
    true = {n for n in range(half, 2 * half) if similarity(texts[n], texts[n - half]) >= THRESHOLD}
    right = (
        {
            n
            for n in found
            if n in true
            or any(
                similarity(texts[n], texts[other]) >= THRESHOLD for other in range(n) if other != n
            )
        }
        if found - true
        else found
    )
    return {
        "recall": len(found & true) / len(true),
        "precision": len(right) / len(found),
        "planted": len(true),
        "per_cpu_s": len(texts) / took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Near-duplicates beside datasketch.")
    parser.add_argument("--texts", type=int, default=4000, help="in each language, copies included")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for language in LETTERS:
        texts = planted(language, options.texts // 2)
        for name, find in (("ours", ours), ("datasketch", peer)):
            row = found[f"{language} {name}"] = measured(find, texts)
            print(
                f"{language} {name:10} recall {row['recall']:.3f}, "
                f"precision {row['precision']:.3f} of {row['planted']} planted; "
                f"{row['per_cpu_s']:,.0f} texts a CPU second"
            )
        one, other = (found[f"{language} {name}"]["per_cpu_s"] for name in ("ours", "datasketch"))
        print(f"{language}: {one / other:.1f}× datasketch")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
