"""Teach a multilingual student the teacher's vectors (Reimers & Gurevych 2020, arXiv 2004.09813).

    accelerate launch train_distill.py --pairs_dir pairs/ --output_dir run/ \\
        --teacher_model_name_or_path sentence-transformers/paraphrase-distilroberta-base-v2 \\
        --student_model_name_or_path xlm-roberta-base --sts_dev 'stsb-{en,it}-dev.csv'

For a pair (source, target) the label is the teacher's vector of the source sentence; the loss is the mean squared
error of the student's vectors of both sentences (or of one, --train_on) to it. `run/student/` is a
sentence-transformers folder.
"""

import argparse
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from distill.command import Parser, UserError, at_least, between, positive, run
from distill.encoder.packing import ending_out_of_memory, to_device
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import TRAINED, check_output, claimed
from distill.pairs.pairs_folder import load_splits, pairs_report
from distill.ranks import (
    listening,
    noting_mistakes,
    on_first_rank,
    together,
)
from distill.students.audit import check_tokenizer
from distill.training.cache import fingerprint
from distill.training.checkpoints import (
    BEST,
    LAST,
    LOCK,
    check_settings,
    chosen_by,
    find_checkpoint,
)
from distill.training.course import Course, Plan, begin, run_settings, start
from distill.training.labels import Labelling
from distill.training.losses import TERMS, WEIGHT, Loss, settle_loss, term
from distill.training.options import DECIDING, add_common
from distill.training.steps import SIDES, RankStep, RankSteps, Steps, few_pairs
from distill.training.student import (
    LearningRates,
    gathered,
    load_student,
    optimizer_and_schedule,
    packs,
    rate_factor,
    settle_exchange,
    settle_rates,
    shape_student,
    start_projection,
    update,
)
from distill.training.tokens import TokenizedPairs
from distill.training.watching import Tally, chooser_fingerprint, evaluate, progress_bar, read_dev_data

# Beside those of both trainers.
OWN_DECIDING = (
    *("bank_size", "loss_temperature", "embedding_learning_rate", "projection_learning_rate"),
    *("label_pca", "projection", "label_dtype"),
)
LABEL_DTYPES = {"fp32": "float32", "fp16": "float16"}
LOSS = f"{', '.join(TERMS)} (mse)"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, "accelerate launch", __file__)
    # fmt: off
    data = parser.add_argument_group("data and models")
    data.add_argument("--pairs_dir", required=True, help="folder of build_pairs.py")
    data.add_argument("--teacher_model_name_or_path", nargs="+", default=[], metavar="M", help="folders or hub ids")
    data.add_argument("--teacher_vectors", nargs="+", action="append", default=[], metavar="FILE", help="a table")
    data.add_argument("--teacher_weights", nargs="+", type=WEIGHT, metavar="W", help="of models, then of tables")
    data.add_argument("--allow_missing_vectors", action="store_true", help="drop rows that a table has no vector for")
    data.add_argument("--student_model_name_or_path", required=True, help="multilingual model, folder or hub id")
    data.add_argument("--output_dir", required=True, help="folder for metrics, checkpoints and the student")
    data.add_argument("--cache_dir", help="folder for labels and token ids (if not given: cache/ in the pairs folder)")
    prompts = data.add_mutually_exclusive_group()
    prompts.add_argument("--teacher_prompt", type=str, metavar="TEXT", help="put before what it reads ('': nothing)")
    prompts.add_argument("--teacher_prompt_name", metavar="NAME", help="its folder's (if not given: the default)")
    prompts = data.add_mutually_exclusive_group()
    prompts.add_argument("--student_prompt", type=str, metavar="TEXT", help="the same, and its default when saved")
    prompts.add_argument("--student_prompt_name", metavar="NAME", help="the same, of the student's folder")
    widths = data.add_mutually_exclusive_group()
    widths.add_argument("--label_pca", action="store_true", help="narrow the labels to the student's width by PCA")
    widths.add_argument("--projection", action="store_true", help="train a layer up to the teacher's width")
    data.add_argument("--label_dtype", choices=LABEL_DTYPES, default="fp32", help="of labels on disk")
    data.add_argument("--teacher_dtype", choices=DTYPES, help="of its weights (fp32; GPU and fp16 labels: bf16)")
    data.add_argument("--max_seq_length", type=at_least(1), default=128, help="tokens the student reads of a sentence")
    data.add_argument("--allow_unknown_tokens", action="store_true", help="even above 5%% of a language's tokens")
    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=at_least(1), default=64, help="pairs per step, over all processes")
    training.add_argument("--train_on", nargs="+", choices=SIDES, default=[*SIDES], help="sides of a pair that learn")
    training.add_argument("--loss", nargs="+", type=term, metavar="TERM[:WEIGHT]", help=LOSS)
    training.add_argument("--bank_size", type=at_least(1), help="labels that a step is compared with (1024)")
    training.add_argument("--loss_temperature", type=between(1e-3, 1e3), metavar="T", help="divides cosines (0.05)")
    training.add_argument("--embedding_learning_rate", type=positive, metavar="R", help="of token embeddings alone")
    training.add_argument("--projection_learning_rate", type=positive, metavar="R", help="of --projection alone")
    add_common(parser, training)
    # fmt: on
    return parser


