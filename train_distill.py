"""Teach a multilingual student the teacher's vectors (Reimers & Gurevych 2020, arXiv 2004.09813).

    accelerate launch train_distill.py --pairs_dir pairs/ --output_dir run/ \\
        --teacher_model_name_or_path sentence-transformers/paraphrase-distilroberta-base-v2 \\
        --student_model_name_or_path xlm-roberta-base --sts_dev 'stsb-{en,it}-dev.csv'

For a pair (source, target) the label is the teacher's vector of the source sentence; the loss is the mean squared
error of the student's vectors of both sentences to it. `run/student/` is a sentence-transformers folder.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import matplotlib
import numpy as np
import torch
import xxhash
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from distill_utils import HelpFormatter, UserError, load_pairs, read_json, replaced_folder, run, write_json
from encoder import SentenceEncoder, encode_on_all_ranks, length_sorted_batches, pad, tokenize
from metrics import read_sts, sts_scores, translation_accuracy

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    # fmt: off
    data = parser.add_argument_group("data and models")
    data.add_argument("--pairs_dir", required=True, help="folder of build_pairs.py")
    data.add_argument("--teacher_model_name_or_path", required=True, help="sentence-transformers folder or hub id")
    data.add_argument("--student_model_name_or_path", required=True, help="multilingual model, folder or hub id")
    data.add_argument("--output_dir", required=True, help="folder for metrics, checkpoints and the student")
    data.add_argument("--cache_dir", help="folder for labels and token ids (if not given: cache/ in the pairs folder)")
    data.add_argument("--max_seq_length", type=int, default=128, help="tokens the student reads of a sentence")
    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=int, default=64, help="pairs per optimizer step, over all processes")
    training.add_argument("--translations_per_source", type=int, default=2, help="most of one source in a step")
    training.add_argument("--max_tokens_per_batch", type=int, help="padded tokens a forward takes (CPU 512, GPU 16384)")
    training.add_argument("--num_train_epochs", type=float, default=1, help="passes over the pairs")
    training.add_argument("--max_train_steps", type=int, help="optimizer steps, instead of epochs")
    training.add_argument("--learning_rate", type=float, default=2e-5, help="peak of the schedule")
    training.add_argument("--warmup_ratio", type=float, default=0.1, help="share of steps with rising learning rate")
    training.add_argument("--adam_epsilon", type=float, default=1e-6, help="epsilon of AdamW")
    training.add_argument("--weight_decay", type=float, default=0.01, help="of AdamW, not on biases and norms")
    training.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm")
    training.add_argument("--dropout", type=float, help="rate while training (if not given: the student's own)")
    training.add_argument("--seed", type=int, default=42, help="decides the order of the pairs and dropout")
    watching = parser.add_argument_group("evaluation and checkpoints")
    watching.add_argument("--sts_dev", metavar="SPEC", help="STS files whose mean Spearman chooses the best student")
    watching.add_argument("--eval_steps", type=int, default=500, help="steps between dev evaluations")
    watching.add_argument("--logging_steps", type=int, default=10, help="steps between lines of metrics.jsonl")
    watching.add_argument("--checkpointing_steps", type=int, default=1000, help="steps between checkpoints")
    watching.add_argument("--checkpoints_total_limit", type=int, default=2, help="newest checkpoints to keep")
    watching.add_argument("--resume_from_checkpoint", metavar="latest|PATH", help="latest: if there is one")
    # fmt: on
    return parser


# ---------------------------------------------------------------- data: token ids, labels, steps


def fingerprint(*parts) -> str:
    """A name for content: of byte buffers as they are, of anything else as its text."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part if isinstance(part, bytes | memoryview | np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def tokenizer_text(tokenizer) -> str:
    """A tokenizer as JSON, without the truncation and padding that its last call left behind."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(content | {"truncation": None, "padding": None})


def file_bytes(dataset) -> list[np.ndarray]:
    """The Arrow files of a pairs split, memory-mapped, to fingerprint."""
    return [np.memmap(file["filename"], mode="r") for file in dataset.cache_files]


def build_on_all_ranks(
    folder: Path,
    rows: int,
    compute: Callable[[int, int], dict[str, np.ndarray]],
    accelerator: Accelerator,
    description: str,
    chunk: int = 2048,
) -> None:
    """Fill `folder` with the arrays that `compute(start, stop)` gives for chunks of rows, in order, as NAME.bin.

    Every rank computes one contiguous share into files of its own, which rank 0 joins; the folder appears by
    rename, so it is whole or absent, and a later run finds it.
    """
    if not folder.is_dir():
        parts = folder.with_suffix(".tmp")
        if accelerator.is_main_process:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
        accelerator.wait_for_everyone()
        rank, world = accelerator.process_index, accelerator.num_processes
        first, last = rows * rank // world, rows * (rank + 1) // world
        bar = tqdm(total=last - first, desc=description, unit=" rows", disable=not accelerator.is_main_process)
        for start in range(first, last, chunk):
            stop = min(start + chunk, last)
            for name, array in compute(start, stop).items():
                with open(parts / f"{name}.{rank:05d}", "ab") as file:
                    array.tofile(file)
            bar.update(stop - start)
        bar.close()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for part in sorted(parts.glob("*.[0-9]*")):
                with open(part.with_suffix(".bin"), "ab") as whole, open(part, "rb") as file:
                    shutil.copyfileobj(file, whole)
                part.unlink()
            parts.rename(folder)
        accelerator.wait_for_everyone()


class TokenizedPairs:
    """A pairs split as token ids, memory-mapped: sentences in row order, each source before its translations."""

    def __init__(self, dataset, tokenizer, max_seq_length: int, cache_dir: Path, accelerator: Accelerator):
        table = dataset.with_format("arrow")

        def token_ids(start: int, stop: int) -> dict[str, np.ndarray]:
            rows = table[start:stop].to_pylist()
            sentences = [s for row in rows for s in (row["source"], *(t["sentence"] for t in row["targets"]))]
            ids = tokenize(tokenizer, sentences, max_seq_length)
            return {
                "ids": np.concatenate(ids).astype(np.int32),
                "lengths": np.array([len(sentence) for sentence in ids], dtype=np.int32),
                "targets": np.array([len(row["targets"]) for row in rows], dtype=np.int32),
            }

        self.fingerprint = fingerprint(*file_bytes(dataset), tokenizer_text(tokenizer), max_seq_length)
        folder = cache_dir / f"tokens-{self.fingerprint}"
        build_on_all_ranks(folder, len(dataset), token_ids, accelerator, "token ids")
        self.lengths = np.fromfile(folder / "lengths.bin", dtype=np.int32)
        self.ids = np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")
        self.ends = np.cumsum(self.lengths, dtype=np.int64)
        # A row's sentences stand together: its source first, then its targets.
        targets = np.fromfile(folder / "targets.bin", dtype=np.int32)
        row = np.repeat(np.arange(len(dataset)), targets + 1)
        self.source_of_row = np.cumsum(targets + 1) - targets - 1
        self.target_of_pair = np.delete(np.arange(len(row)), self.source_of_row)
        self.row_of_pair = row[self.target_of_pair]

    def __getitem__(self, sentence: int) -> np.ndarray:
        """Token ids (length,) of a sentence."""
        return self.ids[self.ends[sentence] - self.lengths[sentence] : self.ends[sentence]]


def teacher_labels(teacher: SentenceEncoder, dataset, cache_dir: Path, accelerator: Accelerator) -> np.ndarray:
    """The teacher's vector of every source sentence, (rows, dimension) float32, computed once and memory-mapped."""
    weights = [weight.detach().cpu().numpy().reshape(-1).view(np.uint8) for weight in teacher.state_dict().values()]
    settings = (teacher.pooling, teacher.normalize, teacher.max_seq_length)
    name = fingerprint(*file_bytes(dataset), *weights, tokenizer_text(teacher.tokenizer), settings)
    folder = cache_dir / f"labels-{name}"

    def labels(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"labels": teacher.encode(dataset[start:stop]["source"])}

    build_on_all_ranks(folder, len(dataset), labels, accelerator, "teacher's labels")
    return np.memmap(folder / "labels.bin", dtype=np.float32, mode="r", shape=(len(dataset), teacher.dimension))


