"""What every command does with mistakes: one line, exit code 2, on any terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import build_pairs
from distill.command import UserError, between, run


def said(capsys, main) -> str:
    with pytest.raises(SystemExit) as end:
        run(main, None)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_name_of_any_kind_is_said_in_one_line(capsys, tmp_path):
    def opening(name):
        return lambda _: (tmp_path / name).read_text()

    assert "xxx...: File name too long" in said(capsys, opening("x" * 300))
    locked = tmp_path / "loop"
    locked.symlink_to(locked)
    assert "loop: Too many levels of symbolic links" in said(capsys, lambda _: locked.read_text())

    def mistake(_):
        raise UserError("a\nb does not exist")

    assert said(capsys, mistake).endswith("error: a\\nb does not exist\n")


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        run(lambda _: Path("/nowhere").read_text(), None)


def test_a_terminal_that_is_not_utf8(tmp_path):
    (tmp_path / "è-en-it.tsv").write_text("A dog.\tUn cane è.\n" * 2, encoding="utf-8")
    call = [sys.executable, ROOT / "build_pairs.py", "--corpus", tmp_path / "è-en-it.tsv", "--target_languages", "it"]
    call += ["--dev_fraction", "0", "--output_dir", tmp_path / "pairs"]
    done = subprocess.run(call, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=100)
    assert done.returncode == 0 and rb"\xe8-en-it.tsv" in done.stdout, done.stderr


def build_two_pairs(tmp_path, redirected: str) -> subprocess.CompletedProcess:
    """Run build_pairs.py in a shell, its streams `redirected`."""
    (tmp_path / "a-en-it.tsv").write_text("A dog.\tUn cane.\n" * 2, encoding="utf-8")
    call = f"{sys.executable} {ROOT}/build_pairs.py --corpus a-en-it.tsv --target_languages it --dev_fraction 0"
    command = f"{call} --output_dir pairs {redirected}"
    return subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=100)


def test_a_reader_that_has_gone(tmp_path):
    """bash's PIPESTATUS tells the first command's exit code."""
    done = build_two_pairs(tmp_path, "| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (128 + 13, "build_pairs.py: stopped by SIGPIPE\n")


ENDING = """
import time
from distill.command import Stopped, UserError, run

def main(_):
    time.sleep(0.5)  # until the reader has gone
    raise {}("why")

run(main, None)
"""


@pytest.mark.parametrize("end, code", [("Stopped", 75), ("UserError", 2)])
def test_the_exit_code_stands_when_nobody_reads_why(tmp_path, end, code):
    """Both streams go to one reader, as to tee, which Ctrl-C ends too."""
    (tmp_path / "ending.py").write_text(ENDING.format(end))
    command = f"{sys.executable} {tmp_path}/ending.py 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(["bash", "-c", command], env=environment, timeout=100).returncode == code


def test_a_folder_that_is_gone(tmp_path):
    command = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} {ROOT}/build_pairs.py --corpus x --output_dir y"
    command += " --target_languages it"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "error: the folder that you are in exists no more: go to another" in done.stderr


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, redirected):
    done = build_two_pairs(tmp_path, redirected)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "pairs/report.json").is_file()


@pytest.mark.parametrize("option", ["--exclude", "--scheduler", "--source_language"])
def test_an_empty_name_is_refused(capsys, option):
    with pytest.raises(SystemExit) as end:
        build_pairs.build_parser().parse_args([option, ""])
    assert end.value.code == 2 and f"argument {option}: it is empty" in capsys.readouterr().err


def test_an_unknown_option_takes_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        build_pairs.build_parser().parse_args(["--corpse", "x"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and error.endswith("--help shows all options\n")


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1.5", "x", "0"])
def test_numbers_out_of_range(text):
    with pytest.raises((ValueError, Exception), match=f"{text} is no number above 0 to 1|could not convert"):
        between(0, 1, above=True)(text)
    assert between(0, 1, above=True)("1e-3") == 1e-3