def distillation_loss(loss: Loss, vectors: Tensor, labels: Tensor, weights: Tensor, bank: Tensor) -> Tensor:
    """Each sentence's error by each term of the loss (terms, batch), times the number of pairs it stands for.

    vectors, labels: (batch, dimension); weights: (batch,); bank: (size, dimension), labels of other sentences. Summed
    over a step's micro-batches and divided by the sum of the weights, two for each pair of which both sides are trained
    on, that of `mse` is equation 1 of the article, averaged over sentences and dimensions.
    """
    return weights * loss.errors(vectors, labels, bank)


def backward(model, loss: Loss, step: RankStep, accelerator: Accelerator) -> list[Tensor]:
    """Gradients of the step's loss, summed over its micro-batches; each one's weighted errors (terms, batch)."""
    errors = []
    for number, (inputs, labels, weights) in enumerate(step.micro_batches(), 1):
        # Gradients are exchanged with the last one; DDP takes their mean over the ranks, the loss is their sum
        last = number == len(step.sizes) or accelerator.is_fsdp2  # which else keeps whole gradients on every rank
        with nullcontext() if last else accelerator.no_sync(model):
            error = distillation_loss(loss, model(**inputs), labels, weights, step.bank)
            accelerator.backward(loss.total(error).sum() / step.weight * accelerator.num_processes)
        errors.append(error.detach())
    return errors


# ---------------------------------------------------------------- what the run is made of


def find_teachers(args: argparse.Namespace, splits: dict, cache_dir: Path, accelerator: Accelerator) -> Labelling:
    """What gives the labels; no model is loaded before it is needed."""
    if args.teacher_dtype and not args.teacher_model_name_or_path:
        raise UserError("--teacher_dtype is for a teacher that is a model, a table has numbers: leave it out")
    half = accelerator.device.type == "cuda" and args.label_dtype == "fp16"
    dtype = DTYPES[args.teacher_dtype or ("bf16" if half else "fp32")]
    of_models = {"prompt": args.teacher_prompt, "prompt_name": args.teacher_prompt_name, "dtype": dtype}
    given = args.teacher_model_name_or_path, args.teacher_vectors, args.teacher_weights, args.allow_missing_vectors
    return Labelling(*given, LABEL_DTYPES[args.label_dtype], splits, cache_dir, accelerator, of_models)


