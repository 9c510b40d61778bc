"""Replay every state in which a power cut could leave a folder.

A killed process keeps the page cache, so kill -9 cannot find a missing fsync. This records one run
of a writer with strace and rebuilds, after each of its operations, the folder as a disk may hold
it:

    data not yet synced     lost | zeroed | kept
    names not yet synced    kept (journal order) | lost (only what a folder fsync made durable)

The states are pessimistic and are states, not probabilities. Method: ALICE (OSDI '14) and SQLite's
crash tests.

    crash_states.py ROOT --check 'CHECK_COMMAND {}' -- WRITER [ARG ...]

ROOT is a fresh folder that WRITER writes into. CHECK_COMMAND gets each rebuilt folder in place of
{}; its exit status names the verdict: 0 sound, 1 corrupt, 2 lost what had been acknowledged, other
values are counted under their number. Needs strace. Prints a JSON summary last; exits 1 if any
state was not sound.

Our copy of shared/tools/crash_states.py. It differs in its type annotations, and in two things that
the disk would do: a file opened to append is written at its end (there, at its beginning: a
journal's second line would replace its first), and the synced folders below a renamed folder move
with it, as its synced files do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRACED = (
    "openat,creat,write,writev,pwrite64,ftruncate,fsync,fdatasync,"
    "rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,close"
)
Operation = tuple[Any, ...]
MODES = list(itertools.product(("lost", "zeroed", "kept"), ("kept", "lost")))


@dataclass
class Inode:
    live: bytearray = field(default_factory=bytearray)  # what a reader sees
    durable: bytes = b""  # what the last fsync made safe
    position: int = 0
    clean: bool = True


def record(root: str, writer: list[str]) -> Path:
    """Run the writer under strace; return the log."""
    log = Path(f"{root}.strace")
    subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-xx",
            "-s",
            "100000000",
            "-e",
            f"trace={TRACED}",
            "-o",
            str(log),
            *writer,
        ],
        stdout=subprocess.DEVNULL,
    )
    return log


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.strip('"').replace("\\x", ""))


def parse(log: Path, root: str) -> list[Operation]:
    """Turn the strace log into (operation, path, …) tuples under root, in order of completion."""
    cwd = os.getcwd()
    unfinished: dict[str, str] = {}
    operations: list[Operation] = []

    def resolve(token: str, folder: str | None = None) -> str:
        name = unhex(token).decode()
        return os.path.normpath(name if name.startswith("/") else os.path.join(folder or cwd, name))

    def of_descriptor(token: str) -> str | None:
        match = re.match(r"(?:AT_FDCWD|\d+)<(.*)>$", token)
        if not match:
            return None
        name = match.group(1)
        return unhex(name).decode() if name.startswith("\\x") else name

    for raw in log.read_text(errors="replace").splitlines():
        pid, _, line = raw.partition(" ")
        line = line.strip()
        if line.endswith("<unfinished ...>"):
            unfinished[pid] = line[: -len("<unfinished ...>")].rstrip()
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>\s?(.*)", line):
            line = unfinished.pop(pid, "") + resumed.group(1)
        match = re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", line)
        if not match or int(match.group(3)) < 0:
            continue
        call, text, returned = match.group(1), match.group(2), int(match.group(3))
        args = re.split(r",\s(?![^<]*>)", text)
        found = _operation(call, text, args, returned, resolve, of_descriptor)
        if found and found[1] and found[1].startswith(root):
            operations.append(found)
    return operations


def _operation(
    call: str,
    text: str,
    args: list[str],
    returned: int,
    resolve: Callable[..., str],
    of_descriptor: Callable[[str], str | None],
) -> Operation | None:
    """One traced call as (operation, path, …), or None where it changes nothing."""
    if call == "openat":
        if "O_CREAT" in text or "O_TRUNC" in text:
            return (
                "open",
                resolve(args[1], of_descriptor(args[0])),
                "O_TRUNC" in text,
                "O_APPEND" in text,
            )
    elif call == "creat":
        return ("open", resolve(args[0]), True, False)
    elif call in ("write", "pwrite64"):
        offset = int(args[3]) if call == "pwrite64" else None
        return ("write", of_descriptor(args[0]), unhex(args[1])[:returned], offset)
    elif call == "writev":
        pieces = b"".join(unhex(piece) for piece in re.findall(r'iov_base="([^"]*)"', text))
        return ("write", of_descriptor(args[0]), pieces[:returned], None)
    elif call == "ftruncate":
        return ("truncate", of_descriptor(args[0]), int(args[1]))
    elif call in ("fsync", "fdatasync"):
        return ("fsync", of_descriptor(args[0]))
    elif call == "rename":
        return ("rename", resolve(args[1]), resolve(args[0]))
    elif call in ("renameat", "renameat2"):
        return (
            "rename",
            resolve(args[3], of_descriptor(args[2])),
            resolve(args[1], of_descriptor(args[0])),
        )
    elif call == "mkdir":
        return ("mkdir", resolve(args[0]))
    elif call == "mkdirat":
        return ("mkdir", resolve(args[1], of_descriptor(args[0])))
    elif call == "rmdir":
        return ("rmdir", resolve(args[0]))
    elif call == "unlink":
        return ("unlink", resolve(args[0]))
    elif call == "unlinkat":
        kind = "rmdir" if "AT_REMOVEDIR" in text else "unlink"
        return (kind, resolve(args[1], of_descriptor(args[0])))
    return None


class Disk:
    """A folder tree that knows which of its bytes and names are durable."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files: dict[str, Inode] = {}
        self.folders = {root}
        self.durable_files: dict[str, Inode] = {}
        self.durable_folders = {root}

    def apply(self, operation: Operation) -> None:
        kind, path = operation[0], operation[1]
        if kind == "open":
            inode = self.files.setdefault(path, Inode())
            if operation[2] and inode.live:
                inode.live, inode.clean = bytearray(), False
            inode.position = len(inode.live) if operation[3] else 0
        elif kind == "write" and path in self.files:
            self._write(self.files[path], operation[2], operation[3])
        elif kind == "truncate" and path in self.files:
            inode, size = self.files[path], operation[2]
            inode.live = inode.live[:size] + bytes(max(0, size - len(inode.live)))
            inode.clean = False
        elif kind == "fsync":
            self._sync(path)
        elif kind == "rename":
            self._rename(operation[2], path)
        elif kind == "mkdir":
            self.folders.add(path)
        elif kind == "unlink":
            self.files.pop(path, None)
        elif kind == "rmdir":
            self.folders.discard(path)

    def _write(self, inode: Inode, data: bytes, offset: int | None) -> None:
        start = inode.position if offset is None else offset
        inode.live[start : start + len(data)] = data
        inode.clean = False
        if offset is None:
            inode.position = start + len(data)

    def _sync(self, path: str) -> None:
        if path in self.files:
            inode = self.files[path]
            inode.durable, inode.clean = bytes(inode.live), True
        if path in self.folders:
            inside = lambda name: os.path.dirname(name) == path  # noqa: E731
            for name in [n for n in self.durable_files if inside(n) and n not in self.files]:
                del self.durable_files[name]
            self.durable_files.update({n: i for n, i in self.files.items() if inside(n)})
            self.durable_folders |= {n for n in self.folders if inside(n)}

    def _rename(self, source: str, target: str) -> None:
        if source in self.files:
            self.files[target] = self.files.pop(source)
            return
        below = source + "/"
        for name in [n for n in self.files if n.startswith(below)]:
            self.files[target + name[len(source) :]] = self.files.pop(name)
        for name in [n for n in self.folders if n == source or n.startswith(below)]:
            self.folders.discard(name)
            self.folders.add(target + name[len(source) :])
        # A durable subtree moves with its inode; it has the new name once the parent is synced.
        for name in [n for n in self.durable_files if n.startswith(below)]:
            self.durable_files[target + name[len(source) :]] = self.durable_files[name]
        self.durable_folders |= {
            target + n[len(source) :] for n in self.durable_folders if n.startswith(below)
        }

    def after_power_cut(self, data: str, names: str) -> tuple[dict[str, bytes], set[str]]:
        """The files and folders that a disk may hold if the power fails now."""
        if names == "kept":
            visible, folders = self.files, self.folders
        else:
            folders = {n for n in self.durable_folders if n == self.root or self._reachable(n)}
            visible = {n: i for n, i in self.durable_files.items() if self._reachable(n)}
        return {n: self._content(i, data) for n, i in visible.items()}, set(folders)

    def _reachable(self, name: str) -> bool:
        parent = os.path.dirname(name)
        while parent != self.root:
            if parent not in self.durable_folders:
                return False
            parent = os.path.dirname(parent)
        return True

    @staticmethod
    def _content(inode: Inode, data: str) -> bytes:
        if data == "kept" or inode.clean:
            return bytes(inode.live)
        if data == "zeroed":
            return inode.durable + bytes(max(0, len(inode.live) - len(inode.durable)))
        return inode.durable


