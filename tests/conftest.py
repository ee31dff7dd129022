"""Tiny models and pairs that the tests make for themselves."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

ROOT = Path(__file__).parent.parent
DATA = ROOT / os.environ.get("DATA", "data")
SAMPLES = ROOT / "samples"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


import train_distill  # noqa: E402
from build_pairs import build_parser as pairs_parser  # noqa: E402
from build_pairs import main as build_pairs  # noqa: E402
from build_student import build_parser as student_parser  # noqa: E402
from distill import ranks  # noqa: E402
from distill.command import run  # noqa: E402
from distill.encoder.sentence_encoder import SentenceEncoder  # noqa: E402
from distill.training import checkpoints  # noqa: E402
from distill.training.watching import OF_THE_MACHINE  # noqa: E402

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real corpora are not at DATA")


def tiny_encoder(width: int = 32, seed: int = 0, transformer=None, **settings) -> SentenceEncoder:
    """A random BERT of two layers that reads words, then letters, of the samples; no dropout."""
    torch.manual_seed(seed)
    rows = [json.loads(line) for line in (SAMPLES / "talks.jsonl").open(encoding="utf-8")][:200]
    text = " ".join(sentence for row in rows for sentence in row["translations"]["translation"]).lower()
    letters = sorted(set(text) - {" "})
    vocabulary = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *sorted(text.split())])
    wordpiece = models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(wordpiece)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    defaults = {"pooling": "mean", "dense": nn.Sequential(), "normalize": False, "max_seq_length": 32}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    return SentenceEncoder(transformer or BertModel(config), fast, **(defaults | settings)).eval()


def saved(encoder: SentenceEncoder, folder: Path) -> str:
    folder.mkdir()
    encoder.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> str:
    """A folder that ends in Normalize, as the demo's teacher does."""
    return saved(tiny_encoder(seed=1, normalize=True), tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> str:
    return saved(tiny_encoder(seed=2), tmp_path_factory.mktemp("student") / "student")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> str:
    """200 rows of the samples in three target languages."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = (SAMPLES / "talks.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = folder / "pairs"
    command = f"--corpus {folder}/talks.jsonl --target_languages it de ar --dev_fraction 0.1 --output_dir {output}"
    build_pairs(pairs_parser().parse_args(command.split()))
    return str(output)


def assert_the_readme_names_its_command(folder: Path) -> None:
    """The command in a student's README.md, parsed, gives the arguments that it was made with."""
    text = (folder / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    command = next(line.split(maxsplit=2)[2] for line in text.splitlines() if "python build_student" in line)
    args = student_parser().parse_args(shlex.split(command))
    made_with = json.loads((folder / "args.json").read_text(encoding="utf-8"))
    assert vars(args) == {name: value for name, value in made_with.items() if name not in ("files", "kind")}


@pytest.fixture(autouse=True)
def fresh_process():
    """What belongs to a process, accelerate's state and that of signals; each test starts without."""
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    ranks.known.signal, ranks.known.mistake, ranks.known.stopping = 0, None, False
    handlers = {number: signal.getsignal(number) for number in ranks.SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def in_bf16(monkeypatch):
    """As launched with --mixed_precision bf16 on a CPU that has it; torch computes it on any, if slowly."""
    has = torch.cpu.get_capabilities()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**has, "avx512_bf16": True})

    def launched() -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        AcceleratorState._reset_state(True)

    return launched


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
STOPPED = os.EX_TEMPFAIL
# Most tests compare exact numbers: in fp32, which a CPU without bf16 has too
CONFIGS = {
    processes: (f"accelerate_configs/{name}.yaml", "--mixed_precision", "no")
    for processes, name in ((1, "cpu"), (2, "multi_cpu"))
}


def script(name: str, *arguments: str, processes: int = 0, **variables: str) -> subprocess.CompletedProcess:
    """Run a script as users do: by python, or through `accelerate launch` on 1 or 2 CPU processes."""
    launcher = [sys.executable, name]
    if processes:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", *CONFIGS[processes], name]
    return subprocess.run(
        [*launcher, *arguments], cwd=ROOT, env=ENVIRONMENT | variables, text=True, capture_output=True, timeout=300
    )


# ---------------------------------------------------------------- runs that are cut and go on


def launch(program: str, *options: str, processes: int = 2, config: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Run a script by launch.py: its exit code, stdout and stderr.

    `config`: a configuration file, and more options for the launcher.
    """
    command = [sys.executable, "launch.py", "--config_file", *(config or CONFIGS[processes]), program, *options]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def train(*options: str) -> int:
    """Run the trainer in this process; its exit code."""
    ranks.known.signal = 0
    handlers = {number: signal.getsignal(number) for number in ranks.SIGNALS}
    try:
        with ranks.listening():
            run(train_distill.main, train_distill.build_parser().parse_args(options))
    except SystemExit as end:
        return end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def folders(folder: Path) -> tuple[str, ...]:
    """Folders of its own for a run, which then finds no labels."""
    return ("--output_dir", f"{folder}/run", "--cache_dir", f"{folder}/cache")


def metrics(folder: Path) -> list[dict]:
    """metrics.jsonl but for what the machine decides."""
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in lines]


def checkpoint_steps(folder: Path) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder / "run")]


# The trainer with a fault on one rank, in the given call of a function. Other ranks than the first would get other dev
# scores, as on other machines: what scores decide is decided by one.
FAULTY = """
import importlib, os, signal, sys
from distill.training import watching
from benchmarks.kill_and_resume import acting_in, owner_of
from distill.command import run

rank, fault, place, call, *options = sys.argv[1:]

def error():
    raise RuntimeError("a fault")

if os.environ.get("RANK", "0") != "0":
    watching.translation_accuracy = lambda hits: {"mean_accuracy": -2.0}
if os.environ.get("RANK", "0") == rank:
    owner, name = owner_of(place)
    action = error if fault == "error" else lambda: signal.raise_signal(int(fault))
    setattr(owner, name, acting_in(int(call), getattr(owner, name), action))
trainer = importlib.import_module(os.environ.get("TRAINER", "train_distill"))
with trainer.listening():
    run(trainer.record(trainer.main), trainer.build_parser().parse_args(options))
"""


@pytest.fixture(scope="session")
def faulty(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("faulty") / "faulty.py"
    path.write_text(FAULTY)
    return str(path)
