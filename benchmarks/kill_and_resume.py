"""Kill the training with SIGKILL at random moments, resume it, compare with an uninterrupted run; prints the count.

    python benchmarks/kill_and_resume.py --kills 20 --processes 1
    python benchmarks/kill_and_resume.py --kills 20 --processes 2
    python benchmarks/kill_and_resume.py --trainer train_bridge.py --kills 20 --processes 2

A random model of two layers with dropout on a part of samples/, 30 steps. An uninterrupted run is timed; then each
run is killed once, in label computation, a step, a save and an evaluation by turns: in a random call of the function
that does it, after a random part of the time that the call took. In place of labels train_bridge.py has hard negatives,
which it finds anew twice while it trains. A run is resumed from its latest checkpoint, or from none, and its weights,
optimizer, random states, best student and metrics must equal those of the uninterrupted run, bit for bit. Of several
processes, by turns one is killed, and all.
"""

import argparse
import itertools
import json
import math
import os
import pkgutil
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

# OpenMP reads its number of threads when torch is loaded.
os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))
import build_pairs
import train_bridge
import train_distill
from distill.command import run
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.mining import negatives
from distill.ranks import listening
from distill.training import teachers, tokens
from distill.training.watching import OF_THE_MACHINE

ROOT = Path(__file__).parent.parent


class Trainer(NamedTuple):
    """What is killed, and where: the function that does what each place is called by."""

    script: ModuleType
    places: dict[str, str]
    options: str  # beside those of both


SAVE = "distill.training.course.save_checkpoint"
TRAINERS = {
    "train_distill.py": Trainer(
        train_distill,
        {
            "labels": "distill.training.teachers.fill",
            "step": "train_distill.distillation_loss",
            "save": SAVE,
            "evaluation": "train_distill.evaluate",
        },
        "--teacher_model_name_or_path {folder}/teacher",
    ),
    "train_bridge.py": Trainer(
        train_bridge,
        {
            "negatives": "distill.mining.negatives.fill",
            "step": "train_bridge.Ranking.errors",
            "save": SAVE,
            "evaluation": "train_bridge.evaluate",
        },
        "--hard_negatives 2 --relative_margin 0 --refresh_negatives 11",
    ),
}
OPTIONS = (
    "--max_train_steps 30 --checkpointing_steps 5 --eval_steps 7 --logging_steps 4 --learning_rate 1e-3 --dropout 0.1"
)
CHUNK = 16  # rows computed at a time, in place of thousands: label computation is to have parts


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", choices=TRAINERS, default="train_distill.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, choices=[1, 2, 3], default=1)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    return parser


# ---------------------------------------------------------------- faults in a given call of a function


def owner_of(place: str) -> tuple[object, str]:
    """'package.module.Class.function' as the module or class, and the function's name."""
    owner, _, name = place.rpartition(".")
    return pkgutil.resolve_name(owner), name


def acting_in(call: int, function: Callable, action: Callable) -> Callable:
    """`function`, but that `action()` is done at the start of its given call (1: the first)."""
    calls = itertools.count(1)

    def wrapped(*args, **kwargs):
        if next(calls) == call:
            action()
        return function(*args, **kwargs)

    return wrapped


def timed(function: Callable, seconds: list[float]) -> Callable:
    """`function`, but that the seconds that each call takes are added to a list."""

    def wrapped(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    return wrapped


# ---------------------------------------------------------------- the run that is killed


def prepare(folder: Path) -> None:
    """Pairs, a teacher and a student."""
    lines = (ROOT / "samples/talks.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = f"--corpus {folder}/talks.jsonl --target_languages it de --dev_fraction 0.1 --output_dir {folder}/pairs"
    build_pairs.main(build_pairs.build_parser().parse_args(command.split()))
    text = " ".join(sentence for line in lines for sentence in json.loads(line)["translations"]["translation"])
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(text.split()))])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        transformer = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes))
        (folder / name).mkdir()
        SentenceEncoder(transformer, fast, "mean", torch.nn.Sequential(), False, 32).save(folder / name)


def train(trainer: Trainer, folder: Path, name: str, more: list[str]) -> None:
    """The trainer, with every file that it writes in folder/name."""
    given = ["--pairs_dir", f"{folder}/pairs", "--cache_dir", f"{folder}/{name}/cache"]
    given += ["--student_model_name_or_path", f"{folder}/student", *trainer.options.format(folder=folder).split()]
    given += ["--output_dir", f"{folder}/{name}/run", *OPTIONS.split(), *more]
    for room in (teachers, tokens, negatives):
        room.fill = lambda *args, fill=room.fill: fill(*args[:5], CHUNK, *args[6:])
    with listening():
        run(trainer.script.main, trainer.script.build_parser().parse_args(given))


