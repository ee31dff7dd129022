"""The rules of the house that a machine can check: options are read, written commands can be run."""

import argparse
import ast
import graphlib
import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = ["build_pairs", "build_student", "train_distill", "train_bridge", "eval_sts", "mine_pairs"]


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Names of all options, those of subcommands too."""
    names = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names.add(action.dest)
            for subparser in action.choices.values():
                names |= options(subparser)
        elif action.dest != "help":
            names.add(action.dest)
    return names


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_is_read(name):
    script = (ROOT / f"{name}.py").read_text().replace("args.json", "")
    read = set(re.findall(r"\bargs\.(\w+)", script))
    assert options(importlib.import_module(name).build_parser()) == read - {"command_line"}


@pytest.mark.parametrize("name", [*SCRIPTS, "build_student audit", "build_student trim", "build_student graft"])
def test_help_shows_defaults_but_no_none(name, capsys):
    name, *command = name.split()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).build_parser().parse_args([*command, "--help"])
    assert end.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: None)" not in printed
    assert "(default: " in printed or name == "eval_sts" or (name == "build_student" and not command)


@pytest.mark.parametrize(
    "command, option, lowest",
    [
        ("build_pairs", "--max_translations", 1),
        ("build_student audit", "--max_sentences_per_language", 1),
        ("train_distill", "--eval_steps", 1),
        ("train_distill", "--freeze_layers", 0),
        ("eval_sts", "--bootstrap_samples", 1),
        ("eval_sts", "--seed", 0),
    ],
)
def test_a_number_out_of_range_is_refused(capsys, command, option, lowest):
    name, *command = command.split()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).build_parser().parse_args([*command, option, str(lowest - 1)])
    assert end.value.code == 2
    assert f"{option}: {lowest - 1} is not {lowest} or more; --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, option, highest",
    [
        ("build_pairs", "--seed", 2**31 - 1),
        ("train_distill", "--seed", 2**31 - 1),
        ("train_distill", "--batch_size", 2**31 - 1),
        ("eval_sts", "--bootstrap_samples", 100_000),
        ("build_student graft", "--vocab_size", 10**7),
    ],
)
def test_a_number_too_large_is_refused(capsys, command, option, highest):
    name, *command = command.split()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).build_parser().parse_args([*command, option, str(highest + 1)])
    assert end.value.code == 2
    assert f"{option}: {highest + 1} is more than {highest}; --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value",
    [
        *(("--language_temperature", "1e-300"), ("--num_train_epochs", "1e308")),
        *(("--learning_rate", value) for value in ("-1", "0", "nan", "inf")),
        *(("--adam_epsilon", "-1"), ("--dropout", "2"), ("--language_temperature", "0"), ("--warmup_ratio", "2")),
        *(("--weight_decay", "-1"), ("--max_grad_norm", "-1"), ("--num_train_epochs", "0")),
    ],
)
def test_a_setting_of_training_out_of_range_is_refused(capsys, option, value):
    with pytest.raises(SystemExit) as end:
        importlib.import_module("train_distill").build_parser().parse_args([option, value])
    assert end.value.code == 2
    assert f"argument {option}: {value} is no number " in capsys.readouterr().err


def commands() -> list[tuple[str, str]]:
    """Every command for one of the scripts in docstrings, README and shell scripts, with where it stands."""
    found = []
    patterns = ("*.py", "*.md", "docs/*.md", "runs/*.sh", "runs/*.py", "benchmarks/*.py", "benchmarks/*.md")
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        text = text.replace("\\\n", " ").replace('"$seed"', "1")  # of a loop over seeds
        found += [
            (path.name, line.strip())
            for line in text.splitlines()
            if re.search(r"\w+\.py ((audit|trim|graft) )?--\w", line)
        ]
    return found


@pytest.mark.parametrize("place, command", commands())
def test_written_commands_parse(place, command):
    words = shlex.split(command, comments=True)
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[at]).is_file()
    importlib.import_module(words[at].removesuffix(".py").replace("/", ".")).build_parser().parse_args(words[at + 1 :])


# Each may import from those before it, and from the rooms that stand beside the wings.
WINGS = ["pairs", "encoder", "students", "scoring", "training", "mining"]
ROOMS = [path for path in ROOT.glob("distill/**/*.py") if path.stem != "__init__"]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def wing(module: str) -> int:
    """How high a module of the package stands: -1 for the rooms beside the wings."""
    return WINGS.index(module.split(".")[1]) if module.count(".") > 1 else -1


def test_scripts_and_package_do_not_import_the_peer():
    for path in [*ROOT.glob("*.py"), *ROOMS]:
        assert not any(name.startswith("sentence_transformers") for name in imports(path)), path.name


def test_a_room_imports_from_its_own_wing_or_below_and_no_script():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOMS}
    assert {name.split(".")[1] for name in modules if name.count(".") > 1} == set(WINGS)
    needs = {name: imports(path) & set(modules) for name, path in modules.items()}
    for name, path in modules.items():
        assert not imports(path) & scripts, f"{name} imports a script"
        above = [other for other in needs[name] if wing(other) > wing(name)]
        assert not above, f"{name} imports {above} from a wing above"
    list(graphlib.TopologicalSorter(needs).static_order())  # CycleError where they go in a circle


def test_rooms_and_scripts_are_short():
    for path in [*ROOT.glob("*.py"), *ROOMS]:
        assert len(path.read_text().splitlines()) <= 400, path.name
    body = ast.parse((ROOT / "train_distill.py").read_text()).body
    train = next(node for node in body if getattr(node, "name", "") == "train")
    [loop] = [node for node in train.body if isinstance(node, ast.While)]
    assert loop.end_lineno - loop.lineno + 1 <= 40, "the trainer's loop stands in train and can be read at once"


def test_requirements_are_pinned_exactly():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            assert line.startswith(("#", "-r ")) or re.match(r"[\w-]+==[\w.]+(;|$)", line), line
