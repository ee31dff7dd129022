"""Labels: the vector of every source sentence by one teacher or several, computed once and kept on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from distill.encoder.model_folder import behind
from distill.pairs.pairs_folder import evenly_spaced
from distill.ranks import on_first_rank, together
from distill.scoring.metrics import unit
from distill.students.turn import principal_components
from distill.training.cache import content_fingerprint, cut_off, fill, fingerprint, mapped
from distill.training.teachers import Teacher, find_teachers, with_vectors

PCA_SAMPLE = 20_000  # source sentences whose vectors the principal components are those of
CHUNK = 4096  # rows that a rank computes at a time from labels on disk


class Labels(NamedTuple):
    """Labels of each split, (rows, dimension) float32 or float16, memory-mapped; and a name for what gave them."""

    name: str
    of: dict[str, np.ndarray]


class LabelCache:
    """Where the labels of some splits lie. `contents`: the fingerprint of each split; `dtype`: that on disk."""

    def __init__(self, splits: dict, contents: dict[str, str], dtype: str, cache_dir: Path, accelerator: Accelerator):
        self.splits, self.contents, self.dtype = splits, contents, dtype
        self.cache_dir, self.accelerator = cache_dir, accelerator

    def folder(self, name: str, split: str) -> Path:
        return self.cache_dir / f"labels-{fingerprint(name, self.contents[split], self.dtype)}"

    def width(self, teacher: Teacher) -> int:
        """The width of a teacher's labels: of those on disk, where they are there, and the teacher stays unread."""
        folder, row = self.folder(teacher.name, "train"), len(self.splits["train"]) * np.dtype(self.dtype).itemsize
        found = on_first_rank(
            lambda: None if cut_off(folder) else (folder / "labels.bin").stat().st_size // row, self.accelerator
        )
        return found or together(lambda: teacher.dimension, self.accelerator)

    def read(self, name: str) -> Labels:
        """Labels that are on disk."""
        files = {split: mapped(self.folder(name, split) / "labels.bin", self.dtype) for split in self.splits}
        return Labels(name, {split: file.reshape(len(self.splits[split]), -1) for split, file in files.items()})

    def by(self, teacher: Teacher) -> Labels:
        """A teacher's labels."""
        for split, dataset in self.splits.items():
            teacher.fill(self.folder(teacher.name, split), dataset, self.dtype)
        return self.read(teacher.name)

    def derived(self, name: str, vectors: Callable[[str, int, int], np.ndarray]) -> Labels:
        """Labels made from others, `vectors(split, start, stop)` of some rows."""
        for split, dataset in self.splits.items():

            def rows(start: int, stop: int, split=split) -> dict[str, np.ndarray]:
                return {"labels": vectors(split, start, stop).astype(self.dtype)}

            fill(self.folder(name, split), len(dataset), rows, self.accelerator, "labels", CHUNK)
        return self.read(name)


class Labelling:
    """What gives a run its labels: teachers, and the rows of the splits that they have vectors for.

    `models` and `tables` name the teachers, `weights` say what each counts, if not the same; `of_models`: settings that
    models are loaded with; `drop`: leave out rows that a table has no vector for. UserError for teachers that cannot
    be had.
    """

    def __init__(
        self,
        models: list[str],
        tables: list[list[str]],
        weights: list[float] | None,
        drop: bool,
        dtype: str,
        splits: dict,
        cache_dir: Path,
        accelerator: Accelerator,
        of_models: dict | None = None,
    ):
        self.teachers = find_teachers(models, tables, weights, accelerator, of_models or {})
        alone = len(self.teachers) == 1
        reads = {"teacher" if alone else teacher.called: teacher.prompt for teacher in self.teachers}
        self.prompted, self.reads = any(reads.values()), [f"{name} reads {behind(reads[name])}" for name in reads]
        self.called, self.weights = " and ".join(teacher.called for teacher in self.teachers), weights
        contents = {name: content_fingerprint(split, accelerator) for name, split in splits.items()}
        self.splits, self.contents = with_vectors(self.teachers, splits, contents, drop, cache_dir, accelerator)
        self.cache = LabelCache(self.splits, self.contents, dtype, cache_dir, accelerator)
        self.width = sum(self.cache.width(teacher) for teacher in self.teachers)

    def labels(self, pca_width: int | None = None) -> Labels:
        """The teacher's vectors, of several teachers `combined`, perhaps `narrowed`. To be called once.

        No teacher is in memory any more when its labels are there.
        """
        cache, parts = self.cache, []
        if len(self.teachers) == 1 and self.teachers[0].normalizes:
            say = cache.accelerator.on_main_process(print)
            say("the teacher ends in Normalize: its labels are the vectors before that layer")
        while self.teachers:
            parts.append(cache.by(self.teachers.pop(0)))
        labels = parts[0] if len(parts) == 1 else combined(parts, self.weights or [1.0] * len(parts), cache)
        return narrowed(labels, pca_width, cache) if pca_width else labels


def combined(parts: list[Labels], weights: list[float], cache: LabelCache) -> Labels:
    """Labels of several teachers beside one another, each of unit length times the square root of its weight.

    So the weight is a teacher's share in the dot product of two labels, a sum of cosines, and in the squared error.
    """

    def vectors(split: str, start: int, stop: int) -> np.ndarray:
        rows = (unit(part.of[split][start:stop].astype(np.float32)) for part in parts)
        return np.concatenate([weight**0.5 * row for weight, row in zip(weights, rows, strict=True)], axis=1)

    return cache.derived(fingerprint([part.name for part in parts], weights), vectors)


def narrowed(labels: Labels, width: int, cache: LabelCache) -> Labels:
    """Labels in the directions of their first `width` principal components, found on a sample of the train split's.

    The components are those of the centred vectors but the labels are not centred, as in sentence-transformers:
    cosines depend on the origin.
    """
    name = fingerprint(labels.name, cache.contents["train"], width)
    train, folder = labels.of["train"], cache.cache_dir / f"pca-{fingerprint(name, cache.dtype)}"

    def components(start: int, stop: int) -> dict[str, np.ndarray]:
        rows = evenly_spaced(len(train), PCA_SAMPLE)
        _, found = principal_components(train[rows])
        return {"directions": found[start:stop].astype(np.float32, order="C").ravel()}

    fill(folder, width, components, cache.accelerator, "principal components", width)
    directions = mapped(folder / "directions.bin", np.float32).reshape(width, -1)
    return cache.derived(
        name, lambda split, start, stop: labels.of[split][start:stop].astype(np.float32) @ directions.T
    )
