"""Folders that appear whole or not at all, and the JSON in them."""

import ctypes
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from distill.command import UserError
from distill.text_files import expand_languages, reading

TRAINED = "a trained student"  # the kind of folder that a trainer makes of its best student
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # said by a file system that has none
# Options that name what a command reads.
INPUTS = {
    *("corpus", "exclude", "text", "text_files", "pairs_dir", "sts", "sts_dev", "bitext"),
    *("retrieval", "eval_bitext", "eval_retrieval"),
    *("teacher_vectors", "score_model", "english_pairs"),
    *(
        f"{model}name_or_path"
        for model in ("model_", "tokenizer_", "encoder_model_", "teacher_model_", "student_model_", "negatives_model_")
    ),
}
# What the trainers add to a folder of pairs.
ADDED = re.compile(
    r"cache/(tokens|labels|found|sample|pca|vectors|index|negatives)-[\w-]+"
    r"(\.lock|(\.tmp)?/(done\.json(\.new)?|\w+\.bin))"
)


def read_json(path: Path, default):
    """The content of a JSON file, or `default` where there is no such file. UserError where it is not of its type."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
    except ValueError as error:
        raise UserError(f"{path} is no sound JSON ({error}): mend or remove it") from None
    if not isinstance(content, type(default)):
        kind = {dict: "object", list: "list"}[type(default)]
        raise UserError(f"{path} holds no JSON {kind}: mend or remove it")
    return content


def write_json(path: Path, content) -> None:
    """Write readable JSON (UTF-8, two spaces) that ends in a newline; a file that was there stays until it is whole."""
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # a path's bytes may be no UTF-8
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_hash(path: Path) -> str:
    """xxh3 of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hashes_of(paths: Iterable[str]) -> list[str]:
    """`file_hash` of files that a user named; UserError for one that cannot be read."""
    hashes = []
    for path in paths:
        with reading(path):
            hashes.append(file_hash(Path(path)))
    return hashes


def settle(folder: Path) -> None:
    """Have all of a folder safe on disk, and its files as readable as the process' umask has them: weights are not."""
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with suppress(PermissionError):  # on a file system without modes
        for path in files:
            path.chmod(0o666 & ~umask)
    for path in (*files, folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


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


class Lock:
    """A file that one process at a time holds; the kernel takes it from one that dies.

    On a file system without locks every process has it.
    """

    def __init__(self, path: Path):
        self.lock = FileLock(path, fallback_to_soft=False)  # a soft one would outlive a killed process

    def take(self) -> bool:
        """Whether this process has it now, without waiting."""
        try:
            self.lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        return True

    def release(self) -> None:
        """Remove the file, where this process has it: who waits for it sees what was done meanwhile."""
        if self.lock.is_locked:
            Path(self.lock.lock_file).unlink()
            self.lock.release()


@contextmanager
def claimed(path: str | Path, file: str) -> Iterator[None]:
    """Keep others from writing a folder, by a lock on a file named relative to it. UserError where another has it."""
    path = Path(path).resolve()
    lock_file = Path(os.path.normpath(path / file))
    with writing(path):
        made = not lock_file.parent.exists()
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(lock_file)
        if not lock.take():
            raise UserError(f"another run is writing {path}: wait for it, or name another output folder")
    try:
        yield
    finally:
        lock.release()
        if made and not any(lock_file.parent.iterdir()):
            lock_file.parent.rmdir()


def overlap(one: Path, other: Path) -> bool:
    """Whether two resolved paths are the same, or one lies in the other."""
    return one == other or one in other.parents or other in one.parents


def check_output(path: str | Path, args, kind: str, keep: bool = False) -> None:
    """UserError where `replaced_folder` would refuse or could not write: for scripts that compute long before.

    An output is not, holds not and lies not in what an option of `args` names as an input, links resolved, and the
    command was not started in it. What is there already must be a folder of the same `kind`, and hold nothing else,
    unless that is to be kept.
    """
    for part in (Path(path), *Path(path).parents):
        if part.is_symlink() and not part.exists():
            raise UserError(f"{part} is a link to {part.readlink()}, which does not exist: make it, or name a folder")
    path = Path(path).resolve()
    for given in inputs_of(args):
        if overlap(path, given):
            raise UserError(f"{path} would be written over the input {given}: name another output folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: name a folder")
    if path.is_mount():
        raise UserError(f"{path} is a mount point, which cannot be replaced: name a folder in it")
    if path in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"{path} would be replaced with the folder that you are in: name another, or go elsewhere")
    _check_replaceable(path, kind, keep)
    parent = next(parent for parent in path.parents if parent.exists())
    with writing(path), tempfile.TemporaryDirectory(dir=parent):
        pass


def inputs_of(args) -> Iterator[Path]:
    """The files and folders that options of INPUTS name, as they are or within a spec."""

    def specs(given) -> Iterator[str]:  # a text, or lists of them
        yield from [given] if isinstance(given, str) else (spec for part in given or [] for spec in specs(part))

    for option in INPUTS & vars(args).keys():
        for spec in specs(getattr(args, option)):
            for part in {spec, spec.partition("=")[2]} - {""}:  # NAME=SPEC
                for path in expand_languages(part).values() if re.search(r"{.+}", part) else [part]:
                    # 'folder:config:split'
                    yield from (Path(name).resolve() for name in {path, path.partition(":")[0]} if os.path.exists(name))


def _check_replaceable(path: Path, kind: str, keep: bool) -> list[str]:
    """The files in a folder that are not in its own list of what was written there.

    UserError where there are any that are not to be kept, or it is of another kind.
    """
    try:
        made = read_json(path / "args.json", {})
    except UserError:
        made = {}
    if made.get("kind", kind) != kind:
        raise UserError(f"{path} holds {made['kind']}, not {kind}: name another output folder, or move it")
    files = made.get("files")
    written = {"args.json", *files} if isinstance(files, list) else set()
    inside = (found for found in sorted(path.rglob("*")) if found.is_symlink() or not found.is_dir())
    names = (str(found.relative_to(path)) for found in inside)
    foreign = [name for name in names if name not in written and not ADDED.fullmatch(name)]
    if foreign and not keep:
        raise UserError(f"{path} holds {foreign[0]}, which no script wrote: name another output folder, or move it")
    return foreign


@contextmanager
def replaced_folder(path: str | Path, args, kind: str, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well, else vanishes.

    `args` (a namespace) is written into it as `args.json`, with its `kind` ("pairs", "scores") and the list of its
    `files`. With `keep`, what others have put there goes along. Raises what `check_output` raises.
    """
    check_output(path, args, kind, keep)
    path = Path(path).resolve()  # a link stays, the folder that it names is replaced
    with claimed(path, f"../.{path.name}.lock"):
        yield from _replaced(path, args, kind, keep)


def _replaced(path: Path, args, kind: str, keep: bool) -> Iterator[Path]:
    temporary, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("being_written", "replaced"))
    if old.exists() and not path.exists():
        old.rename(path)  # killed between the two renames below
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(str(file.relative_to(temporary)) for file in temporary.rglob("*") if file.is_file())
        write_json(temporary / "args.json", vars(args) | {"kind": kind, "files": files})
        for name in _check_replaceable(path, kind, keep):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path / name, temporary / name, follow_symlinks=False)
        settle(temporary)
        if not (path.exists() and exchange(temporary, path)):
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
