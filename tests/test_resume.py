"""A run may be cut anywhere and goes on as if nothing had happened: signals, kills, dead ranks, damage, full disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
from accelerate import Accelerator
from conftest import (
    CONFIGS,
    ENVIRONMENT,
    ROOT,
    SAMPLES,
    STOPPED,
    checkpoint_steps,
    folders,
    launch,
    metrics,
    saved,
    tiny_encoder,
    train,
)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import train_distill
from benchmarks.kill_and_resume import acting_in, owner_of
from distill import ranks
from distill.command import UserError
from distill.training import checkpoints
from launch import culprit

pytestmark = pytest.mark.xdist_group("resume")  # the uninterrupted runs are made once
# Lines of metrics.jsonl, checkpoints and evaluations come at different steps.
OPTIONS = (
    "--max_train_steps 30 --logging_steps 4 --checkpointing_steps 5 --eval_steps 7 --learning_rate 1e-3 --dropout 0.1 "
    "--loss mse cosine contrastive distribution similarity:0.01 --bank_size 20"
)
SCORES = {"bitext": {"it": {"mean_accuracy": 0.0}}, "mean_similarity": 0.0}
LATEST = ("--resume_from_checkpoint", "latest")


@pytest.fixture(scope="module")
def given(pairs, teacher, tmp_path_factory) -> list[str]:
    """Options of a run whose student has dropout, but for its folders."""
    encoder = tiny_encoder(seed=2)
    encoder.transformer.config.hidden_dropout_prob = 0.1
    student = saved(encoder, tmp_path_factory.mktemp("dropout") / "student")
    models = ("--teacher_model_name_or_path", teacher, "--student_model_name_or_path", student)
    return ["--pairs_dir", pairs, *models, *OPTIONS.split()]


def assert_same_run(one: Path, other: Path) -> None:
    """Student, metrics and last checkpoint (weights, optimizer, random states, what the run knows) are equal."""
    for name in ("student/model.safetensors", "checkpoint-30/manifest.json"):
        assert (one / "run" / name).read_bytes() == (other / "run" / name).read_bytes(), name
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(*given, *folders(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def whole_of_two(given, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of two processes, launched as users do."""
    folder = tmp_path_factory.mktemp("whole_of_two")
    code, said, errors = launch("train_distill.py", *given, *folders(folder))
    assert code == 0, errors
    assert "2 process(es) on cpu, 1 node(s)" in said
    return folder


# ---------------------------------------------------------------- signals

MOMENTS = {  # the function, and its call, in which a signal comes; and the step of the checkpoint then saved
    "token ids": ("distill.encoder.sentence_encoder.tokenize", 2, None),  # after one sentence that finds unused weights
    "labels": ("distill.encoder.sentence_encoder.SentenceEncoder.forward", 1, None),
    "the first evaluation": ("train_distill.evaluate", 1, None),
    "a step": ("distill.training.watching.Tally.add", 9, 9),
    "a step before an evaluation": ("distill.training.watching.Tally.add", 14, 14),
    "an evaluation": ("distill.encoder.sentence_encoder.SentenceEncoder.encode", 5, 14),
    "a save": ("distill.training.checkpoints.write_manifest", 2, 10),
    "the last evaluation": ("train_distill.evaluate", 6, 30),
    "the last save": ("distill.training.checkpoints.write_manifest", 6, 30),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_leaves_and_nothing_is_lost(
    given, whole, tmp_path, monkeypatch, capsys, moment
):
    place, call, step = MOMENTS[moment]
    number = ranks.SIGNALS[list(MOMENTS).index(moment) % 3]
    owner, name = owner_of(place)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, acting_in(call, getattr(owner, name), lambda: signal.raise_signal(number)))
        code = train(*given, *folders(tmp_path))
    if moment == "the last save":
        assert code == 0, "there was nothing left to do"
    else:
        assert code == STOPPED
        said = capsys.readouterr().err
        assert f"stopped by {number.name}: the same command with --resume_from_checkpoint latest goes on" in said
        assert checkpoint_steps(tmp_path)[-1:] == ([] if step is None else [step])
        assert train(*given, *folders(tmp_path), *LATEST) == 0
    assert_same_run(tmp_path, whole)


