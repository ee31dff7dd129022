"""Scripts in processes of their own that need not import everything anew: a server that has done so is forked.

What a process costs is its imports, five seconds of them. These runs have real ranks, which talk over gloo, but no
launcher; those of conftest.launch have one.
"""

import multiprocessing
import os
import socket
import time
from multiprocessing import forkserver
from pathlib import Path

from conftest import ENVIRONMENT, ROOT
from forked_imports import run_script

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["forked_imports"])
before = dict(os.environ)
os.environ |= ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}  # threads, and where the server looks for it
forkserver.ensure_running()
os.environ.clear()
os.environ |= before


def start(folder: Path, program: str, *options: str, processes: int = 1, **variables: str) -> list:
    """Start a script in processes that know of each other; their streams go to files in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(processes):
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        environment = ENVIRONMENT | (world | own if processes > 1 else {}) | variables
        name = folder / f"rank-{rank}"
        ranks.append(server.Process(target=run_script, args=(program, options, environment, name)))
        ranks[-1].start()
    return ranks


def run(folder: Path, program: str, *options: str, processes: int = 1, **variables: str) -> tuple[list[int], str, str]:
    """Run a script to its end in every process: exit codes, what they said, their errors.

    When one fails the others get a minute to follow.
    """
    folder.mkdir(parents=True)
    ranks = start(folder, program, *options, processes=processes, **variables)
    end = time.monotonic() + 300
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < end:
        if any(rank.exitcode for rank in ranks):
            end = min(end, time.monotonic() + 60)
        time.sleep(0.02)
    for rank in ranks:
        rank.kill()
        rank.join()
    said, errors = ("".join(path.read_text() for path in sorted(folder.glob(f"rank-*.{s}"))) for s in ("out", "err"))
    return [rank.exitcode for rank in ranks], said, errors
