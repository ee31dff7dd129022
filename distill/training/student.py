"""What training makes of a student: which of its weights it trains, its dropout, how it lies on several ranks."""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from distill.command import UserError
from distill.encoder.model_folder import layer_list
from distill.encoder.packing import out_of_memory
from distill.encoder.sentence_encoder import SentenceEncoder, encode_on_all_ranks
from distill.pairs.pairs_folder import evenly_spaced
from distill.ranks import on_first_rank
from distill.training.labels import Labelling


class LearningRates(NamedTuple):
    """The peak of each part's learning rate; of token embeddings and of the last layer where they have their own."""

    others: float
    embeddings: float | None = None
    projection: float | None = None


# The share of the peak after the warm-up, by what is left of the steps, and of the last ones in which `wsd` falls: that
# is warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395).
SCHEDULES = {
    "linear": lambda left, left_to_fall: left,
    "cosine": lambda left, left_to_fall: (1 - math.cos(math.pi * left)) / 2,
    "constant": lambda left, left_to_fall: 1.0,
    "wsd": lambda left, left_to_fall: left_to_fall,
}
START_SAMPLE = 4000  # rows whose sentences a projection starts from


def open_student(
    path: str, max_seq_length: int, prompt: str | None, prompt_name: str | None, accelerator: Accelerator
) -> SentenceEncoder:
    """A student as it is trained: without its last Normalize, and what no vector comes from is frozen."""
    student = SentenceEncoder.from_pretrained(path, max_seq_length, prompt, prompt_name)
    if student.max_seq_length < max_seq_length:
        say = accelerator.on_main_process(print)
        say(f"--max_seq_length {max_seq_length}: the student reads {student.max_seq_length} tokens at most")
    student.before_normalize = True
    student.freeze_unused()
    return student


def load_student(
    path: str,
    max_seq_length: int,
    prompt: str | None,
    prompt_name: str | None,
    projection: bool,
    label_pca: bool,
    labelling: Labelling,
    accelerator: Accelerator,
) -> SentenceEncoder:
    """The student for such labels; UserError when nothing is to bring its vectors to their width."""
    student = open_student(path, max_seq_length, prompt, prompt_name, accelerator)
    if labelling.prompted or student.prompt:
        accelerator.on_main_process(print)(", ".join([*labelling.reads, f"student reads {student.reads}"]))
    if projection:
        linear = torch.nn.Linear(student.dimension, labelling.width)
        student.dense.append(torch.nn.Sequential(linear, torch.nn.Identity()))
    width, own = labelling.width, student.dimension
    widths = f"{labelling.called} gives vectors of {width} dimensions and {path} of {own}"
    if label_pca and width <= own:
        raise UserError(f"{widths}: --label_pca is for a teacher wider than the student, leave it out")
    if not label_pca and width != own:
        raise UserError(f"{widths}: choose models of equal width, or add --projection, or --label_pca if it is wider")
    return student


def start_projection(student: SentenceEncoder, dataset, labels: np.ndarray, accelerator: Accelerator) -> None:
    """Start the student's last layer where the loss is least for a student that is otherwise as it is.

    By linear least squares over both sides of a sample of pairs. A layer of random numbers would spoil at first what
    a pretrained student knows, since its gradients go through that layer. `labels`: (rows, dimension).
    """
    rows = evenly_spaced(len(dataset), START_SAMPLE)
    sample = dataset[rows]
    translations = [[target["sentence"] for target in targets] for targets in sample["targets"]]
    sides = [[source, *texts] for source, texts in zip(sample["source"], translations, strict=True)]
    linear, activation = student.dense.pop(-1)
    vector = encode_on_all_ranks(
        student, (sentence for texts in sides for sentence in texts), accelerator, "projection"
    )
    student.dense.append(torch.nn.Sequential(linear, activation))

    def least_squares() -> dict[str, torch.Tensor]:
        x = np.stack([vector[sentence] for texts in sides for sentence in texts]).astype(np.float64)
        y = labels[np.repeat(rows, [len(texts) for texts in sides])].astype(np.float64)
        x_mean, y_mean = x.mean(0), y.mean(0)
        # A last LayerNorm leaves a direction in which vectors differ by rounding alone.
        weight = np.linalg.lstsq(x - x_mean, y - y_mean, rcond=1e-4)[0].T
        return {"weight": torch.tensor(weight).float(), "bias": torch.tensor(y_mean - weight @ x_mean).float()}

    linear.load_state_dict(on_first_rank(least_squares, accelerator))