def test_a_signal_cuts_work_short_between_two_pieces():
    pieces = []

    def work() -> None:
        for piece in range(100):
            ranks.check_signal()
            pieces.append(piece)
            if piece == 3:
                signal.raise_signal(signal.SIGTERM)

    with ranks.listening(), pytest.raises(ranks.Stopped, match="stopped by SIGTERM"):
        ranks.together(work, Accelerator(cpu=True))
    assert pieces == [0, 1, 2, 3]


def test_work_that_was_done_is_kept_when_a_signal_comes():
    """A save is not cut short, and the ranks know afterwards that they are to leave."""
    with ranks.listening():
        assert ranks.together(lambda: signal.raise_signal(signal.SIGTERM) or "saved", Accelerator(cpu=True)) == "saved"
        assert ranks.stopping()


def test_a_signal_that_comes_while_a_rank_waits_is_agreed_on_next(monkeypatch):
    two, seen = SimpleNamespace(num_processes=2), []

    def all_reduce(numbers, *_):
        """What the others sent is there already when this rank gets its signal."""
        seen.append(numbers.tolist())
        if len(seen) == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ranks.known, "group", "gloo")
    monkeypatch.setattr(ranks.distributed, "all_reduce", all_reduce)
    answers = []
    with ranks.listening():
        for _ in range(2):
            assert not ranks.agree(two)
            answers.append(ranks.stopping())
    assert answers == [False, True]
    assert seen == [[0, 0, 0], [signal.SIGTERM, 0, 0]]


@pytest.mark.parametrize("moment, rank", [("labels", 0), ("a step", 1), ("an evaluation", 0)])
def test_a_signal_to_one_rank_stops_both(given, whole_of_two, tmp_path, faulty, moment, rank):
    place, call, step = MOMENTS[moment]
    fault = (str(rank), str(int(signal.SIGTERM)), place, str(call))
    codes, _, errors = forked.run(tmp_path / "cut", faulty, *fault, *given, *folders(tmp_path), processes=2)
    assert codes == [STOPPED, STOPPED], errors
    assert errors.count("stopped by SIGTERM") == 1 and "Traceback" not in errors
    assert checkpoint_steps(tmp_path)[-1:] == ([] if step is None else [step])
    again = ("train_distill.py", *given, *folders(tmp_path), *LATEST)
    codes, said, errors = forked.run(tmp_path / "again", *again, processes=2)
    assert codes == [0, 0], errors
    assert ("resumed from" in said) == (step is not None)
    assert_same_run(tmp_path, whole_of_two)


def caught(number: int, process: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("SigCgt:")[1].split()[0], 16) >> (number - 1) & 1 == 1


IMPORTING = """
import signal, launch
signal.signal(signal.SIGTERM, launch.pass_on)
try:
    signal.raise_signal(signal.SIGTERM)
except BaseException:  # as some imports do
    pass
print("goes on")
"""