def states(
    operations: list[Operation], root: str
) -> Iterator[tuple[str, dict[str, bytes], set[str]]]:
    """Every distinct post-power-cut state, with the point and the mode that led to it."""
    seen: set[int] = set()
    for data, names in MODES:
        disk = Disk(root)
        for index, operation in enumerate(operations):
            disk.apply(operation)
            files, folders = disk.after_power_cut(data, names)
            key = hash((tuple(sorted(files.items())), tuple(sorted(folders))))
            if key not in seen:
                seen.add(key)
                yield (
                    f"after {index} {operation[0]} {operation[1]} (data {data}, names {names})",
                    files,
                    folders,
                )


def materialise(files: dict[str, bytes], folders: set[str], root: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for folder in folders:
        Path(str(target) + folder[len(root) :]).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = Path(str(target) + name[len(root) :])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument(
        "--check", required=True, help="command run on each rebuilt folder, {} is the folder"
    )
    parser.add_argument("writer", nargs="+")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("strace is not installed: apt-get install strace")

    root = str(options.root.resolve())
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    operations = parse(record(root, options.writer), root)
    if not operations:
        sys.exit(f"the writer changed nothing under {root}")

    verdicts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    replayed = Path(f"{root}.replayed")
    for where, files, folders in states(operations, root):
        materialise(files, folders, root, replayed)
        command = [part.replace("{}", str(replayed)) for part in shlex.split(options.check)]
        code = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).returncode
        verdict = {0: "sound", 1: "corrupt", 2: "lost"}.get(code, f"exit {code}")
        verdicts[verdict] += 1
        examples.setdefault(verdict, where)
    print(
        json.dumps(
            {
                "operations": len(operations),
                "states": sum(verdicts.values()),
                **verdicts,
                "first": examples,
            }
        )
    )
    return 0 if set(verdicts) == {"sound"} else 1


if __name__ == "__main__":
    sys.exit(main())
