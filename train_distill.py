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
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from distill.encoder.sentence_encoder import SentenceEncoder, set_matmul_precision
from distill.folders import (
    HelpFormatter,
    Stopped,
    UserError,
    at_least,
    check_processes,
    load_pairs,
    replaced_folder,
    run,
    write_json,
    writing,
)
from distill.ranks import leave, listening, on_first_rank, stop_agreed, together
from distill.scoring.sts import read_sts
from distill.students.trim import check_tokenizer
from distill.training.checkpoints import find_checkpoint, load_checkpoint, new_state, own_part, save_checkpoint
from distill.training.steps import (
    MicroBatch,
    Prefetched,
    Steps,
    TokenizedPairs,
    append_pca,
    micro_batches,
    teacher_labels,
)
from distill.training.watching import Losses, Meter, Metrics, evaluate, evaluation_report, plot_curves

OPTIMIZERS = {
    "adamw": lambda groups, lr, eps: torch.optim.AdamW(groups, lr=lr, eps=eps, fused=True),
    "nadam": lambda groups, lr, eps: torch.optim.NAdam(groups, lr=lr, eps=eps, decoupled_weight_decay=True),
    "radam": lambda groups, lr, eps: torch.optim.RAdam(groups, lr=lr, eps=eps, decoupled_weight_decay=True),
    "adafactor": lambda groups, lr, eps: torch.optim.Adafactor(groups, lr=lr),
    "sgd": lambda groups, lr, eps: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
}
BEST = ["spearman_cosine", "mean_accuracy"]  # of --sts_dev, of the dev split
TRACKERS = ["tensorboard", "trackio", "wandb"]
# Options that decide what is learned, beside the order of the pairs: a run goes on with those it began with.
DECIDING = (
    *("max_seq_length", "batch_size", "translations_per_source", "language_temperature", "seed"),
    *("optimizer", "learning_rate", "warmup_ratio", "adam_epsilon", "weight_decay", "max_grad_norm", "dropout"),
    *("label_pca", "projection", "label_dtype", "freeze_embeddings", "freeze_layers"),
)
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
    data.add_argument("--max_seq_length", type=at_least(1), default=128, help="tokens the student reads of a sentence")
    data.add_argument("--allow_unknown_tokens", action="store_true", help="even above 5%% of a language's tokens")
    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=at_least(1), default=64, help="pairs per step, over all processes")
    training.add_argument("--translations_per_source", type=at_least(1), default=2, help="most of one source in a step")
    training.add_argument("--language_temperature", type=float, default=1.0, help="above 1 evens out the languages")
    training.add_argument("--max_tokens_per_batch", type=at_least(1), help="tokens of a forward (CPU 2048, GPU 16384)")
    training.add_argument("--num_train_epochs", type=float, default=1, help="passes over the pairs")
    training.add_argument("--max_train_steps", type=at_least(1), help="optimizer steps, instead of epochs")
    training.add_argument("--learning_rate", type=float, default=2e-5, help="peak of the schedule")
    training.add_argument("--warmup_ratio", type=float, default=0.1, help="share of steps with rising learning rate")
    training.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="as torch has them")
    training.add_argument("--adam_epsilon", type=float, default=1e-8, help="epsilon of adamw, nadam and radam")
    training.add_argument("--weight_decay", type=float, default=0.01, help="not on biases and norms")
    training.add_argument("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to this norm")
    training.add_argument("--dropout", type=float, default=0.0, help="rate while training, in place of the student's")
    training.add_argument("--seed", type=at_least(0), default=42, help="decides the order of the pairs and dropout")
    memory = parser.add_argument_group("speed and memory (precision is the launcher's: --mixed_precision)")
    memory.add_argument("--allow_tf32", action="store_true", help="fp32 matrix products in TF32, on a GPU that has it")
    memory.add_argument("--torch_compile", action="store_true", help="compile the student: for long runs on a GPU")
    memory.add_argument("--gradient_checkpointing", action="store_true", help="less memory for a third more time")
    memory.add_argument("--freeze_embeddings", action="store_true", help="the student keeps its token embeddings")
    memory.add_argument("--freeze_layers", type=at_least(0), default=0, help="first layers that stay as they are")
    watching = parser.add_argument_group("evaluation and checkpoints")
    watching.add_argument("--sts_dev", metavar="SPEC", help="STS files whose mean Spearman chooses the best student")
    watching.add_argument("--metric_for_best_model", choices=BEST, help="if not given: STS, else accuracy")
    watching.add_argument("--early_stopping_patience", type=at_least(1), help="evaluations without a better one")
    watching.add_argument("--report_to", choices=TRACKERS, help="a tracker that gets what metrics.jsonl gets")
    watching.add_argument("--eval_steps", type=at_least(1), default=500, help="steps between dev evaluations")
    watching.add_argument("--logging_steps", type=at_least(1), default=10, help="steps between lines of metrics.jsonl")
    watching.add_argument("--checkpointing_steps", type=at_least(1), default=1000, help="steps between checkpoints")
    watching.add_argument("--checkpoints_total_limit", type=at_least(1), default=2, help="newest checkpoints to keep")
    watching.add_argument("--resume_from_checkpoint", metavar="latest|PATH", help="latest: if there is one")
    # fmt: on
    return parser


