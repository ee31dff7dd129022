"""Checkpoints, whole or absent: written under another name, renamed when safe on disk, verified before use."""

import math
import re
import shutil
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

from accelerate import Accelerator

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import TRAINED, exchange, file_hash, read_json, replaced_folder, settle, write_json, writing
from distill.ranks import on_first_rank, together

MANIFEST = "manifest.json"
SETTINGS = "settings.json"
WEIGHTS = "model.safetensors"
BEST, LAST = "student", "last"  # the students in a run's folder
LOCK = ".lock"  # in the folder, which several may have mounted under different names
RUN = "a run"  # the kind that args.json of an output folder says


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; a user's copies have other names."""
    named = (path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted((path for path in named if path.is_dir()), key=step_of)


def file_entry(path: Path) -> dict:
    """A file's line in the manifest."""
    return {"bytes": path.stat().st_size, "xxh3_64": file_hash(path)}


def write_manifest(folder: Path) -> None:
    """Write down size and hash of every file in a folder, each safe on disk, so that damage can be seen later."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / MANIFEST, {str(path.relative_to(folder)): file_entry(path) for path in files})
    settle(folder)


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint has lost since it was written, by its manifest; None if nothing."""
    if not (checkpoint / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        if SETTINGS not in (manifest := read_json(checkpoint / MANIFEST, {})):
            return f"{MANIFEST} does not list {SETTINGS}"
        for name, entry in manifest.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes and had {entry['bytes']}"
            if file_entry(path) != entry:
                return f"the content of {name} has changed"
    except (UserError, TypeError, KeyError):
        return f"{MANIFEST} cannot be read"
    return None


@dataclass
class Progress:
    """What a run knows beside weights, optimizer, schedule and random states; registered for checkpointing."""

    step: int = 0
    logged: int = 0  # the last step with a line in metrics.jsonl
    evaluated: int = -1  # the last step with dev scores
    saved: int = 0  # the last step with a checkpoint that knows all this
    start_score: float = -1.0  # of the student before training
    best_score: float = -1.0
    best_step: int = 0
    evaluations_since_best: int = 0
    refreshed: int = 0  # the last step before which hard negatives were found anew
    negatives: str | None = None  # the name of these
    lines: int = 0  # of metrics.jsonl
    unlogged: list = field(default_factory=list)  # by rank, the sums of its next line so far

    def judge(self, score: float) -> bool:
        """Count the evaluation of this step; whether it is the best of a student that has been trained.

        UserError where the score is undefined: then there would never be a best one.
        """
        if math.isnan(score):
            raise UserError(
                f"the dev score of step {self.step} is undefined: in a set of --sts_dev all similarities are equal, so "
                "that nothing correlates; leave that set out, or choose by --metric_for_best_model mean_accuracy"
            )
        self.evaluated, self.saved = self.step, min(self.saved, self.step - 1)
        if self.step == 0:
            self.start_score = score
        better = self.step > 0 and score > self.best_score
        self.evaluations_since_best += self.step > 0
        if better:
            self.best_score, self.best_step, self.evaluations_since_best = score, self.step, 0
        return better

    def forget_best(self) -> None:
        """Evaluate anew: the best student is not at hand."""
        self.evaluated, self.best_score, self.best_step, self.evaluations_since_best = -1, -1.0, 0, 0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def chosen_by(metric: str | None, sts_dev: str | None, bitext: list[str], retrieval: list[str]) -> str:
    """The dev score that chooses the best student; UserError when it needs files that are not given."""
    best_metric = metric or ("spearman_cosine" if sts_dev else "mean_accuracy")
    needs = {
        "spearman_cosine": ("--sts_dev", sts_dev),
        "bitext_accuracy": ("--eval_bitext", bitext),
        "ndcg_at_10": ("--eval_retrieval", retrieval),
    }
    option, given = needs.get(best_metric, ("", True))
    if not given:
        raise UserError(f"--metric_for_best_model {best_metric} needs {option}")
    return best_metric


def tracked_as(output_dir: Path, checkpoint: Path | None) -> str:
    """The name under which trackers know a run: one that goes on from a checkpoint has that of its start."""
    known = read_json(output_dir / "args.json", {}).get("tracked_as") if checkpoint else None
    return known or uuid4().hex[:12]


def write_args(output_dir: Path, args: Namespace) -> None:
    """Say in a run's folder what it is of."""
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        write_json(output_dir / "args.json", vars(args) | {"kind": RUN})


def saved_student(folder: Path) -> tuple[int, float]:
    """Step and dev score of the student that lies in a run's folder; 0 and -1 where none does, or it is damaged."""
    made, weights = read_json(folder / "args.json", {}), folder / WEIGHTS
    whole = weights.is_file() and file_entry(weights) == made.get("weights")
    return (made["step"], made["score"]) if whole else (0, -1.0)


def save_student(student: SentenceEncoder, folder: Path, about: Namespace) -> None:
    """Write a student; in its args.json all of `about`, which says step and score, and what its weights are.

    What others put into its folder while the run lives is no reason to end it, and stays.
    """
    with replaced_folder(folder, about, TRAINED, keep=True) as new:
        student.save(new)
        about.weights = file_entry(new / WEIGHTS)


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, settings: dict, limit: int) -> None:
    """Make checkpoint-{step}/ appear whole, then delete all others but the `limit` - 1 before it.

    `settings` are those that a run must go on with. UserError when the disk is full; the checkpoints before are still
    there.
    """
    final = output_dir / f"checkpoint-{step}"
    temporary = output_dir / f".{final.name}.tmp"

    def clear() -> None:
        if accelerator.is_main_process:
            for leftover in output_dir.glob(".checkpoint-*.tmp"):
                shutil.rmtree(leftover)

    def begin() -> None:
        clear()
        if final.is_file() and not final.is_symlink():
            raise UserError(f"{final} is a file: move it")

    def finish() -> None:
        if accelerator.is_main_process:
            write_json(temporary / SETTINGS, settings)
            write_manifest(temporary)
            if final.is_symlink():
                final.unlink()  # what it names stays
            if not (final.exists() and exchange(temporary, final)):
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)

    try:
        for work in (begin, lambda: accelerator.save_state(str(temporary)), finish):
            together(work, accelerator, output_dir)
    except UserError as error:
        clear()
        raise UserError(f"{final} is not saved, older ones are kept; {error}") from error

    def delete() -> None:
        if not accelerator.is_main_process:
            return
        clear()
        # Later ones are of a run that went back to an earlier checkpoint.
        found = checkpoints(output_dir)
        older = [path for path in reversed(found) if step_of(path) < step]
        for path in {*found} - {final, *older[: limit - 1]}:
            if not path.is_symlink():  # which a user has put there
                shutil.rmtree(path)

    together(delete, accelerator)


