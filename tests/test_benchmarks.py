"""Measurements that are made elsewhere must not fail there for a silly reason: they are rehearsed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import ENVIRONMENT, ROOT, SAMPLES

from benchmarks import bridge_vs_distillation as comparison
from benchmarks import variants


def test_the_measurements_on_a_gpu_are_rehearsed_on_a_cpu(tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = ENVIRONMENT | {"OUT": str(tmp_path), "PATH": path}
    command = ["bash", "benchmarks/gpu.sh", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=500)
    results = json.loads((tmp_path / "results.json").read_text())
    assert done.returncode == 0, done.stdout
    parts = ["tests", "training", "peer", "fp16", "memory", "resume", "labels", "profile"]
    assert list(results) == ["device", "torch", *parts]
    assert results["resume"]["largest difference of a weight"] == 0
    assert "skipped" in results["tests"]["pytest"] or "passed" in results["tests"]["pytest"]
    assert results["peer"]["16"]["ratio of pairs"] > 0 and "Name" in (tmp_path / "profile.txt").read_text()
    assert "| resume largest difference of a weight | 0 " in (tmp_path / "results.md").read_text()


@pytest.fixture
def trainers(monkeypatch, tmp_path) -> list[list[str]]:
    """The commands of all runs, of which none starts Python anew."""
    commands = []

    def run(command: list[str], env: dict, check: bool) -> None:
        at = next(i for i, word in enumerate(command) if word.endswith(".py"))
        commands.append(command[at:])
        codes, _, errors = forked.run(tmp_path / f"said-{len(commands)}", *command[at:])
        assert codes == [0], errors

    monkeypatch.setattr(variants.subprocess, "run", run)
    return commands


def test_ranking_beside_distillation(tmp_path, trainers, pairs, student, teacher, capsys, monkeypatch):
    """Approaches of one part and of two; and a call that is given again takes what has been done."""
    # Of a student that knows nothing nothing is a hard negative
    in_two = comparison.APPROACHES["both"]._replace(variant="train_bridge.py --margin 0.3")
    monkeypatch.setitem(comparison.APPROACHES, "both", in_two)

    def table(approaches: str, rates: str, seeds: str, *more: str) -> list[list[str]]:
        given = f"--pairs_dir {pairs} --student_model_name_or_path {student} --teacher_model_name_or_path {teacher}"
        given += f" --sts_dev {SAMPLES}/sts-{{en,it}}.csv --work_dir {tmp_path}/work --pairs 300 --batch_size 30"
        given += f" --approaches {approaches} --learning_rate {rates} --seeds {seeds}"
        comparison.main(comparison.build_parser().parse_args([*given.split(), *more, "--", "--max_seq_length", "16"]))
        printed = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in printed if line.startswith("|")][2:]

    def option(command: list[str], name: str) -> str:
        return command[command.index(name) + 1]

    before, *rows = table("english both", "1e-3", "1")
    assert [row[:2] for row in rows] == [["ranking, half of it English", "1e-3"], [in_two.name, "1e-3"]]
    assert all(float(row[8]) > 0 for row in rows), "tokens"
    for row in rows:
        assert float(row[5]) == pytest.approx(float(row[4]) - float(before[4]), abs=0.11), "English kept"
    # What goes before the second as it is, for its rate; the beginning of the second, its end
    assert [(Path(command[0]).name, option(command, "--max_train_steps")) for command in trainers] == [
        ("train_bridge.py", "10"),
        ("train_distill.py", "10"),
        ("train_distill.py", "9"),
        ("train_bridge.py", "1"),
    ]
    begun = f"{option(trainers[2], '--output_dir')}/student"
    assert [option(command, "--student_model_name_or_path") for command in trainers] == [student] * 3 + [begun]

    assert table("english both", "1e-3", "1") == [before, *rows] and len(trainers) == 4
    [_, row] = table("english", "1e-5 1e-3", "1 2")
    assert len(trainers) == 6 and option(trainers[5], "--learning_rate") == row[1] and "+-" in row[2]
    with pytest.raises(SystemExit, match="holds runs with other options"):
        table("english", "1e-3", "1", "--epochs", "2")


def test_variants(tmp_path, trainers, pairs, student, teacher, capsys):
    given = f"--pairs_dir {pairs} --student_model_name_or_path {student} --sts_dev {SAMPLES}/sts-{{en,it}}.csv".split()
    more = ["--distill", f"--teacher_model_name_or_path {teacher}", "--steps", "2", "--work_dir", str(tmp_path)]

    def table(*options: str) -> list[list[str]]:
        variants.main(variants.build_parser().parse_args([*more, *options, "--", *given]))
        lines = capsys.readouterr().out.split("CPU-seconds")[-1].splitlines()[2:]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    before, bridge, mse = table("--vary", "train_bridge.py --margin 0.1", "--loss mse", "--learning_rate", "1e-3")
    assert [before[0], bridge[0], mse[0]] == ["before", "train_bridge.py --margin 0.1", "--loss mse"]
    assert [Path(words[0]).name for words in trainers] == ["train_bridge.py", "train_distill.py"]
    # A second seed at the better rate; what has been done is taken
    _, chosen = table("--vary", "--loss mse", "--learning_rate", "1e-9", "1e-3", "--seeds", "42", "7")
    assert len(trainers) == 4 and "1e-9" in trainers[2]
    assert chosen[1] in trainers[3] and all("+-" in cell for cell in chosen[2:])
    with pytest.raises(SystemExit, match="holds runs with other options"):
        table("--vary", "--loss mse", "--steps", "3")


def test_a_sentence_without_words():
    assert comparison.without_words("Hello") == "Hello"
    sentence = "a b c d e f g h i j k"
    left = comparison.without_words(sentence)
    assert len(left.split()) == 9 and left == comparison.without_words(sentence)
    assert sorted(left.split()) == left.split()