def test_a_signal_while_the_launcher_imports_ends_it():
    done = subprocess.run([sys.executable, "-c", IMPORTING], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (STOPPED, "")


@pytest.mark.parametrize("early", [True, False])
def test_the_launcher_passes_signals_on(given, tmp_path, early):
    """It has no process yet to pass the signal to, or has two in training."""
    command = [
        sys.executable,
        "launch.py",
        "--config_file",
        *CONFIGS[2],
        "train_distill.py",
        *given,
        *folders(tmp_path),
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not (caught(signal.SIGUSR1, process.pid) if early else checkpoint_steps(tmp_path)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=300) == STOPPED
    assert bool(checkpoint_steps(tmp_path)) != early


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_closes_stops_a_run_but_under_nohup(given, tmp_path, nohup):
    """All processes get SIGHUP from it, the launcher's too."""

    def as_started() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)

    launched = [
        sys.executable,
        "launch.py",
        "--config_file",
        *CONFIGS[2],
        "train_distill.py",
        *given,
        *folders(tmp_path),
    ]
    process = subprocess.Popen(
        launched, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL, preexec_fn=as_started, start_new_session=True
    )
    while not checkpoint_steps(tmp_path):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(timeout=300) == (0 if nohup else STOPPED)


def test_a_configuration_that_is_not_there_is_said():
    done = subprocess.run(
        [sys.executable, "launch.py", "--config_file", "nowhere.yaml", "train_distill.py"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, "launch.py: error: --config_file nowhere.yaml does not exist\n")


HANGING = """
import ctypes, os, signal, sys
from distill.ranks import listening

with listening():
    print("listening", flush=True)
    if os.environ.get("RANK") == "1":
        signal.raise_signal(signal.SIGSTOP)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):  # locked twice, a mutex is waited for until the end of time, signals or not
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
LAUNCHER = "import sys; sys.path.insert(0, '.'); import launch; launch.AFTER_SECOND = 1; launch.run()"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_ends_what_hangs(tmp_path, request, processes):
    """A process that waits in C, where no handler of Python's runs; and one that is stopped, by the launcher.

    The first signal comes twice at once, as from a terminal and passed on.
    """
    (tmp_path / "hanging.py").write_text(HANGING)
    command = [sys.executable, str(tmp_path / "hanging.py")]
    if processes == 2:
        command = [sys.executable, "-c", LAUNCHER, "--config_file", *CONFIGS[2], *command[1:]]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
    request.addfinalizer(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
    for _ in range(processes):
        assert process.stdout.readline() == "listening\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    time.sleep(1.2)
    assert process.poll() is None, "one signal is no second one"
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED, errors
    assert errors.count("ended by a second signal: the same command with --resume_from_checkpoint latest goes on") == 1
    assert time.monotonic() - start < 60


# ---------------------------------------------------------------- ranks that die


def failed(code: int, seconds: int) -> ProcessFailure:
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="none")
    failure.timestamp = seconds
    return failure


@pytest.mark.parametrize(
    "failures, expected",
    [
        ([failed(1, 100), failed(-9, 101)], -9),  # lost its peer, and was seen before it
        ([failed(1, 100), failed(1, 101)], 1),
        ([failed(2, 101), failed(-15, 101)], 2),  # the launcher's signal, before it was listened to
        ([failed(1, 100), failed(-9, 131)], 1),  # the launcher's, to one that did not follow
        ([failed(-11, 100), failed(75, 99)], -11),
    ],
)
def test_the_exit_code_is_that_of_a_rank_that_died_of_a_signal_whoever_was_seen_first(failures, expected):
    _, failure = culprit(ChildFailedError("train_distill.py", dict(enumerate(failures))))
    assert failure.exitcode == expected


def test_of_two_errors_in_one_second_the_first_is_told(tmp_path):
    failures = {}
    for rank, moment in enumerate((100.8, 100.2)):
        file = tmp_path / f"{rank}.json"
        file.write_text('{"message": {"message": "an error", "extraInfo": {"timestamp": "100"}}}')
        os.utime(file, (moment, moment))
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=1, error_file=str(file))
    assert culprit(ChildFailedError("train_distill.py", failures))[0] == 1


@pytest.mark.parametrize(
    "place, call", [("train_distill.distillation_loss", 8), ("distill.training.checkpoints.write_manifest", 1)]
)
def test_an_error_of_one_rank_ends_all_with_its_traceback_on_top(given, tmp_path, faulty, place, call):
    start = time.monotonic()
    rank = "0" if place == "distill.training.checkpoints.write_manifest" else "1"
    code, _, errors = launch(faulty, rank, "error", place, str(call), *given, *folders(tmp_path))
    assert code == 1
    assert time.monotonic() - start < 200
    first = next(line for line in errors.split("Traceback", 1)[1].splitlines() if "Error: " in line)
    assert "RuntimeError: a fault" in first
    report = errors.split("Root Cause")[1]
    assert f"rank      : {rank} " in report and "RuntimeError: a fault" in report, "and at the end again"
    assert checkpoint_steps(tmp_path) == ([5] if rank == "1" else [])


def test_a_killed_rank_ends_the_others(given, whole_of_two, tmp_path, faulty):
    start = time.monotonic()
    fault = ("1", str(int(signal.SIGKILL)), "train_distill.distillation_loss", "12")
    code, _, errors = launch(faulty, *fault, *given, *folders(tmp_path))
    assert code == 128 + signal.SIGKILL, errors
    assert time.monotonic() - start < 200
    assert checkpoint_steps(tmp_path) == [5, 10]
    again = ("train_distill.py", *given, *folders(tmp_path), *LATEST)
    assert forked.run(tmp_path / "again", *again, processes=2)[0] == [0, 0]
    assert_same_run(tmp_path, whole_of_two)


# ---------------------------------------------------------------- another number of processes


def test_another_number_of_processes_takes_the_same_remaining_steps(given, tmp_path, faulty):
    """Without dropout, whose random numbers are each rank's own. Stopped when a line has one of its steps."""
    options = [*given, "--dropout", "0"]
    assert train(*options, *folders(tmp_path / "whole")) == 0
    expected = [line for line in metrics(tmp_path / "whole") if "loss" in line]
    for before, after in ((1, 2), (2, 1)):
        folder = tmp_path / f"{before} then {after}"
        fault = ("0", str(int(signal.SIGUSR1)), "distill.training.watching.Tally.add", "9")
        cut = (folder / "cut", faulty, *fault, *options, *folders(folder))
        assert forked.run(*cut, processes=before)[0] == [STOPPED] * before
        assert checkpoint_steps(folder) == [5, 9]
        again = (folder / "again", "train_distill.py", *options, *folders(folder), *LATEST)
        codes, said, errors = forked.run(*again, processes=after)
        assert codes == [0] * after, errors
        assert f"{after} process(es)" in said
        found = [line for line in metrics(folder) if "loss" in line]
        assert [line["step"] for line in found] == [line["step"] for line in expected]
        losses, expected_losses = ([line["loss"] for line in lines] for lines in (found, expected))
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


# ---------------------------------------------------------------- damage


@pytest.fixture
def two_checkpoints(given, whole, tmp_path) -> Path:
    """A folder with a run's checkpoints 25 and 30, to be damaged."""
    shutil.copytree(whole / "run", tmp_path / "run")
    assert checkpoint_steps(tmp_path) == [25, 30]
    return tmp_path


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("model.safetensors", truncate, "model.safetensors has 100 bytes and had "),
        ("optimizer.bin", flip_a_bit, "the content of optimizer.bin has changed"),
        ("random_states_0.pkl", Path.unlink, "random_states_0.pkl is missing"),
        ("settings.json", flip_a_bit, "the content of settings.json has changed"),
        ("manifest.json", truncate, "manifest.json cannot be read"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
    ],
)
def test_a_damaged_latest_checkpoint_is_reported_and_the_one_before_used_if_asked(
    given, whole, two_checkpoints, capsys, name, damage, message
):
    run_folder = two_checkpoints / "run"
    damage(run_folder / "checkpoint-30" / name)
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert train(*given, *folders(two_checkpoints), *LATEST) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    advice = f"to go on from the one before, --resume_from_checkpoint {run_folder}/checkpoint-25"
    assert f"{run_folder}/checkpoint-30 is damaged: {message}" in error[0] and error[0].endswith(advice)
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before
    assert train(*given, *folders(two_checkpoints), *advice.split()[-2:]) == 0
    assert_same_run(two_checkpoints, whole)
    assert checkpoint_steps(two_checkpoints) == [25, 30]


def test_with_no_whole_checkpoint_left_nothing_is_proposed(given, two_checkpoints, capsys):
    for step in (25, 30):
        truncate(two_checkpoints / f"run/checkpoint-{step}/model.safetensors")
    assert train(*given, *folders(two_checkpoints), *LATEST) == 2
    assert capsys.readouterr().err.strip().endswith("; no other one is whole")
    path = f"{two_checkpoints}/run/checkpoint-25"
    assert train(*given, *folders(two_checkpoints), "--resume_from_checkpoint", path) == 2
    assert f"{path} is damaged: " in (error := capsys.readouterr().err) and error.strip().endswith("; name another one")


def test_a_latest_checkpoint_that_is_empty_is_damaged(given, two_checkpoints, capsys):
    shutil.rmtree(two_checkpoints / "run/checkpoint-30")
    (two_checkpoints / "run/checkpoint-30").mkdir()
    assert train(*given, *folders(two_checkpoints), *LATEST) == 2
    assert "manifest.json is missing; to go on from the one before" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, lost",
    [
        ("5", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"settings.json": 5}', "cannot be read"),
        ("{}", "does not list settings.json"),
    ],
)
def test_a_manifest_of_another_form_is_damaged(two_checkpoints, content, lost):
    checkpoint = two_checkpoints / "run/checkpoint-30"
    (checkpoint / "manifest.json").write_text(content)
    assert checkpoints.damage(checkpoint) == f"manifest.json {lost}"


