"""Folders that appear whole or not at all, and the JSON in them."""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from distill.command import UserError


def read_json(path: Path, default):
    """The content of a JSON file, or `default` where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def write_json(path: Path, content) -> None:
    """Write readable JSON (UTF-8, two spaces) that ends in a newline; a file that was there stays until it is whole."""
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step, so that neither name is ever absent; False where that cannot be done.

    Linux' renameat2 with RENAME_EXCHANGE; not every filesystem has it.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    at_fdcwd, rename_exchange = -100, 2
    return renameat2 is not None and (
        renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0
    )


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn a full disk or a missing permission into a UserError that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # Arrow's errors carry the number, but not its meaning; those of safetensors, only the meaning.
        reason = os.strerror(error.errno) if getattr(error, "errno", None) else error
        raise UserError(f"{path} cannot be written ({reason}): nothing was changed there") from error


def check_replaceable(path: str | Path) -> None:
    """UserError where `replaced_folder` would be refused, or could not write: for scripts that compute long before."""
    path = Path(path).resolve()
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / "args.json").is_file())):
        raise UserError(f"{path} exists and was not made by these scripts: name another output folder")
    parent = next(parent for parent in path.parents if parent.exists())
    with writing(path), tempfile.TemporaryDirectory(dir=parent):
        pass


@contextmanager
def replaced_folder(path: str | Path, args=None) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well, else vanishes.

    `args` (a namespace) is written into it as `args.json`. A folder that holds files but no `args.json` is
    not ours to replace: UserError.
    """
    check_replaceable(path)
    path = Path(path).resolve()  # a link stays, the folder that it names is replaced
    temporary, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("tmp", "old"))
    if old.exists() and not path.exists():
        old.rename(path)  # killed between the two renames below
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if args is not None:
            write_json(temporary / "args.json", vars(args))
        if not (path.exists() and exchange(temporary, path)):
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