def find_student(args: argparse.Namespace, labelling: Labelling, accelerator: Accelerator) -> SentenceEncoder:
    """The student for such labels, as training is told to shape it."""
    set_seed(args.seed)  # the same on all ranks, for weights that it gets anew
    reads = args.student_model_name_or_path, args.max_seq_length, args.student_prompt, args.student_prompt_name
    student = load_student(*reads, args.projection, args.label_pca, labelling, accelerator)
    shape = args.freeze_embeddings, args.freeze_layers, args.torch_compile, args.gradient_checkpointing, args.dropout
    shape_student(student, *shape)
    return student


def find_steps(args: argparse.Namespace, pairs: TokenizedPairs, accelerator: Accelerator) -> tuple[Steps, int]:
    """What each step is made of, and how many the run takes."""
    say = accelerator.on_main_process(print)
    given = (args.batch_size, args.translations_per_source, args.language_temperature, args.seed, args.train_on)
    steps = together(lambda: Steps(pairs, *given, args.bank_size or 0), accelerator)
    if few := few_pairs(args.batch_size, accelerator):
        say(few)
    if steps.left_out:
        say(f"--train_on target: {steps.left_out} rows without translations are left out")
    return steps, args.max_train_steps or max(1, round(args.num_train_epochs * steps.per_epoch))


# ---------------------------------------------------------------- the run


def main(args: argparse.Namespace) -> None:
    args.train_on = sorted(set(args.train_on))  # the same choice, in whatever order it was written
    settle_loss(args)
    settle_rates(args)
    accelerator = start(args.report_to, args.output_dir, args.bf16_exchange, args.allow_tf32)
    with ExitStack() as ends:  # what ends with the run
        # Of two runs in one folder the second is refused
        on_first_rank(partial(ends.enter_context, claimed(args.output_dir, LOCK)), accelerator)
        train(args, accelerator, ends)