def test_a_run_does_not_go_on_in_the_folder_of_another(given, two_checkpoints, tmp_path, capsys):
    other = shutil.copytree(two_checkpoints / "run", tmp_path / "other")
    content = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    theirs = ("--resume_from_checkpoint", str(two_checkpoints / "run/checkpoint-25"))
    assert train(*given, *folders(tmp_path), "--output_dir", str(other), *theirs) == 2
    assert "other holds a run of its own, of which " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == content


def test_of_two_runs_in_one_folder_the_second_is_refused(given, tmp_path, monkeypatch, capsys):
    """A job that was requeued beside one that is still there: it touches nothing."""

    def second(*_):
        before = sorted(tmp_path.rglob("*"))
        codes, _, errors = forked.run(tmp_path.with_name(f"{tmp_path.name}-second"), "train_distill.py", *call, *LATEST)
        assert codes == [2] and f"error: another run is writing {tmp_path}/run: wait for it" in errors
        assert sorted(tmp_path.rglob("*")) == before

    call = (*given, *folders(tmp_path), "--max_train_steps", "5")
    place = "train_distill.evaluate"
    owner, name = owner_of(place)
    monkeypatch.setattr(owner, name, acting_in(1, getattr(owner, name), second))
    assert train(*call) == 0
    assert not list(tmp_path.glob(".*.lock"))


