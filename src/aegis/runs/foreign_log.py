"""How a run of another trainer stands, from the end of its log; nothing else is known of it."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aegis.errors import BadInputError

_PATTERNS = ("*.log", "*.out", "*.txt", "trainer_state.json", "*/trainer_state.json")
_NO_LOGS = frozenset({"merges.txt", "vocab.txt", "requirements.txt", "readme.txt", "license.txt"})
_TAIL, _HEAD = 1 << 18, 1 << 12
_FINISH_LINES, _ERROR_LINES = 100, 10
_SAVED_WITH_LAST_LINE_S = 60.0


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


_FINISHED = _words(
    r"\btraining(?: run)?(?: is| was| has| has been)? (?:successfully )?(?:completed?|finished|done)\b",
    r"\b(?:finished|completed) training\b",
    r"\btrain_runtime\b",
    r"\bsaving (?:the )?final model\b",
    r"\bfinal model (?:was |is )?saved\b",
    r"(?:学習|訓練|トレーニング|ファインチューニング)(?:の全工程)?(?:が|を|は)?(?:すべて|全て|正常に)?(?:完了|終了)",
    r"最終モデルを保存",
)
_NOT_YET = _words(
    r"\b(?:not|will|until|once|when|if|before)\b",
    r"\bepoch\W*\d+.*\btraining\b",
    r"エポック\W*\d+|未完了|していません",
)
# Whatever was completed: the whole, unless the line names a part.
_DONE = _words("(?:完了|終了)しました")
_PART = _words(
    "読み込み|ロード|準備|前処理|初期化|インポート|インストール|トークン化|接続|チェックポイント|エポック|ステップ|検証|評価"
)
_BEGUN = _words(
    r"\brunning training\b",
    r"\bstart(?:ing|ed)? (?:the )?training\b",
    r"\btraining started\b",
    "学習を?開始",
)
_ERROR = _words(
    r"Traceback \(most recent call last\)",
    r"(?-i:^[\w.]*(?<!Squared)(?<!Absolute)(?:Error|Exception|Interrupt)(?::|\s*$))",
    r"(?-i:\b[A-Z]\w*(?<!Squared)(?<!Absolute)(?:Error|Exception): )",  # after a rank or a time
    r"\bout of memory\b",
    r"(?:^|[\s:])Killed\s*(?:$|process\b|\s+[/\w])",
    r"\bsegmentation fault\b|\bcore dumped\b|\bbus error\b|^Aborted\b",
    r"\boom-?kill|\bDUE TO TIME LIMIT\b|\bCANCELLED AT\b",
    r"\bloss\b['\"]?\s*(?:[:=]|is|became)\s*['\"]?nan\b",
    r"\bNaN (?:loss|detected)\b",
)
_IMPORT_ERROR = _words(r"\b(?:ImportError|ModuleNotFoundError)\b")
_STOPPED = _words(r"^KeyboardInterrupt\b")
_TRACEBACK = _words(r"Traceback \(most recent call last\)")
_GOES_ON = _words(
    r"\bimport\w*\W+(?:\w+\W+){0,3}(?:succe|ok\b)",
    r"\bsuccessfully imported\b",
    r"\b(?:continuing|falling back|fallback)\b|\binstead\b",
    r"\btraining (?:starts|started|continues|resumed|goes on)\b|\brunning training\b|\bstarting training\b",
    r"\b(?:step|epoch|iter(?:ation)?)\W*\d+",
    r"\d+/\d+ \[|['\"]loss['\"]:",
    r"インポート(?:に|は|が)?成功|続行|継続|学習を?開始",
)
_COUNTS = re.compile(r"(\d+)/(\d+)\s*\[|\bstep\W*(\d+)\s*/\s*(\d+)", re.IGNORECASE)
_TIME = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Finding:
    """What a log says: `finished`, `failed`, `stopped`, `running`, or `silent` where nobody can
    know."""

    state: str
    evidence: str
    done: int | None = None
    total: int | None = None


def find_log(path: Path) -> Path:
    """The log itself, or the newest one in an output folder.

    Raises:
        BadInputError: if there is none.
    """
    if path.is_file():
        return path
    found = [file for pattern in _PATTERNS for file in path.glob(pattern)]
    found = [file for file in found if file.is_file() and file.name.lower() not in _NO_LOGS]
    if not found:
        raise BadInputError(
            f"{path}: neither a session nor a log (*.log, *.out, *.txt, trainer_state.json) is in it; "
            "give a session such as runs/latest, a log file, or the folder of one"
        )
    return max(found, key=lambda file: file.stat().st_mtime)


def judge_log(path: Path, *, silent_s: float, silence_s: float) -> Finding:
    """How the run stands that wrote this log, `silent_s` seconds after it last wrote to it."""
    lines = read_tail(path)
    done, total = _state_counts(path) if path.name == "trainer_state.json" else _counts(lines)
    state, evidence = _said(lines)
    if state is None and done is not None and done == total and path.name == "trainer_state.json":
        state, evidence = "finished", f"{path.name} says {done} of {total} steps"
    if state is None and silent_s <= silence_s:
        state, evidence = "running", f"{path.name} was written to {silent_s:.0f} s ago"
    if state is None and (model := _final_model(path)):
        state, evidence = "finished", f"{model} is newer than the log's start"
    if state is None:
        state = "silent"
        evidence = f"{path.name} was last written to {silent_s:.0f} s ago; its process is unknown, so hung or dead"
    return Finding(state, evidence, done, total)


def read_tail(path: Path, *, lines: int = _FINISH_LINES) -> list[str]:
    """The last lines with something in them; only the file's end is read. Of a redrawn line, its
    last state."""
    with path.open("rb") as file:
        mark, size = file.read(2), file.seek(0, 2)
        begin = max(0, size - _TAIL)
        file.seek(begin - begin % 2)
        data = file.read(_TAIL + 1)
    text = _decoded(data, utf16=mark == codecs.BOM_UTF16_LE)  # what PowerShell 5 writes with >
    found = text.split("\n")
    if begin and len(found) > 1:
        found = found[1:]
    cleaned = (
        _ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]).strip("\ufeff").rstrip()
        for line in found
    )
    return [line for line in cleaned if line][-lines:]


def _decoded(data: bytes, *, utf16: bool) -> str:
    """Text of a piece of a file, which may begin and end inside a character."""
    if utf16:
        return data.decode("utf-16-le", "replace")
    whole = data.partition(b"\n")[2] if b"\n" in data else data
    for encoding in ("utf-8", "cp932"):
        try:
            codecs.getincrementaldecoder(encoding)().decode(whole)
        except UnicodeDecodeError:
            continue
        return data.decode(encoding, "replace")
    return data.decode("utf-8", "replace")


def _said(lines: list[str]) -> tuple[str | None, str]:
    """What the lines say of themselves; None if they say nothing of an end."""
    finish, error = _finish_line(lines), _error_line(lines)
    if finish is not None and (error is None or finish > error):
        return "finished", _quoted(lines[finish])
    if error is None:
        return None, ""
    return "stopped" if _STOPPED.search(lines[error]) else "failed", _quoted(lines[error])


def _finish_line(lines: list[str]) -> int | None:
    """Of the last line that tells the end, unless a training has begun since."""
    for index in reversed(range(len(lines))):
        if _BEGUN.search(lines[index]):
            return None
        if _tells_the_end(lines[index]):
            return index
    return None


def _tells_the_end(line: str) -> bool:
    if _NOT_YET.search(line):
        return False
    return bool(_FINISHED.search(line)) or bool(_DONE.search(line) and not _PART.search(line))


def _error_line(lines: list[str]) -> int | None:
    """Of the last error among the last lines; an import that failed and was got over does not
    count."""
    first = max(0, len(lines) - _ERROR_LINES)
    found = [index for index in range(first, len(lines)) if _ERROR.search(lines[index])]
    imports = [index for index in found if _IMPORT_ERROR.search(lines[index])]
    if imports and any(_GOES_ON.search(line) for line in lines[imports[-1] + 1 :]):
        forgiven = {
            index for index in found if index <= imports[-1] and _TRACEBACK.search(lines[index])
        } | set(imports)
        found = [index for index in found if index not in forgiven]
    return found[-1] if found else None


def _counts(lines: list[str]) -> tuple[int | None, int | None]:
    for line in reversed(lines):
        if found := _COUNTS.findall(line):
            done, total = (int(number) for number in found[-1] if number)
            return done, total
    return None, None


def _state_counts(path: Path) -> tuple[int | None, int | None]:
    """Steps done and wanted. The keys are sorted, so one stands before the long history and one
    behind it."""
    with path.open("rb") as file:
        head, size = file.read(_TAIL), file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        tail = file.read(_TAIL)
    done = re.search(rb'"global_step":\s*(\d+)', head)
    total = re.search(rb'"max_steps":\s*(\d+)', tail)
    return (int(done[1]) if done else None, int(total[1]) if total else None)


def _final_model(log: Path) -> Path | None:
    """A whole model beside the log, or in a folder beside it that is called final, written since
    the log's start."""
    status = log.stat()
    started = (
        getattr(status, "st_birthtime", None)
        or _first_time(log)
        or status.st_mtime - _SAVED_WITH_LAST_LINE_S
    )
    for folder in (log.parent, *log.parent.glob("final*/")):
        weights = [file for file in folder.glob("*.safetensors") if file.stat().st_mtime >= started]
        if weights and (folder / "config.json").is_file():
            return weights[0]
    return None


def _first_time(log: Path) -> float | None:
    """Seconds since the epoch of the first time stamp in the log, taken as local time."""
    with log.open("rb") as file:
        found = _TIME.search(file.read(_HEAD).decode("utf-8", "replace"))
    try:
        return (
            datetime.fromisoformat("{}-{}-{} {}:{}:{}".format(*found.groups())).timestamp()
            if found
            else None
        )
    except (ValueError, OverflowError, OSError):
        return None


def _quoted(line: str) -> str:
    line = line.strip()
    return f"the log says: {line if len(line) <= 160 else line[:159] + '…'}"
