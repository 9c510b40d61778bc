from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.data.seed import seed_records
from aegis.inputs.encodings import NAMES, detect_encoding, encoded_lines

PROMPTS = [record.prompt for record in seed_records() if record.language == "ja"][::40]
SHORT = ["id,文\n1,今日は\n", "東京都,新宿区\n", "カタカナ\n", "x,お\n", "「はい」\n"]


@pytest.mark.parametrize("encoding", NAMES)
def test_short_japanese_files_are_told_apart(tmp_path: Path, encoding: str) -> None:
    texts = [f"{json.dumps({'prompt': p}, ensure_ascii=False)}\n" for p in PROMPTS]
    path, tried = tmp_path / "x", 0
    for text in [*texts, *SHORT, *PROMPTS]:
        try:
            data = text.encode(encoding)
        except UnicodeEncodeError:  # an emoji is in no older encoding
            continue
        tried += 1
        path.write_bytes(data)
        read = path.read_text(encoding=detect_encoding(path), errors="replace")
        assert read.lstrip("\ufeff") == text, (text, detect_encoding(path))
    assert tried > 100


@pytest.mark.parametrize(
    "text", ["résumé “Hello” don’t café", "Ça va ? “Héros”", "Düsseldorf Straße", "naïve – “x”"]
)
def test_western_text_is_not_taken_for_japanese(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_bytes(text.encode("cp1252"))
    assert detect_encoding(tmp_path / "x") == "utf-8"
    (line,) = encoded_lines(tmp_path / "x", "utf-8", name="x", most=100)
    assert line.problem.startswith("not UTF-8 at byte")


def test_what_comes_late_counts(tmp_path: Path) -> None:
    ascii_lines, late = b"{}\n" * 700_000, "こんにちは\n"
    for encoding in ("cp932", "euc_jp", "utf-8"):
        (tmp_path / "x").write_bytes(ascii_lines + late.encode(encoding))
        assert detect_encoding(tmp_path / "x") == encoding


@pytest.mark.parametrize(
    ("own", "other"), [("utf-8", "cp932"), ("utf-8", "euc_jp"), ("cp932", "utf-8")]
)
def test_a_line_in_another_encoding_is_told_and_the_rest_read(
    tmp_path: Path, own: str, other: str
) -> None:
    rows = [
        ("これは一行目で、いちばん長い行です", own),
        ("別の文字コードの行です", other),
        ("三行目です", own),
    ]
    (tmp_path / "x").write_bytes(b"".join(f"{text}\n".encode(code) for text, code in rows))
    assert detect_encoding(tmp_path / "x") == own
    lines = list(encoded_lines(tmp_path / "x", own, name="x", most=100))
    assert [line.problem for line in lines] == [
        "",
        f"{NAMES[other]}, not {NAMES[own]}; save the whole file in one encoding",
        "",
    ]
    assert [line.text for line in lines] == [f"{text}\n" for text, _ in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_line_without_an_end_is_passed_over(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x").write_text(f"ab\n{'x' * 5000}\n\ncd", encoding=encoding)
    lines = list(encoded_lines(tmp_path / "x", encoding, name="x", most=100))
    assert [(line.where, line.problem) for line in lines] == [
        ("x:1", ""),
        ("x:2", "longer than 100 characters; shorten the line"),
        ("x:4", ""),
    ]


def test_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufeffあ".encode("utf-16-le") + b"\x00")
    (line,) = encoded_lines(tmp_path / "x", "utf-16", name="x", most=100)
    assert line.problem == "damaged UTF-16; save the file as UTF-8"
    (tmp_path / "x").write_bytes(b"a\0b\n")
    (line,) = encoded_lines(tmp_path / "x", "utf-8", name="x", most=100)
    assert line.problem.startswith("holds zero bytes")
