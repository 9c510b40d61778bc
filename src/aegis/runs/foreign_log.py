"""Tell how a run of another trainer stands from the end of its log; nothing else is known of it."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from aegis.errors import BadInputError

_PATTERNS = ("*.log", "*.out", "*.txt", "trainer_state.json", "*/trainer_state.json")
_NO_LOGS = frozenset({"merges.txt", "vocab.txt", "requirements.txt", "readme.txt", "license.txt"})
_TAIL_BYTES, _HEAD_BYTES = 1 << 18, 1 << 12
_TAIL_LINES, _ERROR_LINES = 100, 10
_SAVED_WITH_LAST_LINE_S = 60.0


def _any_of(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


_FINISHED = _any_of(
    r"\btraining(?: run)?(?: is| was| has| has been)? (?:successfully )?"
    r"(?:completed?|finished|done)\b",
    r"\b(?:finished|completed) training\b",
    r"\btrain_runtime\b",
    r"\bsaving (?:the )?final model\b",
    r"\bfinal model (?:was |is )?saved\b",
    r"(?:学習|訓練|トレーニング|ファインチューニング)(?:の全工程)?"
    r"(?:が|を|は)?(?:すべて|全て|正常に)?(?:完了|終了)",
    r"最終モデルを保存",
)
_NOT_YET = _any_of(
    r"\b(?:not|will|until|once|when|if|before)\b",
    r"\bepoch\W*\d+.*\btraining\b",
    r"エポック\W*\d+|未完了|していません",
)
# Whatever was completed: the whole, unless the line names a part.
_DONE = _any_of("(?:完了|終了)しました")
_PART = _any_of(
    "読み込み|ロード|準備|前処理|初期化|インポート|インストール|トークン化|接続",
    "チェックポイント|エポック|ステップ|検証|評価",
)
_BEGUN = _any_of(
    r"\brunning training\b",
    r"\bstart(?:ing|ed)? (?:the )?training\b",
    r"\btraining started\b",
    "学習を?開始",
)
_TRACEBACK = _any_of(r"Traceback \(most recent call last\)")
_ERROR = _any_of(
    _TRACEBACK.pattern,
    r"(?-i:^[\w.]*(?<!Squared)(?<!Absolute)(?:Error|Exception|Interrupt)(?::|\s*$))",
    r"(?-i:\b[A-Z]\w*(?<!Squared)(?<!Absolute)(?:Error|Exception): )",  # after a rank or a time
    r"\bout of memory\b",
    r"(?:^|[\s:])Killed\s*(?:$|process\b|\s+[/\w])",
    r"\bsegmentation fault\b|\bcore dumped\b|\bbus error\b|^Aborted\b",
    r"\boom-?kill|\bDUE TO TIME LIMIT\b|\bCANCELLED AT\b",
    r"\bloss\b['\"]?\s*(?:[:=]|is|became)\s*['\"]?nan\b",
    r"\bNaN (?:loss|detected)\b",
)
_IMPORT_ERROR = _any_of(r"\b(?:ImportError|ModuleNotFoundError)\b")
_STOPPED = _any_of(r"^KeyboardInterrupt\b")
_GOES_ON = _any_of(
    r"\bimport\w*\W+(?:\w+\W+){0,3}(?:succe|ok\b)",
    r"\bsuccessfully imported\b",
    r"\b(?:continuing|falling back|fallback)\b|\binstead\b",
    r"\btraining (?:starts|started|continues|resumed|goes on)\b",
    r"\brunning training\b|\bstarting training\b",
    r"\b(?:step|epoch|iter(?:ation)?)\W*\d+",
    r"\d+/\d+ \[|['\"]loss['\"]:",
    r"インポート(?:に|は|が)?成功|続行|継続|学習を?開始",
)
_COUNTS = re.compile(r"(\d+)/(\d+)\s*\[|\bstep\W*(\d+)\s*/\s*(\d+)", re.IGNORECASE)
_TIME = re.compile(r"(\d{4})[-/](\d\d)[-/](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class LogState:
    """`name`: finished, failed, stopped, running, or silent where nobody can know."""

    name: str
    evidence: str
    done: int | None = None
    total: int | None = None


def find_log(path: Path) -> Path:
    """Return the log itself, or the newest one in an output folder.

    Raises:
        BadInputError: if there is none.
    """
    if path.is_file():
        return path
    files = [file for pattern in _PATTERNS for file in path.glob(pattern)]
    logs = [file for file in files if file.is_file() and file.name.lower() not in _NO_LOGS]
    if not logs:
        raise BadInputError(
            f"{path}: neither a session nor a log (*.log, *.out, *.txt, trainer_state.json) "
            "is in it; give a session such as runs/latest, a log file, or the folder of one"
        )
    return max(logs, key=lambda file: file.stat().st_mtime)


def read_log(path: Path, *, silent_s: float, silence_s: float) -> LogState:
    """Judge the run that wrote this log, `silent_s` seconds after it last wrote to it."""
    lines, is_state = read_tail(path), path.name == "trainer_state.json"
    done, total = _trainer_state_counts(path) if is_state else _last_counts(lines)
    finish, error = _last_finish(lines), _last_error(lines)
    if finish is not None and (error is None or finish > error):
        name, evidence = "finished", _quote(lines[finish])
    elif error is not None:
        name = "stopped" if _STOPPED.search(lines[error]) else "failed"
        evidence = _quote(lines[error])
    elif is_state and done is not None and done == total:
        name, evidence = "finished", f"{path.name} says {done} of {total} steps"
    elif silent_s <= silence_s:
        name, evidence = "running", f"{path.name} was written to {silent_s:.0f} s ago"
    elif model := _final_model(path):
        name, evidence = "finished", f"{model} is newer than the log's start"
    else:
        name = "silent"
        evidence = (
            f"{path.name} was last written to {silent_s:.0f} s ago; "
            "its process is unknown, so hung or dead"
        )
    return LogState(name, evidence, done, total)


def read_tail(path: Path, *, lines: int = _TAIL_LINES) -> list[str]:
    """Return the last lines that are not empty, of a redrawn one its last state."""
    with path.open("rb") as file:
        is_utf16 = file.read(2) == codecs.BOM_UTF16_LE  # what PowerShell 5 writes with >
        begin = max(0, file.seek(0, 2) - _TAIL_BYTES)
        file.seek(begin - begin % 2)
        data = file.read(_TAIL_BYTES + 1)
    raw = _decode(data, is_utf16=is_utf16).split("\n")
    if begin and len(raw) > 1:
        raw = raw[1:]
    drawn = (_ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in raw)
    cleaned = (line.strip("\ufeff").rstrip() for line in drawn)
    return [line for line in cleaned if line][-lines:]


def _decode(data: bytes, *, is_utf16: bool) -> str:
    """Decode a piece of a file, which may begin and end inside a character."""
    if is_utf16:
        return data.decode("utf-16-le", "replace")
    whole_lines = data.partition(b"\n")[2] if b"\n" in data else data
    for encoding in ("utf-8", "cp932"):
        try:
            codecs.getincrementaldecoder(encoding)().decode(whole_lines)
        except UnicodeDecodeError:
            continue
        return data.decode(encoding, "replace")
    return data.decode("utf-8", "replace")


def _last_finish(lines: list[str]) -> int | None:
    """Find the last line that says the end, unless a training has begun since."""
    for index in reversed(range(len(lines))):
        line = lines[index]
        if _BEGUN.search(line):
            return None
        whole_done = _DONE.search(line) and not _PART.search(line)
        if (_FINISHED.search(line) or whole_done) and not _NOT_YET.search(line):
            return index
    return None


def _last_error(lines: list[str]) -> int | None:
    """Find the last error among the last lines, but for an import that failed and was got over."""
    first = max(0, len(lines) - _ERROR_LINES)
    errors = [index for index in range(first, len(lines)) if _ERROR.search(lines[index])]
    imports = [index for index in errors if _IMPORT_ERROR.search(lines[index])]
    if imports and any(_GOES_ON.search(line) for line in lines[imports[-1] + 1 :]):
        errors = [
            index
            for index in errors
            if index not in imports
            and not (index < imports[-1] and _TRACEBACK.search(lines[index]))
        ]
    return errors[-1] if errors else None


def _last_counts(lines: list[str]) -> tuple[int | None, int | None]:
    for line in reversed(lines):
        if matches := _COUNTS.findall(line):
            done, total = (int(number) for number in matches[-1] if number)
            return done, total
    return None, None


def _trainer_state_counts(path: Path) -> tuple[int | None, int | None]:
    """Read steps done and wanted: sorted keys, so one before the long history, one behind it."""
    with path.open("rb") as file:
        head, size = file.read(_TAIL_BYTES), file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
    done = re.search(rb'"global_step":\s*(\d+)', head)
    total = re.search(rb'"max_steps":\s*(\d+)', tail)
    return (int(done[1]) if done else None, int(total[1]) if total else None)


def _final_model(log: Path) -> Path | None:
    """Find a whole model beside the log, or in a final* folder, written since its start."""
    stat = log.stat()
    started = getattr(stat, "st_birthtime", None) or _first_time(log)
    started = started or stat.st_mtime - _SAVED_WITH_LAST_LINE_S
    for folder in (log.parent, *log.parent.glob("final*/")):
        weights = [file for file in folder.glob("*.safetensors") if file.stat().st_mtime >= started]
        if weights and (folder / "config.json").is_file():
            return weights[0]
    return None


def _first_time(log: Path) -> float | None:
    """Return the log's first time stamp, taken as local time, in seconds since the epoch."""
    with log.open("rb") as file:
        match = _TIME.search(file.read(_HEAD_BYTES).decode("utf-8", "replace"))
    try:
        text = "{}-{}-{} {}:{}:{}".format(*match.groups()) if match else ""
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _quote(line: str) -> str:
    line = line.strip()
    return f"the log says: {line if len(line) <= 160 else line[:159] + '…'}"