def test_a_student_folder_is_no_place_for_a_cache(given, tmp_path, capsys):
    cache = ("--cache_dir", str(tmp_path / "run/student/cache"))
    assert train(*given, *folders(tmp_path), *cache) == 2
    assert "is no place beside student and checkpoints: name another folder" in capsys.readouterr().err


def test_a_cache_within_the_run_is_no_hindrance_after_a_kill(given, tmp_path):
    """Killed before args.json was written."""
    (tmp_path / "run/deep/cache").mkdir(parents=True)
    (tmp_path / "run/.lock").touch()
    (tmp_path / "run/args.json.new").touch()
    inside = ("--cache_dir", str(tmp_path / "run/deep/cache"), "--max_train_steps", "1")
    assert train(*given, *folders(tmp_path), *inside, *LATEST) == 0


@pytest.mark.parametrize("line", ["{", "3"])
def test_a_line_of_metrics_that_is_no_object_is_said(given, two_checkpoints, capsys, line):
    path = two_checkpoints / "run/metrics.jsonl"
    _, _, rest = path.read_text().partition("\n")
    path.write_text(f"{line}\n{rest}")
    assert train(*given, *folders(two_checkpoints), *LATEST) == 2
    assert "metrics.jsonl has a line that is no JSON object" in capsys.readouterr().err
    assert path.read_text() == f"{line}\n{rest}"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_place_of_a_checkpoint_gives_way_and_what_it_names_stays(given, whole, two_checkpoints, there):
    run_folder, far = two_checkpoints / "run", two_checkpoints / "far"
    if there:
        shutil.copytree(run_folder / "checkpoint-30", far)
    shutil.rmtree(run_folder / "checkpoint-30")
    (run_folder / "checkpoint-30").symlink_to(far)
    back = ("--resume_from_checkpoint", f"{run_folder}/checkpoint-25")
    assert train(*given, *folders(two_checkpoints), *back) == 0
    assert_same_run(two_checkpoints, whole)
    assert not (run_folder / "checkpoint-30").is_symlink() and far.exists() == there


def test_a_file_in_place_of_a_checkpoint_is_said(given, two_checkpoints, capsys):
    shutil.rmtree(two_checkpoints / "run/checkpoint-30")
    (two_checkpoints / "run/checkpoint-30").write_text("precious")
    assert train(*given, *folders(two_checkpoints), *LATEST) == 2
    assert "run/checkpoint-30 is a file: move it" in capsys.readouterr().err
    assert (two_checkpoints / "run/checkpoint-30").read_text() == "precious"


