from __future__ import annotations

import ctypes
import random
import string
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aegis.model.prompt import disable_word_cache
from tests.conftest import byte_tokenizer

THREADS, WORDS = 4, 500


class Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`; `uordblks` is the bytes in use."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks")),
        *((name, ctypes.c_size_t) for name in ("fordblks", "keepcost")),
    ]


def growth(tokenizer: Any, seed: int) -> int:
    """Bytes that stay in use once several threads have read words that nobody read before."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    together = threading.Barrier(THREADS)

    def read(thread: int) -> None:
        together.wait()  # a thread each
        rng = random.Random(f"{seed}:{thread}")
        for _ in range(WORDS):
            tokenizer("".join(rng.choices(string.ascii_letters, k=16)))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(THREADS)))
        before = libc.mallinfo2().uordblks
        list(pool.map(read, range(THREADS, 2 * THREADS)))
        return libc.mallinfo2().uordblks - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads glibc's own count")
def test_the_tokenizer_keeps_nothing_of_what_it_reads() -> None:
    each = 100 * WORDS * THREADS
    assert growth(byte_tokenizer(), 0) > each
    tokenizer = byte_tokenizer()
    disable_word_cache(tokenizer)
    assert growth(tokenizer, 1) < each / 4
    assert tokenizer("words")["input_ids"] == byte_tokenizer()("words")["input_ids"]
