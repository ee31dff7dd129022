"""Teach a multilingual student the teacher's vectors (Reimers & Gurevych 2020, arXiv 2004.09813).

    accelerate launch train_distill.py --pairs_dir pairs/ --output_dir run/ \\
        --teacher_model_name_or_path sentence-transformers/paraphrase-distilroberta-base-v2 \\
        --student_model_name_or_path xlm-roberta-base --sts_dev 'stsb-{en,it}-dev.csv'

For a pair (source, target) the label is the teacher's vector of the source sentence; the loss is the mean squared
error of the student's vectors of both sentences to it. `run/student/` is a sentence-transformers folder.
"""

import argparse
import importlib.util
import math
import os
import re
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from batching import MicroBatch, Prefetched, Steps, TokenizedPairs, append_pca, micro_batches, teacher_labels
from distill_utils import HelpFormatter, UserError, load_pairs, read_json, replaced_folder, run, write_json
from encoder import SentenceEncoder, set_matmul_precision
from metrics import read_sts
from vocabulary import audit
from watching import COLLAPSED, Losses, Meter, Metrics, evaluate, plot_curves

OPTIMIZERS = {
    "adamw": lambda groups, lr, eps: torch.optim.AdamW(groups, lr=lr, eps=eps, fused=True),
    "nadam": lambda groups, lr, eps: torch.optim.NAdam(groups, lr=lr, eps=eps, decoupled_weight_decay=True),
    "radam": lambda groups, lr, eps: torch.optim.RAdam(groups, lr=lr, eps=eps, decoupled_weight_decay=True),
    "adafactor": lambda groups, lr, eps: torch.optim.Adafactor(groups, lr=lr),
    "sgd": lambda groups, lr, eps: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
}
BEST = ["spearman_cosine", "mean_accuracy"]  # of --sts_dev, of the dev split
TRACKERS = ["tensorboard", "trackio", "wandb"]
LABEL_DTYPES = {"fp32": "float32", "fp16": "float16"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    # fmt: off
    data = parser.add_argument_group("data and models")
    data.add_argument("--pairs_dir", required=True, help="folder of build_pairs.py")
    data.add_argument("--teacher_model_name_or_path", required=True, help="sentence-transformers folder or hub id")
    data.add_argument("--student_model_name_or_path", required=True, help="multilingual model, folder or hub id")
    data.add_argument("--output_dir", required=True, help="folder for metrics, checkpoints and the student")
    data.add_argument("--cache_dir", help="folder for labels and token ids (if not given: cache/ in the pairs folder)")
    widths = data.add_mutually_exclusive_group()
    widths.add_argument("--label_pca", action="store_true", help="narrow the labels to the student's width by PCA")
    widths.add_argument("--projection", action="store_true", help="train a layer up to the teacher's width")
    data.add_argument("--label_dtype", choices=LABEL_DTYPES, default="fp32", help="of labels on disk")
    data.add_argument("--max_seq_length", type=int, default=128, help="tokens the student reads of a sentence")
    data.add_argument("--allow_unknown_tokens", action="store_true", help="even above 5%% of a language's tokens")
    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=int, default=64, help="pairs per optimizer step, over all processes")
    training.add_argument("--translations_per_source", type=int, default=2, help="most of one source in a step")
    training.add_argument("--language_temperature", type=float, default=1.0, help="above 1 evens out the languages")
    training.add_argument("--max_tokens_per_batch", type=int, help="tokens a forward takes (CPU 2048, GPU 16384)")
    training.add_argument("--num_train_epochs", type=float, default=1, help="passes over the pairs")
    training.add_argument("--max_train_steps", type=int, help="optimizer steps, instead of epochs")
    training.add_argument("--learning_rate", type=float, default=2e-5, help="peak of the schedule")
    training.add_argument("--warmup_ratio", type=float, default=0.1, help="share of steps with rising learning rate")
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="as torch has them")
    training.add_argument("--adam_epsilon", type=float, default=1e-8, help="epsilon of adamw, nadam and radam")
    training.add_argument("--weight_decay", type=float, default=0.01, help="not on biases and norms")
    training.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm")
    training.add_argument("--dropout", type=float, default=0.0, help="rate while training, in place of the student's")
    training.add_argument("--seed", type=int, default=42, help="decides the order of the pairs and dropout")
    memory = parser.add_argument_group("speed and memory (precision is the launcher's: --mixed_precision)")
    memory.add_argument("--allow_tf32", action="store_true", help="fp32 matrix products in TF32, on a GPU that has it")
    memory.add_argument("--torch_compile", action="store_true", help="compile the student: for long runs on a GPU")
    memory.add_argument("--gradient_checkpointing", action="store_true", help="less memory for a third more time")
    memory.add_argument("--freeze_embeddings", action="store_true", help="the student keeps its token embeddings")
    memory.add_argument("--freeze_layers", type=int, default=0, help="first layers that the student keeps as they are")
    watching = parser.add_argument_group("evaluation and checkpoints")
    watching.add_argument("--sts_dev", metavar="SPEC", help="STS files whose mean Spearman chooses the best student")
    watching.add_argument("--metric_for_best_model", choices=BEST, help="if not given: STS, else accuracy")
    watching.add_argument("--early_stopping_patience", type=int, help="evaluations without a better score, then stop")
    watching.add_argument("--report_to", choices=TRACKERS, help="a tracker that gets what metrics.jsonl gets")
    watching.add_argument("--eval_steps", type=int, default=500, help="steps between dev evaluations")
    watching.add_argument("--logging_steps", type=int, default=10, help="steps between lines of metrics.jsonl")
    watching.add_argument("--checkpointing_steps", type=int, default=1000, help="steps between checkpoints")
    watching.add_argument("--checkpoints_total_limit", type=int, default=2, help="newest checkpoints to keep")
    watching.add_argument("--resume_from_checkpoint", metavar="latest|PATH", help="latest: if there is one")
    # fmt: on
    return parser