def test_going_back_leaves_no_later_checkpoint(given, whole, tmp_path):
    """Back from 30 to 10, with one checkpoint to keep: each new one takes the place of the one before and of 30."""
    keep = ("--checkpoints_total_limit", "9")
    assert train(*given, *folders(tmp_path), *keep) == 0
    seen = []
    finish = checkpoints.write_manifest

    def look(folder: Path) -> None:
        seen.append(checkpoint_steps(tmp_path))
        finish(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_manifest", look)
        more = ("--resume_from_checkpoint", f"{tmp_path}/run/checkpoint-10", "--checkpoints_total_limit", "1")
        assert train(*given, *folders(tmp_path), *more) == 0
    assert seen == [[5, 10, 15, 20, 25, 30], [15], [20], [25]], "old ones go when the new one is whole"
    assert checkpoint_steps(tmp_path) == [30]
    assert_same_run(tmp_path, whole)


def said_and_saved(folder: Path, said: str) -> None:
    """The student that a run says it has is the one that lies there."""
    made = json.loads((folder / "run/student/args.json").read_text())
    assert f"run/student: step {made['step']}, dev mean_accuracy {made['score']:.4f}" in said
    line = next(line for line in metrics(folder) if line["step"] == made["step"] and "mean_accuracy" in line)
    assert line["mean_accuracy"] == made["score"]


def test_a_run_that_goes_back_and_ends_early_says_which_student_it_has(given, tmp_path, capsys):
    """It is the better one of later steps; they were taken, and are not taken again."""
    scores = [0.1, 0.2, 0.3, 0.9, 0.2, 0.2]  # at steps 0, 7, 14, 21, 28, 30
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_distill, "evaluate", lambda *_: SCORES | {"mean_accuracy": scores.pop(0)})
        keep = ("--checkpoints_total_limit", "9")
        assert train(*given, *folders(tmp_path), *keep) == 0
        said_and_saved(tmp_path, capsys.readouterr().out)
        best = (tmp_path / "run/student/model.safetensors").read_bytes()
        scores = [0.25, 0.25]
        back = ("--resume_from_checkpoint", f"{tmp_path}/run/checkpoint-10", "--early_stopping_patience", "1", *keep)
        assert train(*given, *folders(tmp_path), *back) == 0
    assert "run/student: step 21, dev mean_accuracy 0.9000" in capsys.readouterr().out
    assert (tmp_path / "run/student/model.safetensors").read_bytes() == best


def test_a_run_that_starts_anew_has_no_student_of_an_earlier_start(given, tmp_path):
    """Its options may have been others: here it was judged by other files."""

    def die(*_):
        raise UserError("before there is a checkpoint")

    owner, name = owner_of("distill.training.checkpoints.write_manifest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, die)
        sts = ("--sts_dev", str(SAMPLES / "sts-{de,en}.csv"), "--eval_steps", "4")
        assert train(*given, *folders(tmp_path), *sts) == 2
    assert json.loads((tmp_path / "run/student/args.json").read_text())["score"] > 0
    assert train(*given, *folders(tmp_path), *LATEST, "--max_train_steps", "3", "--learning_rate", "1e-9") == 0
    made = json.loads((tmp_path / "run/student/args.json").read_text())
    assert (made["step"], made["learning_rate"], made["sts_dev"]) == (3, 1e-9, None)


def test_another_option_is_refused_before_anything_is_computed(given, two_checkpoints, capsys):
    shutil.rmtree(two_checkpoints / "cache", ignore_errors=True)
    assert train(*given, *folders(two_checkpoints), *LATEST, "--loss", "distribution") == 2
    assert "was trained with --loss mse:1 cosine:1 " in capsys.readouterr().err
    assert not (two_checkpoints / "cache").exists()


def test_what_is_put_into_a_student_s_folder_ends_no_run_and_stays(given, whole, tmp_path, monkeypatch):
    def put(*_):
        (tmp_path / "run/student/notes").mkdir()
        (tmp_path / "run/student/notes/a.txt").write_text("precious")
        (tmp_path / "run/student/link").symlink_to("nowhere")

    owner, name = owner_of("train_distill.evaluate")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, acting_in(3, getattr(owner, name), put))
        assert train(*given, *folders(tmp_path)) == 0
    assert_same_run(tmp_path, whole)
    assert train(*given, *folders(tmp_path), *LATEST) == 0
    assert (tmp_path / "run/student/notes/a.txt").read_text() == "precious"
    assert (tmp_path / "run/student/link").is_symlink()


@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip_a_bit])
def test_a_damaged_student_is_not_taken_for_the_best_one(given, two_checkpoints, capsys, damage):
    shutil.rmtree(two_checkpoints / "run/checkpoint-30")
    damage(two_checkpoints / "run/student/model.safetensors")
    assert train(*given, *folders(two_checkpoints), *LATEST) == 0
    said_and_saved(two_checkpoints, capsys.readouterr().out)
    weights = two_checkpoints / "run/student/model.safetensors"
    assert checkpoints.file_entry(weights) == json.loads((weights.parent / "args.json").read_text())["weights"]


