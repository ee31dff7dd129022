"""The start of a run, and what is due between its steps: a line of metrics.jsonl, dev scores, a checkpoint, its end."""

import importlib.util
import math
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch.optim.lr_scheduler import LambdaLR

from distill.command import Stopped, UserError
from distill.encoder.sentence_encoder import SentenceEncoder, set_matmul_precision
from distill.ranks import agree, ignore_signals, launched, leave, on_first_rank, stopping, together
from distill.training.cache import fingerprint
from distill.training.checkpoints import (
    BEST,
    LAST,
    Progress,
    resume,
    save_checkpoint,
    save_student,
    tracked_as,
    write_args,
)
from distill.training.student import check_goes_on
from distill.training.watching import Metrics, Tally, evaluation_report


def start(report_to: str | None, output_dir: str, bf16_exchange: bool, allow_tf32: bool) -> Accelerator:
    """The processes of a run, each with its device; UserError where they are not those that the options are for."""
    if report_to is not None and importlib.util.find_spec(report_to) is None:
        raise UserError(f"--report_to {report_to}: it is not installed, pip install {report_to}")
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of the gradients
    accelerator = launched(log_with=report_to, project_dir=output_dir, kwargs_handlers=[ddp])
    if bf16_exchange and (accelerator.is_fsdp2 or accelerator.num_processes == 1):
        raise UserError("--bf16_exchange is for several processes that each hold the student (DDP): leave it out")
    set_matmul_precision(accelerator.device, allow_tf32)
    processes, device, precision = accelerator.num_processes, accelerator.device.type, accelerator.mixed_precision
    nodes = len(set(gather_object([socket.gethostname()])))
    say = accelerator.on_main_process(print)
    say(f"{processes} process(es) on {device}, {nodes} node(s), mixed precision: {precision}")
    return accelerator


def run_settings(options: dict, precision: str, total_steps: int, student: SentenceEncoder) -> dict:
    """What a run must go on with, as options and for `load_checkpoint`. Some schedules can be extended."""
    fixed = total_steps if options["--lr_scheduler_type"] in ("linear", "cosine") else None
    return options | {
        "--mixed_precision": precision,
        "--max_train_steps or --num_train_epochs for a number of steps of": fixed,
        "--student_prompt": repr(student.prompt),
        "from a student of other settings": fingerprint(student.settings),
    }


def begin(
    trainer: str,
    total_steps: int,
    schedule: LambdaLR,
    settings: dict,
    checkpoint: Path | None,
    output_dir: Path,
    args: Namespace,
    accelerator: Accelerator,
) -> tuple[Progress, tuple[int, float], Metrics]:
    """Where a run is, at its start or at a checkpoint; step and score of the student that it has; its metrics.

    `args`: what args.json and trackers, which know the run as the trainer's, say of it.
    """
    progress = Progress()
    accelerator.register_for_checkpointing(schedule, progress)
    saved = resume(accelerator, checkpoint, settings, progress, output_dir / BEST)
    together(partial(check_goes_on, schedule, progress.step, total_steps), accelerator)
    tracked = on_first_rank(partial(tracked_as, output_dir, checkpoint), accelerator)
    on_first_rank(partial(write_args, output_dir, Namespace(**vars(args), tracked_as=tracked)), accelerator)
    known = {"wandb": {"id": tracked, "resume": "allow"}, "trackio": {"name": tracked, "resume": "allow"}}
    accelerator.init_trackers(trainer, {name: str(value) for name, value in vars(args).items()}, known)
    return progress, saved, Metrics(output_dir, progress.lines, accelerator)


class Plan(NamedTuple):
    """How long a run is, and what is due when."""

    steps: int
    logging_steps: int  # between lines of metrics.jsonl
    eval_steps: int
    checkpointing_steps: int
    checkpoints: int  # the newest that are kept
    skip_first: bool  # evaluation, of the student as it starts
    patience: int | None  # evaluations without a better one that end it
    metric: str  # of the dev scores, which chooses the best student


