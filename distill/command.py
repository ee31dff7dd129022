"""What every command shares: its options and how they are shown, a user's errors, exit codes."""

import argparse
import errno
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# What a run of several processes listens to, its launcher and its ranks.
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it, for a run that outlives its terminal
    SIGNALS.append(signal.SIGHUP)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that there are: no "(default: None)"."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A script's options, described by the first line of its docstring.

    What it parses also says the command line, `command_line`: `launcher`, the script's name, and the words given; and
    `called_from`, the folder that relative paths among them begin in.
    """

    def __init__(self, docstring: str = "", launcher: str = "python", script: str = "", **settings):
        settings = {"description": docstring.partition("\n")[0], "formatter_class": _Help} | settings
        super().__init__(**settings)
        self.register("type", None, not_empty)  # of options that name no other type
        self.launched = f"{launcher} {Path(script).name}"

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        words = sys.argv[1:] if args is None else args
        parsed = super().parse_args(words, namespace)
        parsed.command_line = f"{self.launched} {shlex.join(words)}"
        try:
            parsed.called_from = os.getcwd()
        except FileNotFoundError:
            self.error("the folder that you are in exists no more: go to another")
        return parsed

    def error(self, message: str):
        """End as `run` does: in one line, without the list of all options."""
        self.exit(2, f"{self.prog}: error: {message}; --help shows all options\n")


def wrapped(command_line: str) -> str:
    """A command line as it is shown: four spaces before it, an option a line."""
    return "    " + re.sub(r" (?=--\w)", " \\\\\n      ", command_line)


def between(lowest: float, highest: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """The type of an option that is a finite number from `lowest` (or `above` it) to `highest`."""

    def number(text: str) -> float:
        value = float(text)
        if not (lowest < value if above else lowest <= value) or not value <= highest or math.isinf(value):
            bounds = f"{'above' if above else 'from'} {lowest:g}" + (
                f" to {highest:g}" if highest < math.inf else " on"
            )
            raise argparse.ArgumentTypeError(f"{text} is no number {bounds}")
        return value

    return number


def at_least(lowest: int, highest: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of an option that is a whole number from `lowest` on; what is above `highest` is surely a slip."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is not {lowest} or more")
        if int(text) > highest:
            raise argparse.ArgumentTypeError(f"{text} is more than {highest}")
        return int(text)

    return number


def not_empty(text: str) -> str:
    """The type of an option that names something, as a folder: a shell's unset variable names nothing."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: fill it in, or leave the option out")
    return text


class UserError(Exception):
    """A user's mistake, in one sentence: what is wrong, where, and what to do."""


class Stopped(Exception):
    """A signal has ended the run, nothing is lost: what to do to go on, in one sentence."""


positive, not_negative, share = between(0, above=True), between(0), between(0, 1)
part = between(0, 1, above=True)  # a share that is not nothing

# What a file system says of a path that a user gave, whoever met it.
ABOUT_PATHS = (
    *(errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.ELOOP),
)


def _say(text: str) -> None:
    """Say how a script ends, if anybody reads on."""
    try:
        print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr)
    except BrokenPipeError:  # the other end of both; what is left to write would fail once more, and change the code
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stop(number: int, frame) -> None:
    """End by a signal as by an exception, so that nothing is left half-written."""
    _say(f"stopped by {signal.Signals(number).name}")
    sys.exit(128 + number)


def run(main: Callable, args) -> None:
    """Run a script's `main(args)` and exit: 2 after a `UserError`, 75 when `Stopped`, each said in one line.

    128 + N after signal N, where `main` does not listen to signals itself.
    75 is EX_TEMPFAIL of sysexits.h: try again later. Of the ranks on a machine, the first speaks.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # else `main` listens itself
            signal.signal(number, _stop)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        # A terminal that is not UTF-8 shows what it can; a line that cannot be written fails at once
        getattr(sys, name).reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        _run(main, args)
    except BrokenPipeError:  # nobody reads on, as of `| head -1`; what is left to write would fail once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _stop(signal.SIGPIPE, None)


def _run(main: Callable, args) -> None:
    """Run `main(args)` and say a mistake or a stop in one line."""
    try:
        try:
            main(args)
        except OSError as error:
            if error.filename is None or error.errno not in ABOUT_PATHS:
                raise
            name = f"{str(error.filename)[:80]}{'...' * (len(str(error.filename)) > 80)}"
            raise UserError(f"{name}: {os.strerror(error.errno)}") from error
    except (UserError, Stopped) as end:
        mistake = isinstance(end, UserError)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            said = str(end).replace("\n", "\\n")  # a name may hold a line end
            _say(f"{'error: ' * mistake}{said}")
        sys.exit(2 if mistake else os.EX_TEMPFAIL)