def freeze(student: SentenceEncoder, embeddings: bool, layers: int) -> None:
    """Exclude the token embeddings or the first layers from training; UserError when there are fewer."""
    transformer, have = student.transformer, student.transformer.config.num_hidden_layers
    if layers > have:
        raise UserError(f"--freeze_layers {layers}: the student has {have}")
    if layers:
        _, found = layer_list(transformer) or (None, None)
        if found is None:
            name = type(transformer).__name__
            raise UserError(f"--freeze_layers {layers}: {name} has no list of separate layers: leave it out")
        found[:layers].requires_grad_(False)
    if embeddings:
        transformer.get_input_embeddings().requires_grad_(False)


def set_dropout(student: SentenceEncoder, rate: float) -> None:
    """Set every rate of dropout: of layers, and those that modules hand to functions (attention, T5).

    The configuration, which is saved, keeps its own.
    """
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if "dropout" in name and type(value) in (int, float):
                setattr(module, name, rate)


def checkpoint_gradients(transformer) -> None:
    """Have activations computed anew in the backward; UserError where a transformer knows no way to."""
    if not transformer.supports_gradient_checkpointing:
        raise UserError(f"--gradient_checkpointing: {type(transformer).__name__} has none, leave it out")
    # transformers 5.23 calls it activation checkpointing; Python 3.10 has an earlier version.
    name = "activation_checkpointing_enable"
    enable = getattr(transformer, name, None) or transformer.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def shape_student(
    student: SentenceEncoder,
    freeze_embeddings: bool,
    freeze_layers: int,
    compiled: bool,
    checkpointed: bool,
    rate: float,
) -> None:
    """Make of a student what training is told to; UserError where it cannot be made. `rate`: of dropout."""
    freeze(student, freeze_embeddings, freeze_layers)
    if compiled:
        student.compile_transformer()
    if checkpointed:
        checkpoint_gradients(student.transformer)
    set_dropout(student, rate)


def packs(student: SentenceEncoder, asked: str | None, dropout: float, accelerator: Accelerator) -> bool:
    """Whether training packs sentences; UserError where it is `asked` to ("packed") and cannot."""
    half, device = accelerator.mixed_precision != "no", accelerator.device
    can = student.packs(half, dropout)
    if asked == "packed" and not can:
        raise UserError(
            f"--attn_implementation packed: {type(student.transformer).__name__} on {device.type}, as it is trained "
            "here, cannot: it takes no --torch_compile, and on a GPU bf16 or fp16 and no --dropout. Leave it out"
        )
    return can and asked != "padded"


def settle_decay(args: argparse.Namespace) -> None:
    """Bring --decay_ratio to what it is where it is not given; UserError where nothing takes it."""
    if args.decay_ratio and args.lr_scheduler_type != "wsd":
        raise UserError("--decay_ratio is for --lr_scheduler_type wsd: give both, or leave it out")
    if args.lr_scheduler_type == "wsd":
        args.decay_ratio = args.decay_ratio or 0.2
        if args.warmup_ratio + args.decay_ratio > 1:
            shares = f"--warmup_ratio {args.warmup_ratio:g} and --decay_ratio {args.decay_ratio:g}"
            raise UserError(f"{shares} are more than all steps: lower one of them")


def settle_rates(args: argparse.Namespace) -> None:
    """As `settle_decay`; UserError for learning rates that nothing takes."""
    settle_decay(args)
    if args.embedding_learning_rate and args.freeze_embeddings:
        raise UserError("--embedding_learning_rate: --freeze_embeddings leaves them as they are, leave one out")
    if args.projection_learning_rate and not args.projection:
        raise UserError("--projection_learning_rate does nothing without --projection: give both, or leave it out")


