"""What every script shares: a user's errors, folders that appear whole, files named by language."""

import argparse
import ctypes
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from safetensors import SafetensorError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that there are: no "(default: None)"."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def at_least(lowest: int) -> Callable[[str], int]:
    """The type of an option that is a number from `lowest` on."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is not {lowest} or more")
        return int(text)

    return number


class UserError(Exception):
    """A user's mistake, in one sentence: what is wrong, where, and what to do."""


class LoneError(UserError):
    """A user's mistake that one rank meets alone, and so has to say itself."""


class Stopped(Exception):
    """A signal has ended the run, nothing is lost: what to do to go on, in one sentence."""


def run(main: Callable, args) -> None:
    """Run a script's `main(args)` and exit: 2 after a `UserError`, 75 when `Stopped`, each said in one line.

    75 is EX_TEMPFAIL of sysexits.h: try again later. Of the ranks on a machine, the first speaks.
    """
    try:
        main(args)
    except (UserError, Stopped) as end:
        mistake = isinstance(end, UserError)
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(end, LoneError):
            print(f"{Path(sys.argv[0]).name}: {'error: ' * mistake}{end}", file=sys.stderr)
        sys.exit(2 if mistake else os.EX_TEMPFAIL)


def check_processes(accelerator) -> None:
    """UserError where the launcher started processes that know nothing of each other."""
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise UserError("the launcher started several separate runs: on CPU set ACCELERATE_USE_CPU=true")


def read_json(path: Path, default):
    """The content of a JSON file, or `default` where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def write_json(path: Path, content) -> None:
    """Write readable JSON (UTF-8, two spaces) that ends in a newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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


def check_replaceable(path: str | Path) -> None:
    """UserError where `replaced_folder` would be refused, or could not write: for scripts that compute long before."""
    path = Path(path).resolve()
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / "args.json").is_file())):
        raise UserError(f"{path} exists and was not made by these scripts: name another output folder")
    parent = next(parent for parent in path.parents if parent.exists())
    with writing(path), tempfile.TemporaryDirectory(dir=parent):
        pass


@contextmanager
def replaced_folder(path: str | Path, args=None) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well, else vanishes.

    `args` (a namespace) is written into it as `args.json`. A folder that holds files but no `args.json` is
    not ours to replace: UserError.
    """
    check_replaceable(path)
    path = Path(path).resolve()  # a link stays, the folder that it names is replaced
    temporary, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("tmp", "old"))
    if old.exists() and not path.exists():
        old.rename(path)  # killed between the two renames below
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if args is not None:
            write_json(temporary / "args.json", vars(args))
        if not (path.exists() and exchange(temporary, path)):
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def expand_languages(spec: str) -> dict[str, str]:
    """'x.{en,it}.gz' -> {'en': 'x.en.gz', 'it': 'x.it.gz'}: the files of a brace path by language."""
    match = re.search(r"\{([^{}]+)\}", spec)
    if match is None:
        raise UserError(f"{spec} names no languages: write them in quoted braces, as in 'stsb-{{en,it}}-test.csv'")
    return {lang: spec[: match.start()] + lang + spec[match.end() :] for lang in match[1].split(",")}


def load_pairs(path: str) -> datasets.DatasetDict:
    """The folder that build_pairs.py wrote: splits with the columns `source` and `targets`."""
    try:
        pairs = datasets.load_from_disk(path)
        if {"source", "targets"} <= set(pairs["train"].column_names):
            return pairs
    except (FileNotFoundError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is no folder of build_pairs.py (train with the columns source and targets)")