def check_settings(checkpoint: Path | None, settings: dict) -> None:
    """UserError when a checkpoint's run, if there is one, has other `settings`.

    The name of a setting is an option, "--seed", or says what is wrong where the value, a fingerprint, differs.
    """
    saved = read_json(checkpoint / SETTINGS, {}) if checkpoint else settings
    for name, value in settings.items():
        if saved.get(name) != value:
            other = f"with {name} {saved.get(name)}, not {value}" if name.startswith("--") else name
            raise UserError(f"{checkpoint} was trained {other}: give the same again, or start a new run")


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, settings: dict) -> None:
    """Bring all that the accelerator holds back to a checkpoint; UserError when its run has other `settings`."""
    together(partial(check_settings, checkpoint, settings), accelerator)
    accelerator.load_state(str(checkpoint))
    accelerator.on_main_process(print)(f"resumed from {checkpoint}")


def resume(
    accelerator: Accelerator, checkpoint: Path | None, settings: dict, progress: Progress, student: Path
) -> tuple[int, float]:
    """Bring a run back to a checkpoint, if any; step and score of the student that it has.

    `student` may be of a later step than a checkpoint to which a run goes back, or not be there at all.
    """
    if checkpoint is None:
        return 0, -1.0  # what lies there is of another start, perhaps with other options
    load_checkpoint(accelerator, checkpoint, settings)
    step, score = on_first_rank(partial(saved_student, student), accelerator)
    if step == 0:
        progress.forget_best()
    return step, score


def find_checkpoint(resume_from: str | None, output_dir: Path, cache_dir: Path) -> Path | None:
    """The checkpoint folder to resume from, None to start at step 0.

    `resume_from`: None, "latest" or a checkpoint folder. UserError when that is damaged, or no checkpoint; when it is
    None, or another run's, where `output_dir` holds a run; when anything but a run or `cache_dir` lies there.
    """
    cache_dir, run = cache_dir.resolve(), output_dir.resolve()
    if cache_dir == run or not {run / BEST, run / LAST}.isdisjoint((cache_dir, *cache_dir.parents)):
        raise UserError(f"--cache_dir {cache_dir} is no place beside student and checkpoints: name another folder")
    known = {cache_dir, *cache_dir.parents, run / LOCK, run / "args.json.new"}  # the last one of a run that was killed
    if read_json(output_dir / "args.json", {}).get("kind") == RUN:
        if resume_from is None:
            raise UserError(f"{output_dir} holds a run: add --resume_from_checkpoint latest or name another folder")
        if resume_from != "latest" and Path(resume_from).parent.resolve() != output_dir.resolve():
            raise UserError(
                f"{output_dir} holds a run of its own, of which {resume_from} is none: name another folder, or go on "
                "with that run by --resume_from_checkpoint latest"
            )
    elif foreign := sorted(path.name for path in run.glob("*") if path.resolve() not in known):
        raise UserError(f"{output_dir} holds {foreign[0]}, and no args.json of a run: name another folder")
    if resume_from is None:
        return None
    if resume_from == "latest":
        *earlier, checkpoint = checkpoints(output_dir) or [None]
    else:
        earlier, checkpoint = [], Path(resume_from)
        if not (checkpoint / SETTINGS).is_file():
            raise UserError(f"{checkpoint} is no checkpoint: it has no {SETTINGS}")
    if lost := checkpoint and damage(checkpoint):
        whole = next((path for path in reversed(earlier) if damage(path) is None), None)
        advice = "no other one is whole" if earlier else "name another one"
        if whole:
            advice = f"to go on from the one before, --resume_from_checkpoint {whole}"
        raise UserError(f"{checkpoint} is damaged: {lost}; {advice}")
    return checkpoint