def rate_factor(kind: str, steps: int, warmup_ratio: float, decay_ratio: float | None) -> Callable[[int], float]:
    """The learning rate of a step as a share of its peak: up in a straight line, then as the schedule is called."""
    warmup, falling = round(warmup_ratio * steps), max(1, round((decay_ratio or 0) * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        left = max(0.0, (steps - step) / max(1, steps - warmup))
        return SCHEDULES[kind](left, min(1.0, max(0.0, (steps - step) / falling)))

    return factor


def optimizer_and_schedule(
    student: SentenceEncoder, rates: LearningRates, factor: Callable[[int], float], epsilon: float, weight_decay: float
) -> tuple:
    """AdamW, and what multiplies its learning rates by `factor(step)`."""
    groups = parameter_groups(student, rates, weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=rates.others, eps=epsilon, fused=True)
    return optimizer, LambdaLR(optimizer, factor)


def check_goes_on(schedule: LambdaLR, step: int, steps: int) -> None:
    """UserError where a run that has come to a step and is to take others than it began with, `steps`, cannot go on.

    It must not have taken more already, nor have had another learning rate.
    """
    if step > steps:
        raise UserError(f"the run has taken {step} steps, more than the {steps} that are asked for: give no fewer")
    [was, *_], will = schedule.get_last_lr(), schedule.base_lrs[0] * schedule.lr_lambdas[0](step)
    if not math.isclose(was, will, rel_tol=1e-6, abs_tol=1e-12):
        raise UserError(
            f"at step {step} the learning rate was {was:.2e}, with this number of steps it would be {will:.2e}: go on "
            "from a checkpoint after the warm-up, of more steps a longer one, and before the rate falls, or with the "
            "steps that the run began with"
        )


def parameter_groups(student: SentenceEncoder, rates: LearningRates, weight_decay: float) -> list[dict]:
    """What is trained, by learning rate. Matrices decay; biases and norms, which have one dimension, do not."""
    own = {id(parameter): rates.embeddings for parameter in student.transformer.get_input_embeddings().parameters()}
    if len(student.dense):
        own |= {id(parameter): rates.projection for parameter in student.dense[-1].parameters()}
    groups = {}
    for parameter in (parameter for parameter in student.parameters() if parameter.requires_grad):
        rate = own.get(id(parameter)) or rates.others
        groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": of_group, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), of_group in groups.items()
    ]


def update(optimizer) -> None:
    """A step of the optimizer; UserError where there is no memory for its state, which the first step makes."""
    try:
        optimizer.step()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            "out of memory for the optimizer, which keeps two numbers for each trained weight: train fewer "
            "(--freeze_embeddings, build_student.py trim) or spread them over GPUs (accelerate_configs/fsdp2.yaml)"
        ) from error


@contextmanager
def gathered(whole: SentenceEncoder, student: SentenceEncoder, device: torch.device) -> Iterator[SentenceEncoder]:
    """The student whole, on the device of every rank, while it is evaluated and saved.

    Where FSDP has spread it over the ranks it is `whole`, a copy that lies in the host's memory else: while it trains,
    no rank has room for all. Without FSDP the two are one.
    """
    if whole is student:
        yield student
        return
    whole.to(device)
    with torch.no_grad():
        for copy, part in zip(whole.parameters(), student.parameters(), strict=True):
            copy.copy_(part.full_tensor())
    try:
        yield whole
    finally:
        whole.cpu()


def exchange_in_bf16(state, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's mean of a bucket of gradients over the ranks, of half the bytes. Torch's own is for NCCL alone by name."""
    return bf16_compress_hook(state, bucket)


def settle_exchange(model: DistributedDataParallel, inputs: dict, in_bf16: bool) -> None:
    """Settle what the ranks exchange: no buffers, and gradients in an order that a resumed run has too.

    DDP orders the gradients once, after its first backward: here one whose result is thrown away. Sums over three
    ranks or more depend on that order in their last digit.
    """
    model.broadcast_buffers = False  # they hold positions, which do not change
    if in_bf16:
        model.register_comm_hook(None, exchange_in_bf16)
    model.eval()  # dropout takes no random numbers
    model(**inputs).sum().backward()
