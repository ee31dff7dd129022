"""What the server of forked.py imports once, and what a process that it forks does."""

import os
import runpy
import sys
from pathlib import Path

import build_pairs  # noqa: F401
import build_student  # noqa: F401
import eval_sts  # noqa: F401
import mine_pairs  # noqa: F401
import train_bridge  # noqa: F401
import train_distill  # noqa: F401


def run_script(program: str, options: tuple[str, ...], variables: dict[str, str], output: Path) -> None:
    """Run `program` as if it were called by python, its two streams in files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(Path(__file__).parent.parent)
    sys.argv = [program, *options]
    runpy.run_path(program, run_name="__main__")