def train(args: argparse.Namespace, accelerator: Accelerator, ends: ExitStack) -> None:
    # What is asked for
    device, say = accelerator.device, accelerator.on_main_process(print)
    output_dir, cache_dir = Path(args.output_dir), Path(args.cache_dir or Path(args.pairs_dir) / "cache")
    on_gpu, dev_files = device.type != "cpu", (args.sts_dev, args.eval_bitext, args.eval_retrieval)
    best_metric = chosen_by(args.metric_for_best_model, *dev_files)
    max_tokens = args.max_tokens_per_batch or (16384 if on_gpu else 2048)
    workers = int(on_gpu) if args.dataloader_num_workers is None else args.dataloader_num_workers
    for written in (BEST, LAST):
        on_first_rank(partial(check_output, output_dir / written, args, TRAINED, keep=True), accelerator)
    checkpoint = on_first_rank(lambda: find_checkpoint(args.resume_from_checkpoint, output_dir, cache_dir), accelerator)
    options = {"--loss": " ".join(f"{name}:{weight:g}" for name, weight in args.loss.items())}
    options |= {"--train_on": " ".join(args.train_on)}
    options |= {f"--{name}": getattr(args, name) for name in (*DECIDING, *OWN_DECIDING)}
    together(partial(check_settings, checkpoint, options), accelerator)

    # Data, teachers and student
    splits = together(partial(load_splits, args.pairs_dir), accelerator)
    trained_on = on_first_rank(partial(pairs_report, args.pairs_dir), accelerator)
    data, notes = together(partial(read_dev_data, *dev_files), accelerator)
    for note in notes:
        say(note)
    labelling = find_teachers(args, splits, cache_dir, accelerator)
    splits, contents = labelling.splits, labelling.contents  # rows without a vector may be dropped
    student = together(partial(find_student, args, labelling, accelerator), accelerator)

    # Token ids once, labels once
    pairs = TokenizedPairs(splits["train"], contents["train"], student, cache_dir, accelerator)
    trained_on |= pairs.counts(args.train_on)
    read = student.tokenizer, splits["train"], pairs, args.allow_unknown_tokens
    say(on_first_rank(partial(check_tokenizer, *read), accelerator))
    labels = labelling.labels(student.dimension if args.label_pca else None)
    loss = together(lambda: Loss(args.loss, args.loss_temperature, labels.of["train"]), accelerator)
    if args.projection and checkpoint is None:
        start_projection(student.to(device), splits["train"], labels.of["train"], accelerator)

    # Optimizer and schedule
    steps, total_steps = find_steps(args, pairs, accelerator)
    rates = LearningRates(args.learning_rate, args.embedding_learning_rate, args.projection_learning_rate)
    factor = rate_factor(args.lr_scheduler_type, total_steps, args.warmup_ratio, args.decay_ratio)
    optimizer, schedule = optimizer_and_schedule(student, rates, factor, args.adam_epsilon, args.weight_decay)
    # FSDP spreads the student over the ranks, where only training can use it.
    whole = deepcopy(student).cpu() if accelerator.is_fsdp2 else student
    model, optimizer = accelerator.prepare(student, optimizer)

    set_seed(args.seed, device_specific=True)  # from here on no random number is taken but by training

    # Resume
    settings = run_settings(options, accelerator.mixed_precision, total_steps, whole) | {
        "on other pairs, or with another tokenizer": steps.fingerprint,
        "on labels of another teacher": fingerprint(labels.name, contents, args.label_dtype),
        "for another --metric_for_best_model, or on other files for it": chooser_fingerprint(best_metric, data),
    }
    progress, saved, metrics = begin(
        "train_distill", total_steps, schedule, settings, checkpoint, output_dir, args, accelerator
    )
    bar = ends.enter_context(progress_bar(*map(steps.pairs_before, (progress.step, total_steps)), accelerator))
    tally = Tally(loss, splits["train"], pairs.languages, output_dir, progress.unlogged, bar, accelerator)

    def dev_scores(found: SentenceEncoder) -> dict:
        return evaluate(found, splits["dev"], labels.of["dev"], data, accelerator)

    every = args.logging_steps, args.eval_steps, args.checkpointing_steps, args.checkpoints_total_limit
    plan = Plan(total_steps, *every, args.skip_first_evaluation, args.early_stopping_patience, best_metric)
    about, rate = vars(args) | {"trained_on": trained_on}, lambda: args.learning_rate * factor(progress.step - 1)
    find = partial(gathered, whole, student, device)
    course = Course(plan, progress, saved, about, settings, metrics, tally, accelerator, rate, find, dev_scores)

    # The loop
    packed = together(partial(packs, student, args.attn_implementation, args.dropout, accelerator), accelerator)
    rank_steps = RankSteps(steps, labels.of["train"], student, packed, max_tokens, accelerator)
    if isinstance(model, DistributedDataParallel):
        settle_exchange(model, to_device(student.inputs([pairs[0]]), device), args.bf16_exchange)
    model.train()
    coming = rank_steps.coming(progress.step, total_steps, workers)
    while course.goes_on():
        # A step: gradients of the pairs' loss; an update of the weights
        tally.start()
        optimizer.zero_grad()
        step = errors = None
        with ending_out_of_memory(rank_steps.halve):
            step = next(coming).on(device)
            errors = backward(model, loss, step, accelerator)
        if errors is None:  # memory has run out: the step is taken again, in smaller forwards
            coming = None
            coming = rank_steps.coming(progress.step, total_steps, workers)
            continue
        norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        with noting_mistakes():  # the next agreement tells of them
            update(optimizer)
        schedule.step()
        progress.step += 1
        tally.add(progress.step, step, errors, norm)

    # student/ is already there, written when the best dev score was reached
    course.end()
    # Torch's group ends here. Had DDP the last hold on it, it would end with the interpreter's lock, for which the
    # group's threads may wait.
    model = accelerator.free_memory(model)
    accelerator.end_training()
    course.report()


if __name__ == "__main__":
    with listening():
        run(record(main), build_parser().parse_args())
