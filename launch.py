"""`accelerate launch`, for runs that may be stopped: signals reach the script, and its exit code comes back.

    python launch.py --config_file accelerate_configs/multi_gpu.yaml train_distill.py --pairs_dir pairs/ ...

Options are those of `accelerate launch`. That one by itself ends with 1 whatever its processes ended with, dies of
SIGUSR1, and on SIGTERM gives them 30 seconds. Exit codes are the script's: of several processes, that of the first to
fail; 128 + N for one that died of signal N, and 75 if that signal had come to this launcher too.
"""

import os
import signal
import subprocess
import sys

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
received = set()


def build_parser():
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def pass_on(number: int, frame) -> None:
    """Send a signal on to the script's processes; before there are any, it ends the launcher."""
    received.add(number)
    children = psutil.Process().children()
    if not children:
        sys.exit(os.EX_TEMPFAIL)
    for child in children:
        child.send_signal(number)


def main() -> int:
    # These take seconds to import, in which a signal may come.
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = build_parser().parse_args()
    args.signals_to_handle = "SIGHUP,SIGQUIT"  # torch's launcher leaves the others to us
    try:
        launch_command(args)
        return 0
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code not in (2, os.EX_TEMPFAIL):
            print(ChildFailedError(error.name, {rank: failure}), file=sys.stderr)  # which rank, with its traceback
    if code < 0:  # died of a signal, before it listened to any
        return os.EX_TEMPFAIL if -code in received else 128 - code
    return code


if __name__ == "__main__":
    for number in SIGNALS:
        signal.signal(number, pass_on)
    code = main()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the code is decided: Python's own end would give it away to a signal
    sys.exit(code)