def test_a_user_s_copies_of_checkpoints_stay(given, whole, two_checkpoints):
    run_folder = two_checkpoints / "run"
    for name in ("checkpoint-best-2", "checkpoint-25-backup2"):
        shutil.copytree(run_folder / "checkpoint-25", run_folder / name)
    (run_folder / "checkpoint-7").write_text("a file")
    shutil.move(run_folder / "checkpoint-25", two_checkpoints / "elsewhere")
    (run_folder / "checkpoint-20").symlink_to(two_checkpoints / "elsewhere")
    assert checkpoint_steps(two_checkpoints) == [20, 30]
    back = ("--resume_from_checkpoint", f"{run_folder}/checkpoint-25-backup2", "--checkpoints_total_limit", "1")
    assert train(*given, *folders(two_checkpoints), *back) == 0
    assert {"checkpoint-best-2", "checkpoint-25-backup2", "checkpoint-7", "checkpoint-20"} <= {
        path.name for path in run_folder.iterdir()
    }
    assert (two_checkpoints / "elsewhere/settings.json").is_file()


def test_an_undefined_dev_score_is_said():
    with pytest.raises(UserError, match="the dev score of step 3 is undefined"):
        checkpoints.Progress(step=3).judge(float("nan"))


def test_a_torn_line_of_metrics_is_cut_off(given, whole, two_checkpoints):
    with (two_checkpoints / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "lo')
    assert train(*given, *folders(two_checkpoints), *LATEST) == 0
    assert metrics(two_checkpoints) == metrics(whole)


# ---------------------------------------------------------------- full disks


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


can_mount = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount, reason="no file system can be mounted here (unshare -rm)")
@pytest.mark.parametrize("full_in, processes", [("labels", 1), ("student", 1), ("checkpoint", 1), ("checkpoint", 2)])
def test_a_full_disk_is_said_and_the_last_good_checkpoint_kept(
    given, whole, whole_of_two, tmp_path, full_in, processes
):
    """On a disk for the labels' half; for one checkpoint and half a student; for two and a half checkpoints."""
    checkpoint, student, cache = (size(whole / name) for name in ("run/checkpoint-30", "run/student", "cache"))
    sizes = {
        "labels": 0.5 * cache,
        "student": checkpoint + 0.5 * student,
        "checkpoint": 2.5 * checkpoint + 1.5 * student,
    }
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    where = ("--output_dir", f"{disk}/run")
    where += ("--cache_dir", f"{disk}/cache") if full_in == "labels" else ("--cache_dir", f"{tmp_path}/cache")
    mounted = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && "$@"; code=$?; cp -r "$DISK" "$KEPT"; exit $code'
    command = ["unshare", "-rm", "bash", "-c", mounted, "bash", str(int(sizes[full_in])), str(disk)]
    environment = ENVIRONMENT | {"DISK": str(disk), "KEPT": str(kept)}
    launcher = ["launch.py", "--config_file", *CONFIGS[2]] if processes == 2 else []
    program = [sys.executable, *launcher, "train_distill.py", *given, *where]
    done = subprocess.run([*command, *program], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 2, done.stderr
    error = [line for line in done.stderr.splitlines() if "error: " in line]
    place = "cache" if full_in == "labels" else "run"
    said = f"the disk of {disk}/{place} is full: free some of it, then {ranks.GO_ON}"
    assert len(error) == 1 and error[0].endswith(said) and "Traceback" not in done.stderr
    if full_in == "checkpoint":
        assert f"error: {disk}/run/checkpoint-15 is not saved, older ones are kept; the disk" in error[0]
    left = {"labels": [], "student": [5], "checkpoint": [5, 10]}[full_in]
    assert checkpoint_steps(kept) == left
    assert all(checkpoints.damage(path) is None for path in checkpoints.checkpoints(kept / "run"))
    again = (tmp_path / "again", "train_distill.py", *given, *folders(kept), *LATEST)
    codes, _, errors = forked.run(*again, processes=processes)
    assert codes == [0] * processes, f"with room again, it goes on: {errors}"
    assert_same_run(kept, whole if processes == 1 else whole_of_two)


# ---------------------------------------------------------------- SIGKILL


@pytest.mark.parametrize("processes, kills", [("1", "4"), ("3", "2")])
def test_kills_at_random_moments(processes, kills):
    """The harness of the README, with one kill of each kind. The order of a sum matters from three processes on."""
    command = [sys.executable, "benchmarks/kill_and_resume.py", "--kills", kills, "--processes", processes]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{kills} of {kills} kills survived with equal weights"