def fork(task: Callable, log: Path, variables: dict[str, str], group: int) -> int:
    """A process for `task`, of a process group (0: a new one); to import torch anew would take seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ |= variables
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1), os.dup2(file, 2)
            task()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.setpgid(child, group)
    return child


def processes(tasks: list[Callable], log: Path) -> list[int]:
    """Exit codes of one task for each rank of a run, -9 for one that was killed.

    As a launcher does, it gives the others half a minute to follow the first that fails, and kills them then.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(tasks))}
    running = []
    for rank, task in enumerate(tasks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} | world if len(tasks) > 1 else {}
        running.append(fork(task, log, own, running[0] if running else 0))
    codes, failed = dict.fromkeys(running), math.inf
    while None in codes.values():
        for child in [child for child, code in codes.items() if code is None]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                failed = min(failed, time.monotonic() if codes[child] else math.inf)
            elif time.monotonic() > failed + 30:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return list(codes.values())


# ---------------------------------------------------------------- kills


def measured(trainer: Trainer, folder: Path, name: str, rank: int) -> None:
    """An uninterrupted run; rank 0 writes down how long each call at the places took."""
    seconds = {place: [] for place in trainer.places}
    for place, path in trainer.places.items():
        owner, function = owner_of(path)
        setattr(owner, function, timed(getattr(owner, function), seconds[place]))
    train(trainer, folder, name, [])
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))


def killed(trainer: Trainer, folder: Path, name: str, place: str, call: int, delay: float, kill: Callable) -> None:
    owner, function = owner_of(trainer.places[place])
    timer = threading.Timer(delay, kill)
    setattr(owner, function, acting_in(call, getattr(owner, function), timer.start))
    train(trainer, folder, name, [])


def outcome(run_folder: Path) -> dict:
    """What must be equal: hashes of the last checkpoint's files, the best student's bytes, metrics but for speeds."""
    last = run_folder / "checkpoint-30"
    manifest = json.loads((last / "manifest.json").read_text())
    metrics = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": manifest,
        "student": (run_folder / "student/model.safetensors").read_bytes(),
        "metrics": [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in metrics],
    }


def one_kill(
    trainer: Trainer, folder: Path, number: int, world: int, expected: dict, seconds: dict, draw: random.Random
) -> bool:
    """Kill a run once and resume it; prints a line. True when it ended as expected."""
    place = list(seconds)[number % len(seconds)]
    name, codes = f"kill-{number}", [0]
    while -signal.SIGKILL not in codes:  # drawn again where the run was faster than the moment
        attempt = f"{name}-{draw.random()}"
        call = draw.randrange(len(seconds[place]))
        delay = draw.random() * seconds[place][call]
        victim, alone = draw.randrange(world), world > 1 and number // len(seconds) % 2 == 0
        kill = signal.raise_signal if alone else partial(os.killpg, 0)  # 0: the group of the process itself
        tasks = [partial(train, trainer, folder, attempt, [])] * world
        tasks[victim] = partial(killed, trainer, folder, attempt, place, call + 1, delay, partial(kill, signal.SIGKILL))
        codes = processes(tasks, folder / f"{attempt}.log")
    at = max((int(path.name.split("-")[1]) for path in (folder / attempt / "run").glob("checkpoint-*")), default=0)
    tasks = [partial(train, trainer, folder, attempt, ["--resume_from_checkpoint", "latest"])] * world
    log = folder / f"{attempt}-resumed.log"
    codes = processes(tasks, log)
    whom = "" if world == 1 else f", rank {victim}" if alone else ", all ranks"
    equal = codes == [0] * world and outcome(folder / attempt / "run") == expected
    print(
        f"{number + 1:3} {place + whom:<20} call {call + 1:2} +{1000 * delay:4.0f} ms, resumed at step {at:2}: "
        f"{'equal' if equal else 'NOT EQUAL'}",
        flush=True,
    )
    if not equal:
        print(log.read_text()[-3000:])
    return equal


def main(args: argparse.Namespace) -> int:
    start, draw, trainer = time.monotonic(), random.Random(args.seed), TRAINERS[args.trainer]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        processes([partial(prepare, folder)], folder / "prepare.log")
        tasks = [partial(measured, trainer, folder, "whole", rank) for rank in range(args.processes)]
        codes = processes(tasks, folder / "whole.log")
        assert codes == [0] * args.processes, (folder / "whole.log").read_text()
        expected = outcome(folder / "whole/run")
        seconds = json.loads((folder / "seconds.json").read_text())
        survived = sum(
            one_kill(trainer, folder, number, args.processes, expected, seconds, draw) for number in range(args.kills)
        )
    print(f"{args.processes} process(es), {time.monotonic() - start:.0f} s")
    print(f"{survived} of {args.kills} kills survived with equal weights")
    return 0 if survived == args.kills else 1


if __name__ == "__main__":
    sys.exit(main(build_parser().parse_args()))
