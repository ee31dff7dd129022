"""`accelerate launch`, for runs that may be stopped: signals reach the script, and its exit code comes back.

    python launch.py --config_file accelerate_configs/multi_gpu.yaml train_distill.py --pairs_dir pairs/ ...

Options are those of `accelerate launch`. That one by itself ends with 1 whatever its processes ended with, dies of
SIGUSR1, and on SIGTERM gives them 30 seconds. Exit codes are the script's: of several processes, that of the first to
fail; 128 + N where one died of signal N, and 75 if this launcher had got that signal, or ended what did not end: by
SIGKILL, four minutes after a first signal and ten seconds after a second.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

from distill.command import SIGNALS

AFTER_FIRST, AFTER_SECOND = 240, 10  # seconds; train.slurm's signal comes five minutes before its time limit
arrivals = []  # of signals
given = set()  # signals that the script's processes got from here


def build_parser():
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def give(number: int, processes: list[psutil.Process]) -> None:
    given.add(number)
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended just now
            process.send_signal(number)


def pass_on(number: int, frame) -> None:
    """Send a signal on to the script's processes, and see to it that they end; before there are any, end.

    A signal is a second one from a second after the first on, as for the processes: distill/ranks.py.
    """
    children = psutil.Process().children()
    if not children:
        os._exit(os.EX_TEMPFAIL)  # not by an exception, which an import under way would swallow or die of
    give(number, children)
    arrivals.append(time.monotonic())
    grace = AFTER_SECOND if arrivals[-1] > arrivals[0] + 1 else AFTER_FIRST
    timer = threading.Timer(grace, lambda: give(signal.SIGKILL, psutil.Process().children(recursive=True)))
    timer.daemon = True
    timer.start()


def culprit(error) -> tuple:
    """Rank and failure of a ChildFailedError that tell why: of a process that died of a signal, else the first one's.

    Those that lose it fail too, and may be seen before it is, or at once. Torch's launcher ends the others itself: by
    SIGTERM, and half a minute later by SIGKILL.
    """

    def moment(item: tuple) -> tuple:
        """In seconds as torch's launcher knows it, then as the file says to which a process wrote its traceback."""
        file = Path(item[1].error_file)
        return item[1].timestamp, file.stat().st_mtime if file.is_file() else math.inf

    rank, first = min(error.failures.items(), key=moment)
    for other, failure in error.failures.items():
        ended = -failure.exitcode == signal.SIGTERM or failure.timestamp >= first.timestamp + 30
        if failure.exitcode < 0 and not ended:
            return other, failure
    return rank, first


def main() -> int:
    """Launch a script; its exit code."""
    # These take seconds to import, in which a signal may come.
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = build_parser().parse_args()
    args.signals_to_handle = "SIGQUIT"  # torch's launcher leaves the others to us
    if args.config_file and not Path(args.config_file).is_file():
        print(f"launch.py: error: --config_file {args.config_file} does not exist", file=sys.stderr)
        return 2
    try:
        launch_command(args)
        return 0
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        rank, failure = culprit(error)
        code = failure.exitcode
        if code not in (2, os.EX_TEMPFAIL):
            print(ChildFailedError(error.name, {rank: failure}), file=sys.stderr)  # which rank, with its traceback
    if code < 0:  # died of a signal, before it listened to any
        return os.EX_TEMPFAIL if -code in given else 128 - code
    return code


def run() -> NoReturn:
    for number in SIGNALS:
        signal.signal(number, pass_on)
    code = main()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the code is decided: Python's own end would give it away to a signal
    sys.exit(code)


if __name__ == "__main__":
    run()
