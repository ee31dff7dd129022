"""Output folders: nothing of the user's is destroyed, whatever the options name."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

import build_pairs
import build_student
import eval_sts
from distill.command import UserError
from distill.folders import check_output, replaced_folder
from distill.training.checkpoints import write_args

PAIRS = "A dog runs.\tUn cane corre.\nThe sun is hot.\tIl sole scotta.\n"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(script, *words) -> None:
    script.main(script.build_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def pairs(tmp_path) -> Path:
    (tmp_path / "a-en-it.tsv").write_text(PAIRS)
    build(tmp_path / "a-en-it.tsv", tmp_path / "pairs")
    return tmp_path / "pairs"


def build(corpus, output, *options) -> None:
    languages = ["--target_languages", "it", "--dev_fraction", 0]
    run(build_pairs, "--corpus", corpus, "--output_dir", output, *languages, *options)


def refused(folder: Path, message: str, call, *words) -> None:
    before = content(folder)
    with pytest.raises(UserError, match=message):
        call(*words)
    assert content(folder) == before


def test_a_corpus_in_the_output_stays(tmp_path, pairs):
    corpus = shutil.copy(tmp_path / "a-en-it.tsv", pairs / "only-en-it.tsv")
    over_input = "would be written over the input"
    refused(tmp_path, over_input, build, corpus, pairs)
    refused(tmp_path, over_input, build, f"en+it={corpus}", pairs)
    refused(tmp_path, over_input, build, tmp_path / "a-en-it.tsv", pairs, "--exclude", corpus)
    corpus.unlink()
    refused(tmp_path, over_input, build, pairs, pairs)
    refused(tmp_path, over_input, build, pairs, pairs / "train")
    (tmp_path / "link").symlink_to(pairs)
    refused(tmp_path, over_input, build, pairs, tmp_path / "link")
    refused(tmp_path, over_input, build, tmp_path / "link", pairs)


def test_students_are_not_written_over_what_they_are_made_of(tmp_path, pairs, student):
    model = shutil.copytree(student, tmp_path / "model")
    audit = ("audit", "--tokenizer_name_or_path", model, "--pairs_dir", pairs)
    trim = ("trim", "--model_name_or_path", model, "--pairs_dir", pairs)
    graft = ("graft", "--encoder_model_name_or_path", model, "--pairs_dir", pairs)
    for command in (audit, trim, graft):
        for output in (pairs, model, model / "new", tmp_path):
            refused(tmp_path, "would be written over the input", run, build_student, *command, "--output_dir", output)


def test_scores_are_not_written_over_what_they_are_of(tmp_path, pairs, student):
    model = shutil.copytree(student, tmp_path / "model")
    for lang in ("en", "it"):
        (tmp_path / f"sts-{lang}.csv").write_text("a,b,1\nc,d,2\ne,f,5\n")
    for output in (model, pairs, tmp_path):
        call = ("--model_name_or_path", f"x={model}", "--bitext", pairs, "--output_dir", output)
        refused(tmp_path, "would be written over the input", run, eval_sts, *call)
    (tmp_path / "of").mkdir()
    call = ("--model_name_or_path", model, "--sts", f"s={tmp_path}/sts-{{en,it}}.csv", "--output_dir", tmp_path / "of")
    refused(tmp_path, "lie in one another", run, eval_sts, *call, "--export_dir", tmp_path / "of/export")


def test_what_no_script_wrote_is_named_and_stays(tmp_path, pairs):
    refusal = "pairs holds {}, which no script wrote"
    (pairs / "train/notes.txt").write_text("precious")
    refused(tmp_path, refusal.format("train/notes.txt"), build, tmp_path / "a-en-it.tsv", pairs)
    (pairs / "train/notes.txt").unlink()
    (pairs / "link").symlink_to(tmp_path)
    refused(tmp_path, refusal.format("link"), build, tmp_path / "a-en-it.tsv", pairs)
    (pairs / "link").unlink()
    cache = pairs / "cache/labels-0123456789abcdef"
    cache.mkdir(parents=True)
    (cache / "labels.bin").touch()  # what training adds goes with the pairs
    build(tmp_path / "a-en-it.tsv", pairs)
    assert not (pairs / "cache").exists()


def test_a_folder_is_replaced_by_its_own_command_only(tmp_path, pairs, student, monkeypatch):
    for lang in ("en", "it"):
        (tmp_path / f"sts-{lang}.csv").write_text("a,b,1\nc,d,2\ne,f,5\n")
    model = shutil.copytree(student, tmp_path / "model")
    sts = ("--model_name_or_path", model, "--sts", f"{tmp_path}/sts-{{en,it}}.csv", "--bootstrap_samples", 2)
    trim = ("trim", "--model_name_or_path", model, "--text_files", tmp_path / "sts-{en,it}.csv")
    run(eval_sts, *sts, "--output_dir", tmp_path / "scores", "--export_dir", tmp_path / "export")
    run(build_student, *trim, "--output_dir", tmp_path / "trimmed")
    for folder, kind in (("pairs", "pairs"), ("export", "an export"), ("trimmed", "a trimmed student")):
        refused(
            tmp_path, f"{folder} holds {kind}, not scores: name", run, eval_sts, *sts, "--output_dir", tmp_path / folder
        )
    (tmp_path / "run").mkdir()
    write_args(tmp_path / "run", SimpleNamespace(pairs_dir="x"))
    refused(
        tmp_path,
        "run holds a run, not an export",
        run,
        eval_sts,
        *sts,
        "--output_dir",
        tmp_path / "new",
        "--export_dir",
        tmp_path / "run",
    )
    refused(tmp_path, "scores holds scores, not pairs", build, tmp_path / "sts-en.csv", tmp_path / "scores")


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path, pairs, monkeypatch):
    monkeypatch.chdir(pairs / "train")
    for output in (".", "..", pairs):
        refused(tmp_path, "the folder that you are in", build, tmp_path / "a-en-it.tsv", output)


def test_a_mount_point_is_no_output():
    with pytest.raises(UserError, match="is a mount point, which cannot be replaced: name a folder in it"):
        check_output("/proc", SimpleNamespace(command_line="x"), "pairs")


def test_all_files_are_as_readable_as_others(tmp_path):
    with replaced_folder(tmp_path / "out", SimpleNamespace(command_line="\udcff"), "pairs") as folder:
        (folder / "weights").touch(mode=0o600)
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "other", *(tmp_path / "out").iterdir())}
    assert len(modes) == 1
    assert json.loads((tmp_path / "out/args.json").read_text())["command_line"] == "\udcff"


def test_a_link_to_nothing_is_no_output(tmp_path, pairs):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    for output in ("out", "out/pairs"):
        refused(
            tmp_path,
            "out is a link to .*nowhere, which does not exist",
            build,
            tmp_path / "a-en-it.tsv",
            tmp_path / output,
        )


@pytest.mark.parametrize(
    "args", ["{}", "[]", "5", "null", "{", '{"corpus": "x", "files": []}', '{"command_line": "x"}']
)
def test_an_args_json_of_others_makes_no_folder_ours(tmp_path, args):
    (tmp_path / "a-en-it.tsv").write_text(PAIRS)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/args.json").write_text(args)
    (tmp_path / "theirs/weights.bin").write_text("precious")
    refused(tmp_path, "which no script wrote", build, tmp_path / "a-en-it.tsv", tmp_path / "theirs")


def test_an_input_that_appears_while_the_output_is_made_stays(tmp_path):
    """The check stands where folders are replaced, not only before the work."""
    args = SimpleNamespace(command_line="x", pairs_dir=str(tmp_path / "out"), output_dir=str(tmp_path / "out"))
    check_output(tmp_path / "out", args, "pairs")
    with pytest.raises(UserError, match="over the input"):
        (tmp_path / "out").mkdir()
        with replaced_folder(tmp_path / "out", args, "pairs"):
            pass


def test_what_is_put_there_while_the_output_is_made_stays(tmp_path, pairs):
    args = SimpleNamespace(command_line="x")
    with pytest.raises(UserError, match="pairs holds late, which no script"), replaced_folder(pairs, args, "pairs"):
        (pairs / "late").write_text("precious")
    assert (pairs / "late").read_text() == "precious" and (pairs / "report.json").exists()


def test_a_folder_lists_its_files(pairs):
    listed = json.loads((pairs / "args.json").read_text())["files"]
    assert {*listed, "args.json"} == set(content(pairs))


def test_every_option_that_names_an_input_is_known():
    """An option with one of these endings, or that takes files or specs, is one that an output must not be over."""
    from test_house import options

    import mine_pairs
    import train_bridge
    import train_distill
    from distill.folders import INPUTS

    named = {
        name
        for script in (build_pairs, build_student, train_bridge, train_distill, eval_sts, mine_pairs)
        for name in options(script.build_parser())
    }
    outputs = {"output_dir", "export_dir", "cache_dir"}
    inputs = {
        name for name in named if name.endswith(("_path", "_dir", "_files")) or name in ("corpus", "exclude", "sts")
    }
    assert inputs - outputs <= INPUTS <= named


def test_two_at_once_do_not_spoil_each_other(tmp_path):
    args = SimpleNamespace(command_line="x")
    with replaced_folder(tmp_path / "out", args, "pairs") as folder:
        (folder / "a").touch()
        with pytest.raises(UserError, match="another run is writing"), replaced_folder(tmp_path / "out", args, "pairs"):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"out"} and (tmp_path / "out/a").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_half_written(tmp_path, number):
    code = f"""
import sys, os, signal; sys.path.insert(0, {str(ROOT)!r})
from types import SimpleNamespace
from distill.command import run
from distill.folders import replaced_folder
def main(args):
    with replaced_folder({str(tmp_path / "out")!r}, args, "pairs") as folder:
        (folder / "a").touch()
        signal.raise_signal({number})
signal.signal({number}, signal.SIG_DFL)  # whatever the tests were started with
run(main, SimpleNamespace(command_line="x"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (128 + number, f"-c: stopped by {number.name}\n")
    assert not list(tmp_path.iterdir())
