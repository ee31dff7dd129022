"""Tasks one after another in this process, or on the workers of a Dask cluster; what is done is not done again."""

import hashlib
import json
import logging
import os
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
from tqdm import tqdm

from distill.command import UserError
from distill.folders import inputs_of

# Options that say where and how, not what.
OF_THE_CALL = {"output_dir", "workers", "scheduler", "command_line", "called_from"}
PATIENCE = 300  # seconds until the first worker of a cluster has come

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
    from distributed import Client, KilledWorker, LocalCluster

    with ExitStack() as ends:
        if scheduler is None:
            one_thread = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
            quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
            limits = {"n_workers": number, "threads_per_worker": 1, "memory_limit": 0, "env": one_thread}
            there = {"address": ends.enter_context(LocalCluster(**limits, **quiet))}
        else:
            there = {"scheduler_file" if Path(scheduler).is_file() else "address": scheduler}
        try:
            client = ends.enter_context(Client(**there))
            client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, ValueError) as error:  # a TimeoutError is an OSError
            raise UserError(f"--scheduler {scheduler}: no worker can be had there ({error}): start one") from None

        def each(name: str, function: Callable[[Any], Any], items: Iterable) -> Iterator:
            for future in shown(name, [client.submit(task, pure=False) for task in tasks(name, function, items)]):
                try:
                    yield future.result()
                except KilledWorker:
                    raise UserError(
                        "a task has ended four workers, one after another: their memory may not do, give them more"
                    ) from None

        yield each


@contextmanager
def work_folder(output_dir: str, args: Namespace) -> Iterator[Path]:
    """A folder beside the output for what its tasks leave to one another; gone when the block ends, or fails.

    It outlives a process that is stopped or killed: the same command on the same inputs finds it again.
    """
    output = Path(output_dir).resolve()
    folder = output.with_name(f".{output.name}.parts")
    asked = {name: value for name, value in vars(args).items() if name not in OF_THE_CALL}
    read = sorted(_states(inputs_of(args)))
    work = folder / hashlib.sha256(json.dumps([asked, read]).encode()).hexdigest()[:16]
    if not work.exists():
        shutil.rmtree(folder, ignore_errors=True)
        work.mkdir(parents=True)
    try:
        yield work
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


def _states(paths: Iterable[Path]) -> Iterator[tuple]:
    """Name, size and time of each file, those in folders too."""
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            yield os.fsencode(file).hex(), file.stat().st_size, file.stat().st_mtime_ns


def once(path: Path, function: Callable, *given):
    """What a function gives back: from the file at `path`, if an earlier call has left it there."""
    if path.is_file():
        return pickle.loads(path.read_bytes())
    result = function(*given)
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(cloudpickle.dumps(result))  # of classes that a script defines, too
    temporary.replace(path)
    return result