class Course:
    """A run between its steps. All ranks call it.

    `saved`: step and score of the student that it has, of which args.json says all that is `about` the run.
    `settings`: those that it must go on with. `rate()` is the learning rate that the last step took, `student()` gives
    the student whole on every rank, `evaluate(student)` its dev scores.
    """

    def __init__(
        self,
        plan: Plan,
        progress: Progress,
        saved: tuple[int, float],
        about: dict,
        settings: dict,
        metrics: Metrics,
        tally: Tally,
        accelerator: Accelerator,
        rate: Callable[[], float],
        student: Callable[[], AbstractContextManager[SentenceEncoder]],
        evaluate: Callable[[SentenceEncoder], dict],
    ):
        self.plan, self.progress, self.saved, self.about, self.settings = plan, progress, saved, about, settings
        self.metrics, self.tally, self.accelerator = metrics, tally, accelerator
        self.rate, self.student, self.evaluate = rate, student, evaluate
        self.output_dir = metrics.path.parent

    def goes_on(self) -> bool:
        """Do what is due, before the first step and after every one; whether there is another."""
        progress, plan = self.progress, self.plan
        if self.due(progress.logged, plan.logging_steps, plan.eval_steps, plan.checkpointing_steps):
            self.metrics.write(progress.step, {"learning_rate": self.rate()} | self.tally.line())
            progress.logged = progress.step
        if not (plan.skip_first and progress.step == 0) and self.due(progress.evaluated, plan.eval_steps):
            with suppress(Stopped), self.student() as found:  # after a signal it is still to come
                self.judge(found)
        agree(self.accelerator)
        if progress.step > 0 and self.due(progress.saved, 1 if stopping() else plan.checkpointing_steps):
            progress.lines, progress.unlogged = len(self.metrics.lines), self.tally.unlogged()
            progress.saved = progress.step
            save_checkpoint(self.accelerator, self.output_dir, progress.step, self.settings, plan.checkpoints)
        return not (self.done() or stopping())

    def done(self) -> bool:
        """Whether there is no step more to take."""
        patience = self.plan.patience or math.inf
        return self.progress.step >= self.plan.steps or self.progress.evaluations_since_best >= patience

    def due(self, last: int, *every: int) -> bool:
        """Whether something is due that was last done at step `last`: `every` so many steps, and at the end."""
        step = self.progress.step
        return last < step and (self.done() or any(step % number == 0 for number in every))

    def judge(self, student: SentenceEncoder) -> None:
        """Evaluate a student, say so, and keep it where it is the best, or the last."""
        progress, scores = self.progress, self.evaluate(student)
        self.metrics.write(progress.step, scores)
        better = progress.judge(scores[self.plan.metric])
        tell = self.accelerator.on_main_process(self.tally.bar.write)
        tell(evaluation_report(progress, self.plan.metric, scores), sys.stderr)
        if better and progress.best_score >= self.saved[1]:
            self.saved = progress.best_step, progress.best_score
            self.keep(student, BEST, *self.saved)
        if self.done():
            self.keep(student, LAST, progress.step, scores[self.plan.metric])

    def keep(self, student: SentenceEncoder, name: str, step: int, score: float) -> None:
        """Write a student into the run's folder under a name."""
        about = Namespace(**self.about, step=step, score=score)
        save = partial(save_student, student, self.output_dir / name, about)
        on_first_rank(save, self.accelerator, self.output_dir)

    def end(self) -> None:
        """Let no signal change the exit code any more, which is decided: a script that ends has others signalled."""
        ignore_signals()
        self.tally.bar.close()

    def report(self) -> None:
        """Say what the run has done; raises Stopped where it was stopped before its end."""
        if not self.done() or self.progress.evaluated < self.progress.step:
            leave()
        say = self.accelerator.on_main_process(print)
        if self.tally.pairs:
            say(self.tally.summary())
        step, score = self.saved
        say(f"{self.output_dir / BEST}: step {step}, dev {self.plan.metric} {score:.4f}")
