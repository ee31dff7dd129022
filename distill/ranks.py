"""What ranks do together: leave when one of them gets a signal, end when a disk is full for one of them."""

import errno
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import distributed

from distill.folders import Stopped, UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Signals come to a process, so what is known of them belongs to the process.
known = SimpleNamespace(signal=0, may_cut_short=False, group=None)


class _CutShort(BaseException):
    """Ends work that a signal may cut short; no `except Exception` of a library may take it."""


@contextmanager
def listening() -> Iterator[None]:
    """Remember SIGTERM, SIGINT and SIGUSR1 until the ranks agree to stop; ignore them when the block has ended.

    By then the exit code is decided; Python's own end would give it away to a signal, or to gloo's threads.
    """
    for number in SIGNALS:
        signal.signal(number, _remember)
    try:
        yield
        _end_groups()
    except SystemExit:
        _end_groups()
        raise
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _end_groups() -> None:
    """Wait for gloo's threads: one that lets go of a tensor while Python ends aborts the process.

    Not after an error of one rank, whose collectives would wait for the others.
    """
    known.group = None
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _remember(number: int, frame) -> None:
    first, known.signal = not known.signal, known.signal or number
    if first and known.may_cut_short:
        raise _CutShort


def _agree(accelerator: Accelerator, disk_full: bool = False) -> tuple[bool, bool]:
    """Whether any rank got a signal, and whether a disk is full for any: the same on all ranks, which must all ask.

    Over gloo, so that no rank waits for its GPU.
    """
    numbers = torch.tensor([known.signal, disk_full])
    if accelerator.num_processes > 1:
        known.group = known.group or distributed.new_group(backend="gloo")
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX, known.group)
    agreed, disk_full = numbers.tolist()
    known.signal = known.signal or agreed  # one that came while this rank waited is agreed on next time
    return agreed != 0, bool(disk_full)


def stop_agreed(accelerator: Accelerator) -> bool:
    """Whether any rank got a signal: the same answer on all ranks, which must all ask."""
    return _agree(accelerator)[0]


def leave() -> NoReturn:
    """End the run, once all ranks have agreed to."""
    name = signal.Signals(known.signal).name
    raise Stopped(f"stopped by {name}: the same command with --resume_from_checkpoint latest goes on")


def on_first_rank(work: Callable, accelerator: Accelerator):
    """The result of rank 0's `work()` on all ranks, which must all call this; or its UserError, raised on all."""
    found = [None]
    if accelerator.is_main_process:
        try:
            found = [work()]
        except UserError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], UserError):
        raise found[0]
    return found[0]


def disk_is_full(folder: Path) -> bool:
    """Whether nothing more can be written to a folder. A try tells, also of quotas; torch names no reason."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False


def together(work: Callable, accelerator: Accelerator, folder: Path | None = None, cut_short: bool = True):
    """The result of `work()`, this rank's own part, when it is done on all ranks, which must all call this.

    A signal to any rank cuts work short, unless that is not allowed, and raises Stopped on all of them. Where
    `work` writes to `folder` and its disk is full for any rank, all raise UserError.
    """
    result, disk_full = None, False
    try:
        try:
            known.may_cut_short = cut_short
            if not (cut_short and known.signal):
                result = work()
        finally:
            known.may_cut_short = False
    except _CutShort:
        pass
    except Exception:
        if folder is None or not disk_is_full(folder):
            raise
        disk_full = True
    stopping, disk_full = _agree(accelerator, disk_full)
    if disk_full:
        raise UserError(f"the disk of {folder} is full: free some of it and add --resume_from_checkpoint latest")
    if stopping and cut_short:
        leave()
    return result