# ---------------------------------------------------------------- loss, models


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


def settle_gradient_order(model, batch: MicroBatch, optimizer, accelerator: Accelerator) -> None:
    """Let DDP order the gradients for their exchange, by a backward whose result is thrown away.

    It does so once, after its first backward. Sums over three ranks or more depend on that order in their last
    digit, and a resumed run is to have the order of the run that it continues.
    """
    model.eval()  # dropout takes no random numbers
    add_gradients(model, [batch], 1, accelerator)
    optimizer.zero_grad()


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


def compute_labels(
    teacher: SentenceEncoder, dataset, width: int, cache_dir: Path, accelerator: Accelerator, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of both splits, (rows, dimension) memory-mapped; narrowed to `width` with --label_pca."""
    if teacher.normalize:
        # Unit-norm labels shrink the gradient; the article's teachers have no such layer.
        accelerator.on_main_process(print)(
            "the teacher ends in Normalize: its labels are the vectors before that layer"
        )
        teacher.normalize = False
    teacher.to(accelerator.device)
    if args.label_pca:
        append_pca(teacher, dataset["train"], width, cache_dir, accelerator)
    dtype = LABEL_DTYPES[args.label_dtype]
    train, dev = (teacher_labels(teacher, dataset[name], dtype, cache_dir, accelerator) for name in ("train", "dev"))
    return train, dev


def gather_weights(whole: SentenceEncoder, student: SentenceEncoder) -> None:
    """Copy the weights of a student that FSDP has spread over the ranks into one that every rank has whole.

    Without FSDP the two are one.
    """
    if whole is student:
        return
    with torch.no_grad():
        for copy, part in zip(whole.parameters(), student.parameters(), strict=True):
            copy.copy_(part.full_tensor())


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


def shape_student(student: SentenceEncoder, args: argparse.Namespace) -> None:
    """Make of a student what the options for training say."""
    freeze(student, args.freeze_embeddings, args.freeze_layers)
    if args.torch_compile:
        student.compile_transformer()
    if args.gradient_checkpointing:
        student.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    set_dropout(student, args.dropout)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; biases and norms, which have one dimension, do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def optimizer_and_schedule(student: SentenceEncoder, total_steps: int, args: argparse.Namespace) -> tuple:
    """The optimizer of the student's trained weights; its learning rate rises, then falls to 0, in straight lines."""
    groups = parameter_groups(student, args.weight_decay)
    optimizer = OPTIMIZERS[args.optimizer](groups, args.learning_rate, args.adam_epsilon)
    return optimizer, get_linear_schedule_with_warmup(optimizer, round(args.warmup_ratio * total_steps), total_steps)


# ---------------------------------------------------------------- the run


def start(args: argparse.Namespace) -> Accelerator:
    """The processes of the run, seeded, each with its device; UserError when they do not know of each other."""
    if args.report_to is not None and importlib.util.find_spec(args.report_to) is None:
        raise UserError(f"--report_to {args.report_to}: it is not installed, pip install {args.report_to}")
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of the gradients
    accelerator = Accelerator(log_with=args.report_to, project_dir=args.output_dir, kwargs_handlers=[ddp])
    check_processes(accelerator)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not accelerator.is_fsdp2:
        raise UserError("FSDP is used in its version 2 and on GPUs, as in accelerate_configs/fsdp2.yaml")
    if accelerator.is_fsdp2 and accelerator.mixed_precision != "no":
        # As DDP under autocast: accelerate would also sum gradients, and hand the loss its vectors, in half precision.
        plugin = accelerator.state.fsdp_plugin
        plugin.mixed_precision_policy = replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
        )
    set_seed(args.seed)  # the same on all ranks, for weights that a student gets anew
    set_matmul_precision(accelerator.device, args.allow_tf32)
    processes, device, precision = accelerator.num_processes, accelerator.device.type, accelerator.mixed_precision
    nodes = len(set(gather_object([socket.gethostname()])))
    say = accelerator.on_main_process(print)
    say(f"{processes} process(es) on {device}, {nodes} node(s), mixed precision: {precision}")
    if precision == "fp16" and device == "cpu":
        say("fp16 needs a GPU: this run computes in fp32")
    return accelerator


