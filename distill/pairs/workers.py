"""Tasks one after another in this process, or on the workers of a Dask cluster; what is done is not done again."""

import json
import logging
import os
import pickle
import re
import shutil
import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import cloudpickle
import xxhash
from tqdm import tqdm

from distill.command import Stopped, UserError
from distill.folders import inputs_of, read_json

# Options that say where and how, not what.
OF_THE_CALL = {"output_dir", "workers", "scheduler", "command_line", "called_from"}
PATIENCE = 300  # seconds that a cluster may be without workers
SECONDS = 10  # after which it is asked whether it is
GO_ON = "the same command goes on where it stopped"
NAMED = r"[0-9a-f]{16}"  # folders of work, by what decides it

Each = Callable[[str, Callable[[Any], Any], Iterable], Iterator]


@contextmanager
def workers(number: int, scheduler: str | None, work: Path) -> Iterator[Each]:
    """Yield a `map` with a name: it calls a function with each of some items; the results come in the items' order.

    In this process, by `number` others of this machine, or on the workers of a Dask `scheduler` (its address, or the
    file that it wrote), which see the same files. Results are kept in the folder `work` by name and number, and taken
    from there when they are asked for again. Dask does a task again whose worker has died.
    """

    def tasks(name: str, function: Callable[[Any], Any], items: Iterable) -> list[Callable[[], Any]]:
        return [partial(once, work / f"{name}-{i}.done", function, item) for i, item in enumerate(items)]

    def shown(name: str, of_tasks: list) -> Iterable:
        return tqdm(of_tasks, desc=name, unit=" parts", disable=None, dynamic_ncols=True)

    if number == 1 and scheduler is None:
        yield lambda name, *given: (task() for task in shown(name, tasks(name, *given)))
        return
    # Where it is asked for: Dask takes a second to come
    from distributed import CancelledError, Client, KilledWorker, LocalCluster, TimeoutError
    from distributed.comm import CommClosedError

    with ExitStack() as ends:
        if scheduler is None:
            one_thread = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
            quiet = {"dashboard_address": ":0", "silence_logs": logging.CRITICAL, "local_directory": str(work)}
            limits = {"n_workers": number, "threads_per_worker": 1, "memory_limit": 0, "env": one_thread}
            there = ends.enter_context(LocalCluster(**limits, **quiet))
        else:
            there = address(scheduler)
        try:
            client = ends.enter_context(Client(there))
            client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, ValueError) as error:  # a TimeoutError is an OSError
            raise UserError(f"--scheduler {scheduler}: no worker can be had there ({error}): start one") from None
        if scheduler is None:
            client.run(ignore_interrupts)

        def result(future) -> Any:
            """Of a task, however long it takes while there are workers."""
            since = time.monotonic()
            while True:
                try:
                    return future.result(timeout=SECONDS)
                except TimeoutError:
                    if client.scheduler_info()["workers"]:
                        since = time.monotonic()
                    elif time.monotonic() - since > PATIENCE:
                        raise Stopped(f"no worker is left: {GO_ON}") from None

        def each(name: str, function: Callable[[Any], Any], items: Iterable) -> Iterator:
            for future in shown(name, [client.submit(task, pure=False) for task in tasks(name, function, items)]):
                try:
                    yield result(future)
                except KilledWorker:
                    raise Stopped(f"a task has ended four workers, perhaps for want of memory: {GO_ON}") from None
                except (CancelledError, CommClosedError):
                    raise Stopped(f"the scheduler has gone: {GO_ON}") from None

        yield each


def ignore_interrupts() -> None:
    """Leave a terminal's to the process that has started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def address(scheduler: str) -> str:
    """Where a scheduler listens: what was given, or what the file says that it wrote. UserError for neither."""
    if "://" in scheduler:
        return scheduler
    if found := read_json(Path(scheduler), {}).get("address"):
        return found
    raise UserError(f"--scheduler {scheduler} is no address, as tcp://host:8786, and no file that a scheduler wrote")


@contextmanager
def work_folder(output_dir: str, args: Namespace) -> Iterator[Path]:
    """A folder beside the output for what its tasks leave to one another; gone when the block ends, or with a mistake.

    It outlives a process that is stopped or killed: the same command on the same inputs finds it again, unless one of
    them is no file or folder here, whose changes nobody sees. UserError where something else lies in its place.
    """
    output = Path(output_dir).resolve()
    folder = output.with_name(f".{output.name}.parts")
    if foreign := [path.name for path in folder.glob("*") if not re.fullmatch(NAMED, path.name)]:
        raise UserError(f"{folder} holds {foreign[0]}, which no script wrote: move it, or name another output folder")
    asked = {name: value for name, value in vars(args).items() if name not in OF_THE_CALL}
    elsewhere = [spec for spec in (*args.corpus, *args.exclude) if not list(inputs_of(Namespace(corpus=[spec])))]
    read = [*sorted(_states(inputs_of(args))), uuid4().hex if elsewhere else ""]
    work = folder / xxhash.xxh3_64_hexdigest(json.dumps([asked, read]).encode())
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    except (UserError, OSError):
        shutil.rmtree(work)
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    shutil.rmtree(folder)


def _states(paths: Iterable[Path]) -> Iterator[tuple]:
    """Name, size and time of each file, those in folders too."""
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                yield os.fsencode(file).hex(), file.stat().st_size, file.stat().st_mtime_ns


def once(path: Path, function: Callable, *given):
    """What a function gives back: from the file at `path`, if an earlier call has left it there."""
    if path.is_file():
        return pickle.loads(path.read_bytes())
    result = function(*given)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}")  # of one who was given up, and works on
    temporary.write_bytes(cloudpickle.dumps(result))  # of classes that a script defines, too
    temporary.replace(path)
    return result
