"""Checkpoints, whole or absent: written under another name, renamed when safe on disk, verified before use."""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from distill.folders import UserError, check_replaceable, exchange, read_json, write_json
from distill.ranks import on_first_rank, together
from distill.training.steps import fingerprint

MANIFEST = "manifest.json"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(output_dir.glob("checkpoint-*[0-9]"), key=step_of)


def file_entry(path: Path) -> dict:
    """A file's line in the manifest."""
    size = path.stat().st_size
    return {"bytes": size, "xxh3_64": fingerprint(np.memmap(path, mode="r") if size else b"")}


def write_manifest(folder: Path) -> None:
    """Write down size and hash of every file in a folder, each safe on disk, so that damage can be seen later."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / MANIFEST, {str(path.relative_to(folder)): file_entry(path) for path in files})
    for path in (*files, folder / MANIFEST, folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint has lost since it was written, by its manifest; None if nothing."""
    try:
        manifest = read_json(checkpoint / MANIFEST, None)
    except ValueError:
        return f"{MANIFEST} cannot be read"
    if manifest is None:
        return f"{MANIFEST} is missing"
    for name, entry in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes and had {entry['bytes']}"
        if file_entry(path) != entry:
            return f"the content of {name} has changed"
    return None


def new_state(order: str, options: dict, languages: int) -> dict:
    """What a checkpoint holds beside weights, optimizer, schedule and random states, at the start of a run.

    `order` and `options` are those that a run must go on with; `languages` is the number of target languages.
    """
    state = {"order": order, "options": options}
    state |= {"step": 0, "evaluated": -1, "max_tokens": None}  # tokens of a forward, once memory has run out
    state |= {"best_score": -1.0, "best_step": 0, "evaluations_since_best": 0}
    # Of metrics.jsonl: how many lines it has; by rank, the sums of the next one so far, and its seconds.
    return state | {"lines": 0, "unlogged": [np.zeros((2, 1 + languages)).tolist()], "seconds": 0.0}


def save_checkpoint(accelerator: Accelerator, output_dir: Path, state: dict, limit: int) -> None:
    """Make checkpoint-{step}/ appear whole, then delete all others but the `limit` - 1 before it.

    UserError when the disk is full; the checkpoints before are still there.
    """
    final = output_dir / f"checkpoint-{state['step']}"
    temporary = output_dir / f".{final.name}.tmp"

    def clear() -> None:
        if accelerator.is_main_process:
            for leftover in output_dir.glob(".checkpoint-*.tmp"):
                shutil.rmtree(leftover)

    def finish() -> None:
        if accelerator.is_main_process:
            write_json(temporary / "trainer_state.json", state)
            write_manifest(temporary)
            if not (final.exists() and exchange(temporary, final)):
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)

    try:
        for work in (clear, lambda: accelerator.save_state(str(temporary)), finish):
            together(work, accelerator, output_dir, cut_short=False)
    except UserError as error:
        clear()
        raise UserError(f"{final} is not saved, older ones are kept; {error}") from error
    clear()
    if accelerator.is_main_process:
        # Later ones are of a run that went back to an earlier checkpoint.
        found = checkpoints(output_dir)
        older = [path for path in reversed(found) if step_of(path) < state["step"]]
        for path in {*found} - {final, *older[: limit - 1]}:
            shutil.rmtree(path)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, state: dict) -> dict:
    """Bring all that the accelerator holds back to a checkpoint; returns its state.

    UserError when it is of a run with other options, or another order of the pairs, than the new `state` has.
    """
    saved = read_json(checkpoint / "trainer_state.json", {})
    for name, value in state["options"].items():
        if saved["options"][name] != value:
            raise UserError(
                f"{checkpoint} was trained with --{name} {saved['options'][name]}, not {value}: give the same again, "
                "or start a new run"
            )
    if saved["order"] != state["order"]:
        raise UserError(f"{checkpoint} was trained on other pairs, or with another tokenizer")
    accelerator.load_state(str(checkpoint))
    accelerator.on_main_process(print)(f"resumed from {checkpoint}")
    return saved


def own_part(parts: list, accelerator: Accelerator) -> Tensor:
    """A rank's own of numbers saved for each rank; all of them on rank 0 where the number of ranks has changed."""
    parts = torch.tensor(parts, device=accelerator.device)
    if len(parts) == accelerator.num_processes:
        return parts[accelerator.process_index]
    return parts.sum(0) * accelerator.is_main_process


def _find(resume_from: str | None, output_dir: Path) -> Path | None:
    check_replaceable(output_dir / "student")
    if resume_from is None:
        if (output_dir / "args.json").exists():
            raise UserError(f"{output_dir} holds a run: add --resume_from_checkpoint latest or name another folder")
        return None
    if resume_from == "latest":
        *earlier, checkpoint = checkpoints(output_dir) or [None]
    else:
        earlier, checkpoint = [], Path(resume_from)
        if not (checkpoint / "trainer_state.json").is_file():
            raise UserError(f"{resume_from} is no checkpoint: it has no trainer_state.json")
    lost = checkpoint and damage(checkpoint)
    if lost:
        whole = next((path for path in reversed(earlier) if damage(path) is None), None)
        advice = "no other one is whole" if earlier else "name another one"
        if whole:
            advice = f"to go on from the one before, --resume_from_checkpoint {whole}"
        raise UserError(f"{checkpoint} is damaged: {lost}; {advice}")
    return checkpoint


def find_checkpoint(resume_from: str | None, output_dir: Path, accelerator: Accelerator) -> Path | None:
    """The checkpoint folder to resume from, None to start at step 0, as rank 0 finds it.

    `resume_from`: None, "latest" or a checkpoint folder. UserError when that is damaged, or no checkpoint; when it is
    None where `output_dir` holds a run; and when the student could not be written there.
    """
    return on_first_rank(partial(_find, resume_from, output_dir), accelerator)
