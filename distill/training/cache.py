"""What is computed once and kept on disk: named by what decides it, filled by all ranks, read as a memory map."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from distill.command import UserError
from distill.folders import Lock, read_json, settle, write_json, writing
from distill.ranks import check_signal, on_first_rank, together


def fingerprint(*parts) -> str:
    """A name for content: of byte buffers as they are, of anything else as its text."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part if isinstance(part, bytes | memoryview | np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def content_fingerprint(dataset, accelerator: Accelerator) -> str:
    """A name for the rows of a pairs split, whose files rank 0 reads."""
    files = (np.memmap(file["filename"], mode="r") for file in dataset.cache_files)
    return on_first_rank(lambda: fingerprint(*files), accelerator)


def mapped(path: Path, dtype) -> np.ndarray:
    """The numbers of a raw file, read from disk as they are used."""
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def fill(
    folder: Path,
    rows: int,
    compute: Callable[[int, int], dict[str, np.ndarray]],
    accelerator: Accelerator,
    description: str,
    chunk: int,
    running: dict[str, str] | None = None,
) -> None:
    """Fill `folder` with the arrays that `compute(start, stop)` gives for chunks of rows, in order, as NAME.bin.

    In rounds: the ranks take a chunk each, tell each other how many numbers they have, and write them to their place.
    `done.json` says how far all have come, for a run that goes on after a kill. The folder appears by rename, whole,
    and a later run finds it; of several at a time one fills it and the others wait. `running` names running sums, each
    with the array whose lengths it sums, of which `compute` knows only its own chunk. Raises what `together` raises,
    UserError where a file has not the size that done.json says.
    """
    growing, record = folder.with_suffix(".tmp"), folder.with_suffix(".tmp") / "done.json"
    rank, world = accelerator.process_index, accelerator.num_processes

    def begin() -> dict:
        if not record.is_file() or cut_off(growing):
            shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True, exist_ok=True)
        return read_json(record, {"rows": 0, "numbers": {}, "bytes": {}})

    def computed(start: int) -> dict[str, np.ndarray]:
        check_signal()
        return compute(start, min(start + chunk, rows)) if start < rows else {}

    def written(arrays: dict[str, np.ndarray], before: Counter) -> None:
        for name, array in arrays.items():
            array = array + before[running[name]] if running and name in running else array
            # Written and not mapped: on a network file system a page that two nodes have mapped would be torn.
            with open(os.open(growing / f"{name}.bin", os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
                file.seek(before[name] * array.itemsize)
                file.write(array)
                file.flush()
                os.fsync(file.fileno())

    with turn_to_build(folder, accelerator) as ours:
        if not ours:
            return on_first_rank(partial(check_whole, folder), accelerator)
        done = on_first_rank(begin, accelerator, folder.parent)
        hidden = not accelerator.is_main_process
        with tqdm(total=rows, initial=done["rows"], desc=description, unit=" rows", disable=hidden) as bar:
            while done["rows"] < rows:
                arrays = together(partial(computed, done["rows"] + rank * chunk), accelerator)
                counts, sizes = (
                    gather_object([Counter({name: getattr(array, what) for name, array in arrays.items()})])
                    for what in ("size", "nbytes")
                )
                before = sum(counts[:rank], Counter(done["numbers"]))
                together(partial(written, arrays, before), accelerator, folder.parent)
                bar.update(min(world * chunk, rows - done["rows"]))
                rows_done = min(done["rows"] + world * chunk, rows)
                done = {
                    "rows": rows_done,
                    "numbers": sum(counts, Counter(done["numbers"])),
                    "bytes": sum(sizes, Counter(done["bytes"])),
                }
                on_first_rank(partial(write_json, record, done), accelerator, folder.parent)
        on_first_rank(partial(finish, growing, folder), accelerator, folder.parent)


def fill_by_first(folder: Path, write: Callable[[Path], None], accelerator: Accelerator) -> None:
    """Fill `folder` by rank 0 alone, whose `write(growing)` puts files into an empty folder; a kill undoes all.

    Else as `fill`.
    """
    growing = folder.with_suffix(".tmp")

    def build() -> None:
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True)
        write(growing)
        settle(growing)
        write_json(growing / "done.json", {"bytes": {file.stem: file.stat().st_size for file in growing.glob("*.bin")}})
        finish(growing, folder)

    with turn_to_build(folder, accelerator) as ours:
        on_first_rank(build if ours else partial(check_whole, folder), accelerator, folder.parent)


def finish(growing: Path, folder: Path) -> None:
    """Give a folder that is whole its name."""
    if folder.is_dir():  # of a run that could not be seen, on a file system without locks
        shutil.rmtree(growing)
    else:
        growing.rename(folder)


def check_whole(folder: Path) -> None:
    """UserError where a cache folder has not what its done.json says."""
    if name := cut_off(folder):
        raise UserError(f"{folder / name} is damaged: remove {folder}, and it is made anew")


def cut_off(folder: Path) -> str | None:
    """The first file of a cache folder that is shorter than its done.json says; None if all is there."""
    try:
        for name, size in read_json(folder / "done.json", {})["bytes"].items():
            if not (folder / f"{name}.bin").is_file() or (folder / f"{name}.bin").stat().st_size < size:
                return f"{name}.bin"
    except (UserError, KeyError, AttributeError, TypeError):
        return "done.json"
    return None


@contextmanager
def turn_to_build(folder: Path, accelerator: Accelerator) -> Iterator[bool]:
    """Whether `folder` is this run's to build, all of whose ranks must ask; first waits for one that is at it.

    Rank 0 looks for all, since on a network file system another node may not see the folder yet, and holds a lock on
    a file beside it, which the kernel takes from a run that dies.
    """
    lock = Lock(folder.with_suffix(".lock"))

    def turn() -> str:
        if folder.is_dir():
            return "there"
        with writing(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not lock.take():
                return "theirs"
        return "there" if folder.is_dir() else "ours"

    def wait() -> None:
        check_signal()
        time.sleep(1)

    whose = on_first_rank(turn, accelerator)
    if whose == "theirs":
        accelerator.on_main_process(print)(f"another run makes {folder}: waiting for it")
    while whose == "theirs":
        together(wait, accelerator)
        whose = on_first_rank(turn, accelerator)
    try:
        yield whose == "ours"
    finally:
        lock.release()
