"""What ranks do together: leave when one of them gets a signal, end when one of them meets a mistake or a full disk."""

import atexit
import errno
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch import distributed

from distill.command import SIGNALS, Stopped, UserError

GO_ON = "the same command with --resume_from_checkpoint latest goes on"
LONGEST_WORK = timedelta(days=30)  # of one rank, while the others wait; one that dies ends them at once
# What belongs to the process, as signals do: the first signal, a mistake that the other ranks do not know of yet,
# what the ranks last agreed on, the group over which they do, and how to go on after a stop.
known = SimpleNamespace(signal=0, mistake=None, stopping=False, group=None, go_on=GO_ON)


class Interrupted(Exception):
    """A signal has come between two pieces of work."""


@contextmanager
def listening(go_on: str = GO_ON) -> Iterator[None]:
    """Remember SIGNALS until the ranks agree to stop; ignore them when the block has ended. `go_on` is said then.

    By then the exit code is decided; Python's own end would give it away to a signal, or to gloo's threads. A second
    signal ends the process at once, whatever it waits for.
    """
    known.go_on = go_on
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in SIGNALS:
        signal.signal(number, _remember)
    # Written to by the interpreter's own handler: Python's do not run while the main thread hangs in a collective.
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=[reading], daemon=True).start()
    try:
        yield
    finally:
        ignore_signals()
        if not isinstance(sys.exc_info()[1], Exception):
            _end_groups()
        signal.set_wakeup_fd(before)
        os.close(writing)


def _end_at_the_second(reading: int) -> None:
    """End the process at a signal that comes more than a second after the first; `reading`: where they are written.

    One signal may reach a process twice at once: from a terminal or Slurm, and passed on by the launcher.
    """
    first = None
    while numbers := os.read(reading, 1):
        if numbers[0] in SIGNALS:
            first = first or time.monotonic()
            if time.monotonic() - first > 1:
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    print(f"ended by a second signal: {known.go_on}", file=sys.stderr, flush=True)
                os._exit(os.EX_TEMPFAIL)
    os.close(reading)


def _remember(number: int, frame) -> None:
    known.signal = known.signal or number


def ignore_signals(*_) -> None:
    """For a rank whose exit code is decided, and for a process that works for one and ends when the rank says."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """End the processes that work for this one: torch and Python would wait for them, since they ignore signals."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as lost
    for worker in workers:
        worker.kill()
        worker.join()


atexit.register(end_workers)


def _end_groups() -> None:
    """Wait for gloo's threads: one that lets go of a tensor while Python ends aborts the process.

    Not after an error of one rank, whose collectives would wait for the others.
    """
    known.group = None
    if distributed.is_initialized():
        distributed.destroy_process_group()


def check_signal() -> None:
    """Raise Interrupted, for `together` to take, where a signal has come: asked between two pieces of long work."""
    if known.signal:
        raise Interrupted


def agree(accelerator: Accelerator, interrupted: bool = False) -> bool:
    """Whether any rank was interrupted: the same answer on all ranks, which must all ask.

    Afterwards `stopping()` says on all of them whether any got a signal. UserError on all where any met a mistake.
    Over gloo, so that no rank waits for its GPU, and as long as another has work to do.
    """
    numbers = torch.tensor([known.signal, interrupted, known.mistake is not None])
    if accelerator.num_processes > 1:
        known.group = known.group or distributed.new_group(backend="gloo", timeout=LONGEST_WORK)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX, known.group)
    number, interrupted, mistaken = numbers.tolist()
    if mistaken:
        mistakes, known.mistake = gather_object([known.mistake]), None
        raise UserError(next(filter(None, mistakes)))
    known.signal = known.signal or number  # one that came while this rank waited is agreed on next time
    known.stopping = number != 0
    return bool(interrupted)


def stopping() -> bool:
    """Whether the ranks have agreed that a signal ends the run."""
    return known.stopping


def leave() -> NoReturn:
    """End the run, once all ranks have agreed to."""
    name = signal.Signals(known.signal).name
    raise Stopped(f"stopped by {name}: {known.go_on}")


@contextmanager
def noting_mistakes(folder: Path | None = None) -> Iterator[None]:
    """Keep a UserError of this rank alone for the next agreement, and a disk of `folder` that is full."""
    try:
        yield
    except UserError as error:
        known.mistake = str(error)
    except Exception as error:
        if isinstance(error, Interrupted) or folder is None or not disk_is_full(folder):
            raise
        known.mistake = f"the disk of {folder} is full: free some of it, then {known.go_on}"


def together(work: Callable, accelerator: Accelerator, folder: Path | None = None):
    """The result of `work()`, this rank's own part, when it is done on all ranks, which must all call this.

    Raises on all of them what any meets: UserError for a mistake, or where `work` writes to `folder` and its disk is
    full; Stopped where work was interrupted.
    """
    result, interrupted = None, False
    try:
        with noting_mistakes(folder):
            result = work()
    except Interrupted:
        interrupted = True
    if agree(accelerator, interrupted):
        leave()
    return result


def on_first_rank(work: Callable, accelerator: Accelerator, folder: Path | None = None):
    """The result of rank 0's `work()` on all ranks, which must all call this; raises what `together` raises."""
    found = [together(lambda: work() if accelerator.is_main_process else None, accelerator, folder)]
    broadcast_object_list(found)
    return found[0]


def launched(**settings) -> Accelerator:
    """The processes that the launcher started, in the precision it names where the device computes in it, else in fp32.

    A CPU without products of bf16 takes longer for them than for fp32's; none has those of fp16. `settings` are
    Accelerator's. Raises what `check_processes` raises; UserError where the processes' CPUs are not alike in this.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16", "fp16"):
        raise UserError(f"--mixed_precision {precision}: give no, bf16 or fp16")
    has, lacks = torch.cpu.get_capabilities(), None
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        if precision == "bf16" and not (has.get("avx512_bf16") or has.get("amx_bf16")):
            lacks = "this CPU has no instructions for bf16"
        elif precision == "fp16":
            lacks = "fp16 needs a GPU"
    accelerator = Accelerator(mixed_precision="no" if lacks else precision, **settings)
    check_processes(accelerator)
    if len(set(gather_object([accelerator.mixed_precision]))) > 1:
        raise UserError("some of the processes have a CPU without instructions for bf16: give --mixed_precision no")
    if lacks:
        accelerator.on_main_process(print)(f"{lacks}: this run computes in fp32")
    return accelerator


def check_processes(accelerator: Accelerator) -> None:
    """UserError where the launcher started processes that know nothing of each other, or FSDP of another version."""
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise UserError("the launcher started several separate runs: on CPU set ACCELERATE_USE_CPU=true")
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not accelerator.is_fsdp2:
        raise UserError("FSDP is used in its version 2 and on GPUs, as in accelerate_configs/fsdp2.yaml")
    if accelerator.is_fsdp2 and accelerator.mixed_precision != "no":
        # As DDP under autocast: accelerate would also sum gradients, and hand the loss its vectors, in half precision.
        plugin = accelerator.state.fsdp_plugin
        policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None)
        plugin.mixed_precision_policy = policy


def disk_is_full(folder: Path) -> bool:
    """Whether nothing more can be written to a folder. A try tells, also of quotas; torch names no reason."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False
