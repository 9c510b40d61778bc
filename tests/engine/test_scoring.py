from __future__ import annotations

import random

from aegis.engine.scoring import Continuation, Row, cut, deal, encode_pair


def row_of(*pairs: tuple[list[int], list[int]], context: int = 100) -> Row:
    return Row.of([Continuation(*pair) for pair in pairs], context)


def test_a_row_reads_what_all_share_once() -> None:
    row = row_of(([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([1, 2, 9], [4, 5]))
    assert (row.trunk, row.branches) == ([1, 2], [[3, 4], [3], [9, 4]])
    assert row.ids == [1, 2, 3, 4, 3, 9, 4]
    assert row.positions().tolist() == [0, 1, 2, 3, 2, 2, 3]
    assert row.segments().tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert row.targets == [[(2, 4), (3, 5)], [(4, 6)], [(5, 4), (6, 5)]]
    assert row.shareable == 2
    chains = row.chains()
    assert [chain.ids for chain in chains] == [[1, 2, 3, 4], [1, 2, 3], [1, 2, 9, 4]]
    assert [chain.targets for chain in chains] == [
        [[(2, 4), (3, 5)]],
        [[(2, 6)]],
        [[(2, 4), (3, 5)]],
    ]


def test_one_token_choices_need_one_place() -> None:
    row = row_of(*[([1, 2, 3], [choice]) for choice in (7, 8, 9)])
    assert row.ids == [1, 2, 3]
    assert row.targets == [[(2, 7)], [(2, 8)], [(2, 9)]]


def test_what_is_too_long_loses_its_first_tokens() -> None:
    row = row_of(([1, 2, 3, 4], [5, 6]), context=3)
    assert row.ids == [3, 4, 5]
    assert row.targets == [[(1, 5), (2, 6)]]
    assert row_of(([1], [2, 3, 4, 5]), context=3).targets == [[(0, 3), (1, 4), (2, 5)]]


def test_rows_that_begin_alike_share_a_header_and_every_row_is_read_once() -> None:
    rng = random.Random(0)
    rows = []
    for subject in range(3):
        header = [rng.randrange(100) for _ in range(50)] + [subject]
        for _ in range(7):
            question = [rng.randrange(100) for _ in range(rng.randint(2, 9))]
            rows.append(row_of(*[(header + question, [choice]) for choice in range(4)]))
    lone = row_of(([1, 2, 3], [4]))
    batches = deal([*rows, lone], batch_tokens=20)
    read = [index for batch in batches for index in batch.members]
    assert sorted(read) == list(range(22))
    assert {len(batch.header) for batch in batches} >= {51}
    for batch in batches:
        for index in batch.members:
            row = [*rows, lone][index]
            assert row.ids[: len(batch.header)] == batch.header
            assert len(batch.header) <= row.shareable
    assert deal([*rows, lone], batch_tokens=20) == batches


def test_text_ends_before_the_first_stop() -> None:
    assert cut("one\n\ntwo Question: three", ["Question:", "\n\n", ""]) == "one"


class _Words:
    """Words are tokens, a space before one included."""

    context, prefix = 100, 0

    def ids(self, text: str, *, special: bool | None = None) -> list[int]:
        words = text.replace(" ", "\n ").split("\n")
        return [hash(word) % 1000 + 1 for word in words if word]


def test_spaces_go_to_the_continuation() -> None:
    words: object = _Words()
    pair = encode_pair(words, "a b ", "c")  # pyright: ignore[reportArgumentType]
    assert pair == Continuation(_Words().ids("a b"), _Words().ids(" c"))
    assert encode_pair(words, "", "a").context == [0]  # pyright: ignore[reportArgumentType]
