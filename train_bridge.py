"""Teach a student to find translations: the article's other approach (Reimers & Gurevych 2020, arXiv 2004.09813).

    accelerate launch train_bridge.py --pairs_dir pairs/ --output_dir run/ \\
        --student_model_name_or_path xlm-roberta-base --sts_dev 'stsb-{en,it}-dev.csv'

A dual encoder with shared weights and no teacher: of a step's sentences each has to be nearest to its translation, the
others are its negatives; with --hard_negatives also the nearest wrong translations of all. So the loss depends on
--batch_size, but neither on the number of processes nor on that of forwards. With --english_pairs a share of the steps
ranks what means the same in English. `run/student/` is a sentence-transformers folder.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel

from distill.command import Parser, Stopped, UserError, at_least, between, not_empty, not_negative, positive, run, share
from distill.encoder.packing import ending_out_of_memory, to_device
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import TRAINED, check_output, claimed
from distill.mining.negatives import as_it_is, hard_negatives, kept_negatives
from distill.pairs.pairs_folder import load_splits, pairs_report
from distill.ranks import listening, noting_mistakes, on_first_rank, together
from distill.students.audit import check_tokenizer
from distill.training.cache import content_fingerprint
from distill.training.checkpoints import BEST, LAST, LOCK, check_settings, chosen_by, find_checkpoint
from distill.training.course import Course, Plan, begin, run_settings, start
from distill.training.english import ANCHOR, EnglishPairs, read_english
from distill.training.options import DECIDING, add_common
from distill.training.ranking import Ranking, choices
from distill.training.steps import RankStep, RankSteps, Steps, Turns, few_pairs
from distill.training.student import (
    LearningRates,
    gathered,
    open_student,
    optimizer_and_schedule,
    packs,
    rate_factor,
    settle_decay,
    settle_exchange,
    shape_student,
    update,
)
from distill.training.teachers import ModelTeacher
from distill.training.tokens import UNTRANSLATED, TokenizedPairs
from distill.training.watching import Tally, chooser_fingerprint, evaluate, progress_bar, read_dev_data

# Beside those of both trainers.
OWN_DECIDING = ("scale", "margin", "hard_negatives", "relative_margin", "refresh_negatives", "english_share")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, "accelerate launch", __file__)
    # fmt: off
    data = parser.add_argument_group("data and student")
    data.add_argument("--pairs_dir", required=True, help="folder of build_pairs.py")
    data.add_argument("--student_model_name_or_path", required=True, help="multilingual model, folder or hub id")
    data.add_argument("--output_dir", required=True, help="folder for metrics, checkpoints and the student")
    data.add_argument("--cache_dir", help="folder for what is computed once (if not given: cache/ in the pairs folder)")
    prompts = data.add_mutually_exclusive_group()
    prompts.add_argument("--student_prompt", type=str, metavar="TEXT", help="put before what it reads ('': nothing)")
    prompts.add_argument("--student_prompt_name", metavar="NAME", help="its folder's (if not given: the default)")
    data.add_argument("--max_seq_length", type=at_least(1), default=128, help="tokens the student reads of a sentence")
    data.add_argument("--allow_unknown_tokens", action="store_true", help="even above 5%% of a language's tokens")
    task = parser.add_argument_group("task")
    task.add_argument("--batch_size", type=at_least(2), default=64, help="pairs per step, over all processes")
    task.add_argument("--scale", type=positive, default=20.0, help="times the cosines")
    task.add_argument("--margin", type=not_negative, default=0.0, help="taken from the cosine of a pair")
    task.add_argument("--hard_negatives", type=at_least(0, 1000), default=0, metavar="K", help="of each source")
    task.add_argument("--negatives_model_name_or_path", metavar="M", help="finds them (if not given: the student)")
    task.add_argument("--negatives_prompt", type=str, metavar="TEXT", help="that it reads (if not given: its folder's)")
    task.add_argument("--relative_margin", type=share, metavar="R", help="by which right ones are nearer (0.05)")
    task.add_argument("--refresh_negatives", type=at_least(1), metavar="M", help="find them anew every M steps")
    english = "tables with the columns anchor, positive and perhaps negative"
    task.add_argument("--english_pairs", type=not_empty, nargs="+", metavar="SPEC", help=english)
    task.add_argument("--english_share", type=between(0.001, 0.999), metavar="S", help="of the steps, on these (0.5)")
    training = parser.add_argument_group("training")
    add_common(parser, training)
    # fmt: on
    return parser


def backward(model, ranking: Ranking, step: RankStep, accelerator: Accelerator) -> list[Tensor]:
    """Gradients of the step's loss, summed over its micro-batches; the errors (1, n) of this rank's sentences.

    Each is compared with those of all micro-batches and ranks. So the gradients of all vectors come first, those of
    the weights from them, micro-batch by micro-batch: GradCache, Gao et al. 2021, arXiv 2101.06983.
    """
    at_once = len(step.inputs) == 1  # then one forward gives the vectors, and is gone back through
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.set_grad_enabled(at_once), torch.random.fork_rng(devices, enabled=not at_once):
        parts = [model(**inputs) for inputs in step.inputs]
    mine = torch.cat(parts).detach()
    # Each rank puts its vectors in their places, and the sum over the ranks has all; what only takes part comes last
    placed = mine.new_zeros(step.size + 1, mine.shape[1]).index_copy(0, step.places, mine)
    vectors = accelerator.reduce(placed)[:-1].requires_grad_()
    errors = ranking.errors(vectors, **step.of_all)
    (errors.sum() / step.weight).backward()
    gradients = torch.cat([vectors.grad, torch.zeros_like(mine[:1])])[step.places].split(step.sizes)
    for number, (inputs, gradient) in enumerate(zip(step.inputs, gradients, strict=True), 1):
        # Gradients are exchanged with the last one; DDP takes their mean over the ranks, the loss is their sum
        last = number == len(step.sizes) or accelerator.is_fsdp2
        with nullcontext() if last else accelerator.no_sync(model):
            found = parts[0] if at_once else model(**inputs)
            accelerator.backward((found * gradient).sum() * accelerator.num_processes)
    # Of vectors that are no numbers all errors are none: only theirs say so
    errors = errors.detach().nan_to_num().masked_fill(~vectors.isfinite().all(1), torch.nan)
    return [torch.cat([errors, errors.new_zeros(1)])[step.places][None]]


# ---------------------------------------------------------------- what the run is made of


def settle_task(args: argparse.Namespace) -> None:
    """Make what is not given what it is then; UserError for options of hard negatives where there are none."""
    for option in ("negatives_model_name_or_path", "relative_margin", "refresh_negatives"):
        if getattr(args, option) is not None and not args.hard_negatives:
            raise UserError(f"--{option} does nothing without --hard_negatives: give both, or leave it out")
    if args.negatives_prompt is not None and not args.negatives_model_name_or_path:
        raise UserError("--negatives_prompt is for --negatives_model_name_or_path: the student has --student_prompt")
    if args.hard_negatives and args.relative_margin is None:
        args.relative_margin = 0.05
    if args.english_share is not None and not args.english_pairs:
        raise UserError("--english_share does nothing without --english_pairs: give both, or leave it out")
    if args.english_pairs and args.english_share is None:
        args.english_share = 0.5
    if args.batch_size <= args.translations_per_source:
        raise UserError("--batch_size must be above --translations_per_source: else a step has nothing to choose among")
    if args.torch_compile and args.dropout:
        raise UserError("--torch_compile with --dropout: a sentence is encoded twice, and would drop out differently")


def find_student(args: argparse.Namespace, accelerator: Accelerator) -> SentenceEncoder:
    """The student, as training is told to shape it."""
    set_seed(args.seed)  # the same on all ranks, for weights that it gets anew
    reads = args.student_model_name_or_path, args.max_seq_length, args.student_prompt, args.student_prompt_name
    student = open_student(*reads, accelerator)
    if student.prompt:
        accelerator.on_main_process(print)(f"student reads {student.reads}")
    shape = args.freeze_embeddings, args.freeze_layers, args.torch_compile, args.gradient_checkpointing, args.dropout
    shape_student(student, *shape)
    return student


def find_negatives(args: argparse.Namespace, find: Callable, accelerator: Accelerator) -> tuple:
    """What training begins with of `hard_negatives`, and its name; none where not asked for. UserError where none is.

    The model that finds them is not in memory afterwards.
    """
    if not args.hard_negatives:
        return None, None
    # Another model reads its folder's prompt
    prompts = {"prompt": args.student_prompt, "prompt_name": args.student_prompt_name}
    if args.negatives_model_name_or_path:
        prompts = {"prompt": args.negatives_prompt}
    model = ModelTeacher(args.negatives_model_name_or_path or args.student_model_name_or_path, accelerator, **prompts)
    found, name = find(model)
    if not on_first_rank(lambda: (found >= 0).any(), accelerator):
        raise UserError("no source has a hard negative: lower --relative_margin, or leave out --hard_negatives")
    return found, name


def find_steps(
    args: argparse.Namespace, pairs: TokenizedPairs, english: EnglishPairs | None, accelerator: Accelerator
) -> tuple[Steps, Steps | Turns, int]:
    """What each step on translations is made of, what each of all, and how many the run takes."""
    size, most, seed = args.batch_size, args.translations_per_source, args.seed

    def found() -> tuple[Steps, Steps | Turns]:
        # A step of one source alone would have nothing to choose among
        first = Steps(pairs, size, most, args.language_temperature, seed, fewest=most + 1)
        if not english:
            return first, first
        second = Steps(english.pairs, size, 1, 1.0, seed, negatives=english.negatives, fewest=2)
        return first, Turns(first, second, args.english_share)

    translations, steps = together(found, accelerator)
    if few := few_pairs(size, accelerator):
        accelerator.on_main_process(print)(few)
    return translations, steps, args.max_train_steps or max(1, round(args.num_train_epochs * steps.per_epoch))


# ---------------------------------------------------------------- the run


def main(args: argparse.Namespace) -> None:
    settle_task(args)
    settle_decay(args)
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

    # Data and student; token ids and hard negatives once
    splits = together(partial(load_splits, args.pairs_dir), accelerator)
    trained_on = on_first_rank(partial(pairs_report, args.pairs_dir), accelerator)
    data, notes = together(partial(read_dev_data, *dev_files), accelerator)
    for note in notes:
        say(note)
    student = together(partial(find_student, args, accelerator), accelerator)
    specs = args.english_pairs or []
    english = read_english(specs, student, cache_dir, accelerator) if specs else None
    content = content_fingerprint(splits["train"], accelerator)
    pairs = TokenizedPairs(splits["train"], content, student, cache_dir, accelerator)
    if UNTRANSLATED in pairs.languages or len(splits["train"]) < 2:
        lacks = "two source sentences to choose among, and no rows without translations (--keep_untranslated)"
        raise UserError(f"{args.pairs_dir}: build the pairs anew, this trainer needs {lacks}")
    trained_on |= pairs.counts(("source", "target"))
    trained_on["corpora"] += specs
    read = student.tokenizer, splits["train"], pairs, args.allow_unknown_tokens
    say(on_first_rank(partial(check_tokenizer, *read), accelerator))
    translations, steps, total_steps = find_steps(args, pairs, english, accelerator)

    # What a run that goes on must go on with; hard negatives, which take long
    options = {f"--{name}": getattr(args, name) for name in (*DECIDING, *OWN_DECIDING)}
    settings = run_settings(options, accelerator.mixed_precision, total_steps, student) | {
        "on other pairs, or with another tokenizer": translations.fingerprint,
        "on other English pairs": english and english.pairs.fingerprint,
        "for another --metric_for_best_model, or on other files for it": chooser_fingerprint(best_metric, data),
    }
    together(partial(check_settings, checkpoint, settings), accelerator)
    given = {"cache_dir": cache_dir, "accelerator": accelerator}
    asked = given | {"k": args.hard_negatives, "relative_margin": args.relative_margin}
    mined = partial(hard_negatives, splits["train"], content, pairs, **asked)
    translations.negatives, settings["on other hard negatives"] = find_negatives(args, mined, accelerator)

    # Optimizer and schedule
    ranking = Ranking(args.scale, args.margin)
    factor = rate_factor(args.lr_scheduler_type, total_steps, args.warmup_ratio, args.decay_ratio)
    rates = LearningRates(args.learning_rate)
    optimizer, schedule = optimizer_and_schedule(student, rates, factor, args.adam_epsilon, args.weight_decay)
    # FSDP spreads the student over the ranks, where only training can use it.
    whole = deepcopy(student).cpu() if accelerator.is_fsdp2 else student
    model, optimizer = accelerator.prepare(student, optimizer)

    set_seed(args.seed, device_specific=True)  # from here on no random number is taken but by training

    # Resume
    progress, saved, metrics = begin(
        "train_bridge", total_steps, schedule, settings, checkpoint, output_dir, args, accelerator
    )
    if progress.negatives:
        translations.negatives = kept_negatives(progress.negatives, len(splits["train"]), **given)
    bar = ends.enter_context(progress_bar(*map(steps.pairs_before, (progress.step, total_steps)), accelerator))
    dataset, languages = splits["train"], pairs.languages
    if english:
        dataset = datasets.concatenate_datasets([dataset, english.dataset])
        languages = [*languages, ANCHOR, *english.pairs.languages]
    tally = Tally(ranking, dataset, languages, output_dir, progress.unlogged, bar, accelerator)

    def dev_scores(found: SentenceEncoder) -> dict:
        return evaluate(found, splits["dev"], None, data, accelerator)

    every = args.logging_steps, args.eval_steps, args.checkpointing_steps, args.checkpoints_total_limit
    plan = Plan(total_steps, *every, args.skip_first_evaluation, args.early_stopping_patience, best_metric)
    about, rate = vars(args) | {"trained_on": trained_on}, lambda: args.learning_rate * factor(progress.step - 1)
    find = partial(gathered, whole, student, device)
    course = Course(plan, progress, saved, about, settings, metrics, tally, accelerator, rate, find, dev_scores)

    # The loop
    packed = together(partial(packs, student, args.attn_implementation, args.dropout, accelerator), accelerator)
    rank_steps = RankSteps(steps, None, student, packed, max_tokens, accelerator, choices)
    if isinstance(model, DistributedDataParallel):
        settle_exchange(model, to_device(student.inputs([pairs[0]]), device), args.bf16_exchange)
    model.train()
    coming = rank_steps.coming(progress.step, total_steps, workers)
    while course.goes_on():
        # Hard negatives of the student as it is now
        if args.refresh_negatives and progress.refreshed < progress.step and not progress.step % args.refresh_negatives:
            with suppress(Stopped), find() as found:  # after a signal it is still to come
                translations.negatives, progress.negatives = mined(as_it_is(found, max_tokens, accelerator))
                progress.refreshed = progress.step
            coming = None
            coming = rank_steps.coming(progress.step, total_steps, workers)
            continue
        # A step: gradients of the ranking loss; an update of the weights
        tally.start()
        optimizer.zero_grad()
        step = errors = None
        with ending_out_of_memory(rank_steps.halve):
            step = next(coming).on(device)
            errors = backward(model, ranking, step, accelerator)
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