# ---------------------------------------------------------------- loss, models, evaluation, checkpoints


def distillation_loss(vectors: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Each sentence's squared error (batch,), averaged over dimensions, times the number of pairs it stands for.

    vectors, labels: (batch, dimension); weights: (batch,). Summed over a step's micro-batches and divided by the
    sum of the weights, two for each pair, it is equation 1 of the article, averaged over sentences and dimensions.
    """
    return weights * (vectors - labels).square().mean(1)


def add_gradients(model, batches: list[MicroBatch], pairs: int, accelerator: Accelerator) -> list[Tensor]:
    """Add the gradients of a step's loss; returns the weighted error of every sentence (batch,) by micro-batch."""
    found = []
    for batch in batches:
        # Gradients are exchanged once a step, with its last micro-batch. DDP takes their mean over the ranks where
        # the step's loss is their sum.
        with nullcontext() if batch is batches[-1] else accelerator.no_sync(model):
            errors = distillation_loss(model(**batch.inputs), batch.labels, batch.weights)
            accelerator.backward(errors.sum() / (2 * pairs) * accelerator.num_processes)
        found.append(errors.detach())
    return found


def load_models(args: argparse.Namespace) -> tuple[SentenceEncoder, SentenceEncoder]:
    """Teacher and student; UserError when nothing is to bring their vectors to the same width."""
    teacher = SentenceEncoder.from_pretrained(args.teacher_model_name_or_path)
    student = SentenceEncoder.from_pretrained(args.student_model_name_or_path, args.max_seq_length)
    if args.projection:
        linear = torch.nn.Linear(student.dimension, teacher.dimension)
        student.dense.append(torch.nn.Sequential(linear, torch.nn.Identity()))
    widths = (
        f"{args.teacher_model_name_or_path} gives vectors of {teacher.dimension} dimensions and "
        f"{args.student_model_name_or_path} of {student.dimension}"
    )
    if args.label_pca and teacher.dimension <= student.dimension:
        raise UserError(f"{widths}: --label_pca is for a teacher wider than the student, leave it out")
    if not args.label_pca and teacher.dimension != student.dimension:
        raise UserError(
            f"{widths}: choose models of equal width, or add --projection, or --label_pca for a wider teacher"
        )
    return teacher, student


def check_tokenizer(student: SentenceEncoder, dataset, pairs: TokenizedPairs, allow_unknown: bool) -> str:
    """What the student's tokenizer makes of each language, as a table, from up to 1,000 sentences of each.

    UserError when more than 5% of a language's tokens are unknown, unless `allow_unknown`.
    """
    table = {"source": audit(student.tokenizer, dataset[np.linspace(0, len(dataset) - 1, 1000).astype(int)]["source"])}
    for language, rows in zip(pairs.languages, pairs.evenly(1000), strict=True):
        listed = [target for targets in dataset[rows]["targets"] for target in targets]
        table[language] = audit(student.tokenizer, [t["sentence"] for t in listed if t["language"] == language])
    unread = [f"{name} ({row['unknown_share']:.0%})" for name, row in table.items() if row["unknown_share"] > 0.05]
    if unread and not allow_unknown:
        raise UserError(
            f"the student's tokenizer does not know {', '.join(unread)} of the tokens: choose a student that reads "
            "these languages, make one (build_student.py graft), or add --allow_unknown_tokens"
        )
    lines = [
        (name, f"{row['unknown_share']:.1%}", row["tokens_per_word"], row["tokens_per_character"])
        for name, row in table.items()
    ]
    headers = ["the student reads", "unknown", "tokens per word", "per character"]
    return tabulate(lines, headers, floatfmt=".2f", missingval="-", colalign=("left", "right", "right", "right"))


def freeze(student: SentenceEncoder, embeddings: bool, layers: int) -> None:
    """Exclude the token embeddings or the first layers from training; UserError when there are fewer."""
    for name, parameter in student.transformer.named_parameters():
        layer = re.search(r"\blayers?\.(\d+)\.", name)
        if layer is not None and int(layer[1]) < layers:
            parameter.requires_grad_(False)
    if layers > student.transformer.config.num_hidden_layers:
        raise UserError(f"--freeze_layers {layers}: the student has {student.transformer.config.num_hidden_layers}")
    if embeddings:
        student.transformer.get_input_embeddings().requires_grad_(False)


def set_dropout(model: torch.nn.Module, rate: float) -> None:
    """Give every dropout layer this rate; the configuration that is saved keeps its own."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases and norms, which have one dimension, do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


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
    if args.report_to is not None and importlib.util.find_spec(args.report_to) is None:
        raise UserError(f"--report_to {args.report_to}: it is not installed, pip install {args.report_to}")
    accelerator = Accelerator(log_with=args.report_to, project_dir=args.output_dir)
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise UserError("the launcher started several separate runs: on CPU set ACCELERATE_USE_CPU=true")
    set_seed(args.seed, device_specific=True)
    set_matmul_precision(accelerator.device, args.allow_tf32)
    output_dir = Path(args.output_dir)
    cache_dir = Path(args.cache_dir or Path(args.pairs_dir) / "cache")
    say = accelerator.print
    processes, device, precision = accelerator.num_processes, accelerator.device.type, accelerator.mixed_precision
    say(f"{processes} process(es) on {device}, mixed precision: {precision}")
    if precision == "fp16" and device == "cpu":
        say("fp16 needs a GPU: this run computes in fp32")
    max_tokens = args.max_tokens_per_batch or (2048 if device == "cpu" else 16384)
    best_metric = args.metric_for_best_model or ("spearman_cosine" if args.sts_dev else "mean_accuracy")
    if best_metric == "spearman_cosine" and not args.sts_dev:
        raise UserError("--metric_for_best_model spearman_cosine needs --sts_dev")
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)

    # Data: token ids once, labels once
    dataset = load_pairs(args.pairs_dir)
    sts = read_sts(args.sts_dev) if args.sts_dev else None
    teacher, student = load_models(args)
    if teacher.normalize:
        # Unit-norm labels shrink the gradient; the article's teachers have no such layer.
        say("the teacher ends in Normalize: its labels are the vectors before that layer")
        teacher.normalize = False
    freeze(student, args.freeze_embeddings, args.freeze_layers)
    if args.torch_compile:
        student.compile_transformer()
    if args.gradient_checkpointing:
        student.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    set_dropout(student, args.dropout)
    pairs = TokenizedPairs(dataset["train"], student.tokenizer, student.max_seq_length, cache_dir, accelerator)
    say(check_tokenizer(student, dataset["train"], pairs, args.allow_unknown_tokens))
    teacher.to(accelerator.device)
    if args.label_pca:
        append_pca(teacher, dataset["train"], student.dimension, cache_dir, accelerator)
    labels = teacher_labels(teacher, dataset["train"], LABEL_DTYPES[args.label_dtype], cache_dir, accelerator)
    dev_labels = teacher_labels(teacher, dataset["dev"], LABEL_DTYPES[args.label_dtype], cache_dir, accelerator)
    del teacher

    # Optimizer and schedule
    steps = Steps(pairs, args.batch_size, args.translations_per_source, args.language_temperature, args.seed)
    total_steps = args.max_train_steps or round(args.num_train_epochs * steps.per_epoch)
    groups = parameter_groups(student, args.weight_decay)
    optimizer = OPTIMIZERS[args.optimizer](groups, args.learning_rate, args.adam_epsilon)
    schedule = get_linear_schedule_with_warmup(optimizer, round(args.warmup_ratio * total_steps), total_steps)
    model, optimizer = accelerator.prepare(student, optimizer)
    accelerator.register_for_checkpointing(schedule)

    # Resume
    state = {"step": 0, "best_score": -1.0, "best_step": 0, "evaluations_since_best": 0}
    state["order"] = steps.fingerprint
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
    metrics = Metrics(output_dir / "metrics.jsonl", state["step"], accelerator)
    accelerator.init_trackers("train_distill", {name: str(value) for name, value in vars(args).items()})

    def evaluate_and_keep_best() -> None:
        scores = evaluate(student, dataset["dev"], dev_labels, sts, accelerator)
        metrics.write({"step": state["step"]} | scores)
        score = scores[best_metric]
        state["evaluations_since_best"] += state["step"] > 0
        if state["step"] > 0 and score > state["best_score"]:
            state.update(best_score=score, best_step=state["step"], evaluations_since_best=0)
            if accelerator.is_main_process:
                with replaced_folder(output_dir / "student", args) as folder:
                    student.save(folder)
        if accelerator.is_main_process:
            plot_curves(metrics.lines, output_dir / "curves.png")
        bar.write(f"step {state['step']}: dev {best_metric} {score:.4f}", file=sys.stderr)
        if state["step"] > 0 and scores["mean_similarity"] > COLLAPSED:
            bar.write(
                f"the student has collapsed: {scores['mean_similarity']:.2f} is the mean similarity of different "
                "sentences; lower --learning_rate, or see whether the labels are those of the sentences",
                file=sys.stderr,
            )

    def make_inputs(step: int, max_tokens: int) -> list[MicroBatch]:
        return micro_batches(steps[step], pairs, labels, student, accelerator, max_tokens)

    def done() -> bool:
        return state["step"] == total_steps or state["evaluations_since_best"] >= patience

    def due(every: int) -> bool:
        return state["step"] % every == 0 or done()

    # The loop
    inputs = Prefetched(make_inputs, total_steps - 1, max_tokens)
    bar = tqdm(
        total=total_steps * args.batch_size,
        initial=state["step"] * args.batch_size,
        unit=" pairs",
        desc="training",
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    patience = args.early_stopping_patience or math.inf
    if state["step"] == 0:
        evaluate_and_keep_best()
    model.train()
    meter = Meter()
    losses, since = Losses(pairs.languages, accelerator), time.perf_counter()
    while not done():
        pair_count = steps.pairs_in(state["step"])
        batches = inputs[state["step"]]
        try:
            errors = add_gradients(model, batches, pair_count, accelerator)
        except torch.OutOfMemoryError:
            optimizer.zero_grad()
            inputs.halve()
            bar.write(f"out of memory: from here on {inputs.max_tokens} tokens a forward", file=sys.stderr)
            continue
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

        state["step"] += 1
        bar.update(pair_count)
        meter.add(batches, pair_count)
        losses.add(state["step"], batches, errors)
        if due(args.logging_steps) or due(args.eval_steps) or due(args.checkpointing_steps):
            seconds = time.perf_counter() - since
            line = losses.line(seconds)
            if not math.isfinite(line["loss"]):
                losses.stop(dataset["train"], output_dir / "not_finite.jsonl")
            metrics.write({"step": state["step"], "learning_rate": schedule.get_last_lr()[0]} | line)
            bar.set_postfix(loss=f"{line['loss']:.2e}")
            meter.seconds += seconds
            losses, since = Losses(pairs.languages, accelerator), time.perf_counter()
        paused = time.perf_counter()
        if due(args.eval_steps):
            evaluate_and_keep_best()
        if due(args.checkpointing_steps):
            save_checkpoint(accelerator, output_dir, state, args.checkpoints_total_limit)
        since += time.perf_counter() - paused

    # Final save: student/ is already there, written when the best dev score was reached
    bar.close()
    if meter.pairs > 0:
        say(meter.summary(student, accelerator))
    say(f"{output_dir / 'student'}: step {state['best_step']}, dev {best_metric} {state['best_score']:.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    run(main, build_parser().parse_args())