def metric_for_best_model(args: argparse.Namespace) -> str:
    """The dev score that chooses the best student; UserError when it needs files that are not given."""
    best_metric = args.metric_for_best_model or ("spearman_cosine" if args.sts_dev else "mean_accuracy")
    if best_metric == "spearman_cosine" and not args.sts_dev:
        raise UserError("--metric_for_best_model spearman_cosine needs --sts_dev")
    return best_metric


def write_args(output_dir: Path, args: argparse.Namespace) -> None:
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "args.json", vars(args))


class Training:
    """Where a run stands, and what is done between its steps: metrics, dev evaluations, the best student, checkpoints.

    `score()` gives the dev scores of the student as it is now, `save(folder)` writes it. `state` is what a checkpoint
    holds beside weights, optimizer, schedule and random states.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        dataset,
        languages: list[str],
        best_metric: str,
        score: Callable[[], dict],
        save: Callable[[Path], None],
        total_steps: int,
        state: dict,
    ):
        self.args, self.accelerator, self.dataset, self.languages = args, accelerator, dataset, languages
        self.best_metric, self.score, self.save = best_metric, score, save
        self.total_steps, self.state, self.output_dir = total_steps, state, Path(args.output_dir)
        self.metrics = Metrics(self.output_dir / "metrics.jsonl", state["lines"], accelerator)
        self.losses = Losses(languages, accelerator, own_part(state["unlogged"], accelerator), state["seconds"])
        self.meter = Meter()
        self.bar = tqdm(
            desc="training",
            total=total_steps * args.batch_size,
            initial=state["step"] * args.batch_size,
            unit=" pairs",
            disable=not accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # seconds; in a log file each update is a line
        )

    @property
    def done(self) -> bool:
        patience = self.args.early_stopping_patience or math.inf
        return self.state["step"] >= self.total_steps or self.state["evaluations_since_best"] >= patience

    def due(self, every: int) -> bool:
        return self.state["step"] % every == 0 or self.done

    @property
    def evaluation_due(self) -> bool:
        return self.due(self.args.eval_steps) and self.state["evaluated"] < self.state["step"]

    def after_step(self, batches: list[MicroBatch], errors: list[Tensor], pairs: int, learning_rate: float) -> None:
        """Count a step that was taken, and do what is due after it."""
        self.state["step"] += 1
        self.bar.update(pairs)
        self.meter.add(batches, pairs)
        self.losses.add(self.state["step"], batches, errors)
        args = self.args
        if any(self.due(every) for every in (args.logging_steps, args.eval_steps, args.checkpointing_steps)):
            self.log(learning_rate)
        self.evaluate_and_save()

    def log(self, learning_rate: float) -> None:
        line = self.losses.line()
        if not math.isfinite(line["loss"]):
            self.stop_not_finite()
        self.metrics.write({"step": self.state["step"], "learning_rate": learning_rate} | line)
        self.bar.set_postfix(loss=f"{line['loss']:.2e}")
        self.meter.seconds += self.losses.seconds
        self.losses = Losses(self.languages, self.accelerator)

    def evaluate_and_save(self) -> None:
        """Evaluate and write a checkpoint where either is due; leave where a signal asks for it."""
        seconds, state = self.losses.seconds, self.state
        with self.losses.paused():
            with suppress(Stopped):  # a signal ended the evaluation; the checkpoint tells that it is still to come
                if self.evaluation_due:
                    self.evaluate()
            stopping = stop_agreed(self.accelerator)
            if state["step"] > 0 and (stopping or self.due(self.args.checkpointing_steps)):
                unlogged = gather_object([self.losses.sums().tolist()])
                if not np.isfinite(unlogged).all():
                    self.stop_not_finite()
                state.update(lines=len(self.metrics.lines), unlogged=unlogged, seconds=seconds)
                save_checkpoint(self.accelerator, self.output_dir, state, self.args.checkpoints_total_limit)
                stopping = stop_agreed(self.accelerator)
            if stopping and not (self.done and state["evaluated"] == state["step"]):
                self.accelerator.end_training()
                leave()

    def evaluate(self) -> None:
        """Write down the dev scores of the student, and keep it if it is the best so far."""
        scores, state = self.score(), self.state
        self.metrics.write({"step": state["step"]} | scores)
        state["evaluated"] = state["step"]
        state["evaluations_since_best"] += state["step"] > 0
        if state["step"] > 0 and scores[self.best_metric] > state["best_score"]:
            state.update(best_score=scores[self.best_metric], best_step=state["step"], evaluations_since_best=0)
            together(self.save_student, self.accelerator, self.output_dir, cut_short=False)
        together(self.draw_curves, self.accelerator, self.output_dir, cut_short=False)
        if self.accelerator.is_main_process:
            self.bar.write(evaluation_report(state["step"], self.best_metric, scores), file=sys.stderr)

    def draw_curves(self) -> None:
        if self.accelerator.is_main_process:
            plot_curves(self.metrics.lines, self.output_dir / "curves.png")

    def save_student(self) -> None:
        if self.accelerator.is_main_process:
            with replaced_folder(self.output_dir / "student", self.args) as folder:
                self.save(folder)

    def stop_not_finite(self) -> NoReturn:
        self.losses.stop(self.dataset["train"], self.output_dir / "not_finite.jsonl")

    def summary(self, student: SentenceEncoder) -> str:
        """Speed, and where the best student stands."""
        speed = self.meter.summary(student, self.accelerator) + "\n" if self.meter.pairs > 0 else ""
        best = f"step {self.state['best_step']}, dev {self.best_metric} {self.state['best_score']:.4f}"
        return f"{speed}{self.output_dir / 'student'}: {best}"


def main(args: argparse.Namespace) -> None:
    # Accelerator and logging
    accelerator = start(args)
    say = accelerator.on_main_process(print)
    output_dir = Path(args.output_dir)
    cache_dir = Path(args.cache_dir or Path(args.pairs_dir) / "cache")
    max_tokens = args.max_tokens_per_batch or (2048 if accelerator.device.type == "cpu" else 16384)
    best_metric = metric_for_best_model(args)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir, accelerator)

    # Data: token ids once, labels once
    dataset = load_pairs(args.pairs_dir)
    sts = read_sts(args.sts_dev) if args.sts_dev else None
    teacher, student = load_models(args)
    shape_student(student, args)
    set_seed(args.seed, device_specific=True)
    pairs = TokenizedPairs(dataset["train"], student.tokenizer, student.max_seq_length, cache_dir, accelerator)
    say(check_tokenizer(student.tokenizer, dataset["train"], pairs, args.allow_unknown_tokens))
    labels, dev_labels = compute_labels(teacher, dataset, student.dimension, cache_dir, accelerator, args)
    del teacher

    # Optimizer and schedule
    steps = Steps(pairs, args.batch_size, args.translations_per_source, args.language_temperature, args.seed)
    total_steps = args.max_train_steps or max(1, round(args.num_train_epochs * steps.per_epoch))
    optimizer, schedule = optimizer_and_schedule(student, total_steps, args)
    # FSDP spreads the student over the ranks, where only training can use it.
    whole = deepcopy(student).to(accelerator.device) if accelerator.is_fsdp2 else student
    model, optimizer = accelerator.prepare(student, optimizer)
    accelerator.register_for_checkpointing(schedule)

    # Resume
    deciding = {name: getattr(args, name) for name in DECIDING}
    state = new_state(steps.fingerprint, deciding, len(pairs.languages))
    if checkpoint is not None:
        state = load_checkpoint(accelerator, checkpoint, state)
        if not on_first_rank((output_dir / "student").is_dir, accelerator):  # taken to another folder
            state.update(evaluated=-1, best_score=-1.0, best_step=0, evaluations_since_best=0)
    on_first_rank(partial(write_args, output_dir, args), accelerator)
    accelerator.init_trackers("train_distill", {name: str(value) for name, value in vars(args).items()})

    def make_inputs(step: int, max_tokens: int) -> list[MicroBatch]:
        return micro_batches(steps[step], pairs, labels, student, accelerator, max_tokens)

    def score() -> dict:
        gather_weights(whole, student)
        return evaluate(whole, dataset["dev"], dev_labels, sts, accelerator)

    # The loop
    inputs = Prefetched(make_inputs, total_steps - 1, min(max_tokens, state["max_tokens"] or max_tokens))
    training = Training(args, accelerator, dataset, pairs.languages, best_metric, score, whole.save, total_steps, state)
    if training.evaluation_due:
        training.evaluate_and_save()
    if isinstance(model, DistributedDataParallel) and not training.done:
        model.broadcast_buffers = False  # they hold positions, which do not change
        settle_gradient_order(model, make_inputs(state["step"], inputs.max_tokens)[-1], optimizer, accelerator)
    model.train()
    while not training.done:
        pair_count = steps.pairs_in(state["step"])
        batches = inputs[state["step"]]
        try:
            errors = add_gradients(model, batches, pair_count, accelerator)
        except torch.OutOfMemoryError:
            if accelerator.num_processes > 1:  # the others wait for this rank's gradients
                print(f"out of memory: give --max_tokens_per_batch less than {inputs.max_tokens}", file=sys.stderr)
                raise
            optimizer.zero_grad()
            inputs.halve()
            state["max_tokens"] = inputs.max_tokens
            training.bar.write(f"out of memory: from here on {inputs.max_tokens} tokens a forward", file=sys.stderr)
            continue
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        training.after_step(batches, errors, pair_count, schedule.get_last_lr()[0])

    # Final save: student/ is already there, written when the best dev score was reached
    training.bar.close()
    say(training.summary(student))
    accelerator.end_training()


if __name__ == "__main__":
    with listening():
        run(record(main), build_parser().parse_args())
