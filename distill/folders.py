"""Folders that appear whole or not at all, and the JSON in them."""

import ctypes
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from distill.command import UserError
from distill.text_files import expand_languages

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # said by a file system that has none
# Options that name what a command reads.
INPUTS = {
    *("corpus", "exclude", "text_files", "pairs_dir", "sts", "sts_dev", "bitext"),
    *(
        f"{model}name_or_path"
        for model in ("model_", "tokenizer_", "encoder_model_", "teacher_model_", "student_model_")
    ),
}
# What train_distill.py adds to a folder of pairs.
ADDED = re.compile(r"cache/(tokens|labels|sample|pca)-[\w-]+(\.lock|(\.tmp)?/(done\.json(\.new)?|\w+\.bin))")


def read_json(path: Path, default):
    """The content of a JSON file, or `default` where there is no such file. UserError where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
    except ValueError as error:
        raise UserError(f"{path} is no sound JSON ({error}): mend or remove it") from None


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


def check_output(path: str | Path, args) -> None:
    """UserError where `replaced_folder` would refuse or could not write: for scripts that compute long before.

    An output is not, holds not and lies not in what an option of `args` names as an input, links resolved. What is
    there already must be a folder that these scripts made, and that holds nothing else.
    """
    path = Path(path).resolve()
    for given in _inputs(args):
        if path == given or path in given.parents or given in path.parents:
            raise UserError(f"{path} would be written over the input {given}: name another output folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: name a folder")
    if path.exists() and (foreign := _foreign(path)):
        raise UserError(f"{path} holds {foreign}, which no script wrote: name another output folder, or move it")
    parent = next(parent for parent in path.parents if parent.exists())
    with writing(path), tempfile.TemporaryDirectory(dir=parent):
        pass


def _inputs(args) -> Iterator[Path]:
    """The files and folders that options of INPUTS name, as they are or within a spec."""
    for option in INPUTS & vars(args).keys():
        given = getattr(args, option) or []
        for spec in [given] if isinstance(given, str) else given:
            for part in {spec, spec.partition("=")[2]} - {""}:  # NAME=SPEC
                for path in expand_languages(part).values() if re.search(r"{.+}", part) else [part]:
                    # 'folder:config:split'
                    yield from (Path(name).resolve() for name in {path, path.partition(":")[0]} if os.path.exists(name))


def _foreign(path: Path) -> str | None:
    """The first thing in a folder that is not in its own list of what was written there; None if all is."""
    try:
        written = {"args.json", *read_json(path / "args.json", {})["files"]}
    except (UserError, KeyError, TypeError):
        written = set()
    inside = (found for found in sorted(path.rglob("*")) if found.is_symlink() or not found.is_dir())
    names = (str(found.relative_to(path)) for found in inside)
    return next((name for name in names if name not in written and not ADDED.fullmatch(name)), None)


@contextmanager
def replaced_folder(path: str | Path, args) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well, else vanishes.

    `args` (a namespace) is written into it as `args.json`, with the list of its `files`. Raises what `check_output`
    raises.
    """
    check_output(path, args)
    path = Path(path).resolve()  # a link stays, the folder that it names is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        yield from _replaced(path, args)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """UserError where another process is writing the same folder, which its kernel's lock tells."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another run is writing {path}: wait for it, or name another output folder") from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    try:
        yield
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink()
            lock.release()


def _replaced(path: Path, args) -> Iterator[Path]:
    temporary, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("being_written", "replaced"))
    if old.exists() and not path.exists():
        old.rename(path)  # killed between the two renames below
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(str(file.relative_to(temporary)) for file in temporary.rglob("*") if file.is_file())
        write_json(temporary / "args.json", vars(args) | {"files": files})
        if not (path.exists() and exchange(temporary, path)):
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