def epoch_order(row_of_pair: np.ndarray, translations_per_source: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch takes its pairs: a pure function of its arguments.

    A row's pairs are dealt at random into groups of at most `translations_per_source`; groups are shuffled and
    stay together, so that the source sentence is encoded once for its group.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(row_of_pair))
    order = order[np.argsort(row_of_pair[order], kind="stable")]
    rows = row_of_pair[order]
    position_in_row = np.arange(len(rows)) - np.searchsorted(rows, rows)
    group = np.cumsum(position_in_row % translations_per_source == 0) - 1
    return order[np.argsort(random.permutation(group[-1] + 1)[group], kind="stable")]


class Steps:
    """Which pairs form which optimizer step: a pure function of (seed, epoch, step), whatever the processes."""

    def __init__(self, pairs: TokenizedPairs, batch_size: int, translations_per_source: int, seed: int):
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed
        self.translations_per_source = translations_per_source
        self.per_epoch = -(-len(pairs.row_of_pair) // batch_size)
        self.epoch, self.order = None, None

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The sentences of a step, the label row and the weight of each, and the number of pairs.

        A source sentence stands once for all of its pairs in the step, with their number as its weight.
        """
        epoch, step = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = epoch_order(self.pairs.row_of_pair, self.translations_per_source, self.seed, epoch)
        pairs = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        rows = self.pairs.row_of_pair[pairs]
        source_rows, weights = np.unique(rows, return_counts=True)
        sentences = np.concatenate([self.pairs.source_of_row[source_rows], self.pairs.target_of_pair[pairs]])
        label_rows = np.concatenate([source_rows, rows])
        return sentences, label_rows, np.concatenate([weights, np.ones(len(pairs))]), len(pairs)


def micro_batches(sentences, label_rows, weights, pairs, labels, max_tokens, pad_token_id, accelerator) -> list[tuple]:
    """This rank's part of a step as (input, labels, weights) of at most `max_tokens` padded tokens each.

    Ranks are dealt sentences in order of length, so that they finish together. A rank that would get none takes
    one with weight 0: it must take part in the exchange of gradients.
    """
    lengths = pairs.lengths[sentences]
    mine = np.argsort(-lengths, kind="stable")[accelerator.process_index :: accelerator.num_processes]
    if len(mine) == 0:
        mine, weights = np.zeros(1, dtype=int), np.zeros_like(weights)
    return [
        (
            pad([pairs[sentence] for sentence in sentences[part]], pad_token_id, accelerator.device),
            torch.from_numpy(labels[label_rows[part]]).to(accelerator.device, non_blocking=True),
            torch.from_numpy(weights[part]).to(accelerator.device, torch.float32, non_blocking=True),
        )
        for part in (mine[batch] for batch in length_sorted_batches(lengths[mine], max_tokens))
    ]


def distillation_loss(vectors: Tensor, labels: Tensor, weights: Tensor, pairs: int) -> Tensor:
    """A micro-batch's share of the step's loss: the mean squared error over both sentences of every pair.

    vectors, labels: (batch, dimension); weights: (batch,), the number of the step's pairs that a sentence is in.
    Summed over a step's micro-batches it is equation 1 of the article, averaged over sentences and dimensions.
    """
    return (weights * (vectors - labels).square().mean(1)).sum() / (2 * pairs)


# ---------------------------------------------------------------- models, evaluation, checkpoints


def load_models(args: argparse.Namespace) -> tuple[SentenceEncoder, SentenceEncoder]:
    """Teacher and student; UserError unless their vectors have the same width."""
    teacher = SentenceEncoder.from_pretrained(args.teacher_model_name_or_path)
    student = SentenceEncoder.from_pretrained(args.student_model_name_or_path, args.max_seq_length)
    if teacher.dimension != student.dimension:
        raise UserError(
            f"{args.teacher_model_name_or_path} gives vectors of {teacher.dimension} dimensions and "
            f"{args.student_model_name_or_path} of {student.dimension}: choose models of equal width"
        )
    return teacher, student


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases and norms, which have one dimension, do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def evaluate(student: SentenceEncoder, dev, dev_labels: np.ndarray, sts, accelerator: Accelerator) -> dict:
    """Dev scores: translation accuracy and negative MSE per language, STS where given, and the `score` that chooses."""
    pairs = {}
    for row, (source, targets) in enumerate(zip(dev["source"], dev["targets"], strict=True)):
        for target in targets:
            pairs.setdefault(target["language"], []).append((row, source, target["sentence"]))
    sentences = {sentence for listed in pairs.values() for _, *both in listed for sentence in both}
    if sts is not None:
        sentences.update(sentence for columns in sts[0].values() for column in columns for sentence in column)
    vector = encode_on_all_ranks(student, sentences, accelerator)
    result = {"bitext": {}}
    for language, listed in sorted(pairs.items()):
        rows, sources, targets = zip(*listed, strict=True)
        source, target = (np.stack([vector[s] for s in side]) for side in (sources, targets))
        # As sentence-transformers' MSEEvaluator: times 100, negated, so that higher is better.
        negative_mse = -100 * float(np.square(dev_labels[list(rows)] - target).mean())
        result["bitext"][language] = translation_accuracy(source, target) | {"negative_mse": negative_mse}
    result["mean_accuracy"] = float(np.mean([scores["mean_accuracy"] for scores in result["bitext"].values()]))
    result["score"] = result["mean_accuracy"]
    if sts is not None:
        result["sts"] = {name: scores["spearman_cosine"] for name, scores in sts_scores(*sts, vector).items()}
        result["score"] = float(np.mean(list(result["sts"].values())))
    return result


def plot_curves(metrics: list[dict], path: Path) -> None:
    """Loss and dev score over steps, as PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    steps = [line for line in metrics if "loss" in line]
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps])
    left.set(title="Training loss (MSE)", xlabel="step", ylim=(0, None))
    evaluations = [line for line in metrics if "score" in line]
    at = [line["step"] for line in evaluations]
    for name in evaluations[-1].get("sts", {}):
        right.plot(at, [line["sts"][name] for line in evaluations], marker="o", label=f"STS {name}")
    accuracy = [line["mean_accuracy"] for line in evaluations]
    right.plot(at, accuracy, "k--", marker="o", label="translation accuracy")
    right.set(title="Dev scores", xlabel="step", ylim=(min(0, *right.get_ylim()), 1))
    figure.legend(loc="outside right center", fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


class MetricsFile:
    """metrics.jsonl, one line per logging step or evaluation; on resume cut back to the checkpoint's step."""

    def __init__(self, path: Path, step: int, enabled: bool):
        self.path, self.enabled, self.lines = path, enabled, []
        if enabled and step > 0 and path.exists():
            self.lines = [line for line in map(json.loads, path.read_text().splitlines()) if line["step"] <= step]
        if enabled:
            path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def write(self, line: dict) -> None:
        if self.enabled:
            self.lines.append(line)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(output_dir.glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(accelerator: Accelerator, output_dir: Path, state: dict, limit: int) -> None:
    """Write checkpoint-{step}/ under a temporary name, rename it, then delete the oldest beyond `limit`."""
    final = output_dir / f"checkpoint-{state['step']}"
    temporary = output_dir / f".{final.name}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(temporary / "trainer_state.json", state)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in checkpoints(output_dir)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def find_checkpoint(resume_from: str | None, output_dir: Path) -> Path | None:
    """The checkpoint folder to resume from, or None to start at step 0."""
    if resume_from is None:
        if (output_dir / "args.json").exists():
            raise UserError(f"{output_dir} holds a run: add --resume_from_checkpoint latest or name another folder")
        return None
    if resume_from == "latest":
        return checkpoints(output_dir)[-1] if checkpoints(output_dir) else None
    if not (Path(resume_from) / "trainer_state.json").is_file():
        raise UserError(f"{resume_from} is no checkpoint: it has no trainer_state.json")
    return Path(resume_from)


# ---------------------------------------------------------------- the run


def main(args: argparse.Namespace) -> None:
    # Accelerator and logging
    accelerator = Accelerator()
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise UserError("the launcher started several separate runs: on CPU set ACCELERATE_USE_CPU=true")
    set_seed(args.seed, device_specific=True)
    output_dir = Path(args.output_dir)
    cache_dir = Path(args.cache_dir or Path(args.pairs_dir) / "cache")
    say = accelerator.print
    processes, device, precision = accelerator.num_processes, accelerator.device.type, accelerator.mixed_precision
    say(f"{processes} process(es) on {device}, mixed precision: {precision}")
    if precision == "fp16" and device == "cpu":
        say("fp16 needs a GPU: this run computes in fp32")
    max_tokens = args.max_tokens_per_batch or (512 if device == "cpu" else 16384)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)

    # Data: token ids once, labels once
    dataset = load_pairs(args.pairs_dir)
    sts = read_sts(args.sts_dev) if args.sts_dev else None
    teacher, student = load_models(args)
    if teacher.normalize:
        # Unit-norm labels shrink the gradient; the article's teachers have no such layer.
        say("the teacher ends in Normalize: its labels are the vectors before that layer")
        teacher.normalize = False
    pairs = TokenizedPairs(dataset["train"], student.tokenizer, student.max_seq_length, cache_dir, accelerator)
    teacher.to(accelerator.device)
    labels = teacher_labels(teacher, dataset["train"], cache_dir, accelerator)
    dev_labels = teacher_labels(teacher, dataset["dev"], cache_dir, accelerator)
    del teacher

    # Optimizer and schedule
    steps = Steps(pairs, args.batch_size, args.translations_per_source, args.seed)
    total_steps = args.max_train_steps or round(args.num_train_epochs * steps.per_epoch)
    groups = parameter_groups(student, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, eps=args.adam_epsilon, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(args.warmup_ratio * total_steps), total_steps)
    if args.dropout is not None:
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = args.dropout
    model, optimizer = accelerator.prepare(student, optimizer)
    accelerator.register_for_checkpointing(schedule)

    # Resume
    state = {"step": 0, "best_score": -1.0, "best_step": 0}
    state["order"] = fingerprint(pairs.fingerprint, args.seed, args.batch_size, args.translations_per_source)
    if checkpoint is not None:
        saved = read_json(checkpoint / "trainer_state.json", {})
        if saved["order"] != state["order"]:
            raise UserError(f"{checkpoint} was trained on other pairs, or with another seed or batch size")
        state = saved
        accelerator.load_state(str(checkpoint))
        say(f"resumed from {checkpoint}")
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "args.json", vars(args))
    metrics = MetricsFile(output_dir / "metrics.jsonl", state["step"], accelerator.is_main_process)

    def evaluate_and_keep_best() -> None:
        scores = evaluate(student, dataset["dev"], dev_labels, sts, accelerator)
        metrics.write({"step": state["step"]} | scores)
        if state["step"] > 0 and scores["score"] > state["best_score"]:
            state.update(best_score=scores["score"], best_step=state["step"])
            if accelerator.is_main_process:
                with replaced_folder(output_dir / "student", args) as folder:
                    student.save(folder)
        if accelerator.is_main_process:
            plot_curves(metrics.lines, output_dir / "curves.png")
        bar.write(f"step {state['step']}: dev score {scores['score']:.4f}", file=sys.stderr)

    # The loop
    bar = tqdm(
        total=total_steps * args.batch_size,
        initial=state["step"] * args.batch_size,
        unit=" pairs",
        desc="training",
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    if state["step"] == 0:
        evaluate_and_keep_best()
    model.train()
    running_loss, running_pairs, since = torch.zeros((), device=accelerator.device), 0, time.perf_counter()
    while state["step"] < total_steps:
        *step, pair_count = steps[state["step"]]
        batches = micro_batches(*step, pairs, labels, max_tokens, student.tokenizer.pad_token_id, accelerator)
        for inputs, batch_labels, weights in batches:
            # Gradients are exchanged once a step, with its last micro-batch. DDP takes their mean over the ranks
            # where the step's loss is their sum.
            with nullcontext() if inputs is batches[-1][0] else accelerator.no_sync(model):
                loss = distillation_loss(model(**inputs), batch_labels, weights, pair_count)
                accelerator.backward(loss * accelerator.num_processes)
            running_loss += loss.detach()
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        state["step"] += 1
        running_pairs += pair_count
        bar.update(pair_count)
        if state["step"] % args.logging_steps == 0 or state["step"] == total_steps:
            loss = accelerator.reduce(running_loss).item() / (state["step"] % args.logging_steps or args.logging_steps)
            speed = running_pairs / (time.perf_counter() - since)
            rate = schedule.get_last_lr()[0]
            metrics.write({"step": state["step"], "loss": loss, "learning_rate": rate, "pairs_per_second": speed})
            bar.set_postfix(loss=f"{loss:.2e}")
            running_loss.zero_()
            running_pairs, since = 0, time.perf_counter()
        if state["step"] % args.eval_steps == 0 or state["step"] == total_steps:
            evaluate_and_keep_best()
            since = time.perf_counter()
        if state["step"] % args.checkpointing_steps == 0 or state["step"] == total_steps:
            save_checkpoint(accelerator, output_dir, state, args.checkpoints_total_limit)
            since = time.perf_counter()

    # Final save: student/ is already there, written when the best dev score was reached
    bar.close()
    say(f"{output_dir / 'student'}: step {state['best_step']}, dev score {state['best_score']:.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main, build_parser().parse_args())
