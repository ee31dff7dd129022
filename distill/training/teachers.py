"""Teachers: a model, loaded only where its labels are not on disk, or a table of vectors from elsewhere."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import xxhash
from accelerate import Accelerator

from distill.command import UserError
from distill.encoder.model_folder import ends_in_normalize, find_folder, model_files, read_prompts
from distill.encoder.packing import within
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import file_hash, hashes_of
from distill.ranks import check_signal, on_first_rank
from distill.training.cache import fill, fill_by_first, fingerprint, mapped
from distill.vectors import lacking, table_files, vector_batches

CHUNK = 4096  # rows that a rank encodes at a time: sorted by length, its batches hold hardly any padding


def teacher_fingerprint(folder: Path, settings: dict) -> str:
    """A name for the vectors that a model gives: its files, the settings it is loaded with, whether they are TF32's."""
    files = [(str(path.relative_to(folder)), file_hash(path)) for path in model_files(folder)]
    tf32 = torch.cuda.is_available() and torch.get_float32_matmul_precision() == "high"
    return fingerprint(files, sorted(settings.items()), tf32)


class ModelTeacher:
    """A model whose vectors, before a last Normalize, are labels. It is loaded when it is first asked for one.

    `settings` go to `SentenceEncoder.from_pretrained`, and into the labels' name.
    """

    def __init__(self, name_or_path: str, accelerator: Accelerator, **settings):
        self.called, self.accelerator, self.settings = name_or_path, accelerator, settings
        self.name, self.normalizes, self.prompt = on_first_rank(self.read_files, accelerator)

    def read_files(self) -> tuple[str, bool, str]:
        """What the folder says without its weights being loaded: the labels' name, whether it ends in Normalize, and
        what is put before a sentence."""
        folder = find_folder(self.called)
        prompts, default = read_prompts(folder, self.settings.get("prompt"), self.settings.get("prompt_name"))
        read = prompts.get(default) or ""  # the same text by whatever name
        settings = self.settings | {"prompt": read or None, "prompt_name": None}
        return teacher_fingerprint(folder, settings), ends_in_normalize(folder), read

    @cached_property
    def encoder(self) -> SentenceEncoder:
        encoder = SentenceEncoder.from_pretrained(self.called, **self.settings)
        encoder.before_normalize = True  # the article's teachers have no such layer
        return encoder

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    def vectors(self, sentences: list[str], max_tokens: int | None = None) -> np.ndarray:
        """The vectors of sentences in the run's precision; labels are in the model's own."""
        device = self.accelerator.device
        with self.accelerator.autocast():
            return self.encoder.on(device).encode(sentences, max_tokens or (4096 if device.type == "cpu" else 16384))

    def fill(self, folder: Path, dataset, dtype: str) -> None:
        """Write the vectors of the dataset's sources to labels.bin of a cache folder, where it is not there."""

        def vectors(start: int, stop: int) -> dict[str, np.ndarray]:
            encoder, sentences = self.encoder.on(self.accelerator.device), dataset[start:stop]["source"]
            return {"labels": as_labels(self.called, encoder.encode(sentences), dtype, sentences.__getitem__)}

        fill(folder, len(dataset), vectors, self.accelerator, "teacher's labels", CHUNK)


class TableTeacher:
    """Files of one table of sentences and vectors, which are read by rank 0."""

    normalizes, prompt = False, ""

    def __init__(self, files: list[str], accelerator: Accelerator):
        self.called, self.files, self.accelerator = " ".join(files), files, accelerator
        self.name = on_first_rank(self.content, accelerator)

    def content(self) -> str:
        """A name for the content of the files."""
        return fingerprint(hashes_of(table_files(self.files)))

    @property
    def dimension(self) -> int:
        _, vectors = next(vector_batches(self.files))
        return vectors.shape[1]

    def has(self, splits: dict, contents: dict[str, str], cache_dir: Path) -> np.ndarray:
        """Whether each source sentence has a vector: (rows of all splits,) bool."""
        folder, rows = cache_dir / f"found-{fingerprint(self.name, contents)}", sum(map(len, splits.values()))

        def found(start: int, stop: int) -> dict[str, np.ndarray]:
            seen = np.zeros(stop, bool)
            for matched, _ in matches(self.files, sources(*splits.values()), stop):
                seen[matched] = True
            return {"found": seen}

        fill(folder, rows, found, self.accelerator, "sentences of the table", rows)
        return mapped(folder / "found.bin", bool)

    def fill(self, folder: Path, dataset, dtype: str) -> None:
        """Write the vectors of the dataset's sources to labels.bin of a cache folder, where it is not there.

        Of two vectors of a sentence the first counts; those that differ from it are told of.
        """

        def write(growing: Path) -> None:
            seen, differing = np.zeros(len(dataset), bool), 0
            # Written and not mapped: a full disk is an error, and the rows come in any order.
            with (growing / "labels.bin").open("w+b", buffering=0) as file:
                for rows, vectors in matches(self.files, sources(dataset), len(dataset)):
                    labels = as_labels(
                        self.called, vectors, dtype, lambda i, rows=rows: dataset[int(rows[i])]["source"]
                    )
                    for row, vector in zip(rows.tolist(), labels, strict=True):
                        content, place = vector.tobytes(), row * vector.nbytes
                        if seen[row]:
                            differing += os.pread(file.fileno(), vector.nbytes, place) != content
                        else:
                            os.pwrite(file.fileno(), content, place)
                            seen[row] = True
                os.fsync(file.fileno())
            if differing:
                print(f"{self.called}: {differing:,} vectors differ from the first of their sentence, which counts")

        fill_by_first(folder, write, self.accelerator)


Teacher = ModelTeacher | TableTeacher


def find_teachers(
    models: list[str], tables: list[list[str]], weights: list[float] | None, accelerator: Accelerator, of_models: dict
) -> list[Teacher]:
    """The teachers that are given, not loaded; UserError where there are none, or not as many as weights.

    `of_models`: settings that all models are loaded with.
    """
    if not (models or tables):
        raise UserError("no teacher is given: add --teacher_model_name_or_path or --teacher_vectors")
    if not models and (of_models.get("prompt") is not None or of_models.get("prompt_name")):
        raise UserError("a prompt is for a teacher that is a model, a table's vectors are as they are: leave it out")
    if weights and not 1 < len(weights) == len(models) + len(tables):
        given = f"{len(weights)} for {len(models) + len(tables)}"
        raise UserError(f"--teacher_weights are for several teachers, a weight each, and not {given}")
    found = [ModelTeacher(name_or_path, accelerator, **of_models) for name_or_path in models]
    return found + [TableTeacher(files, accelerator) for files in tables]


def as_labels(called: str, vectors: np.ndarray, dtype: str, sentence: Callable[[int], str]) -> np.ndarray:
    """Vectors (n, dimension) as numbers of the labels' type; UserError where one, of `sentence(i)`, is not finite."""
    with np.errstate(over="ignore"):
        labels = vectors.astype(dtype)
    finite = np.isfinite(labels).all(1)
    if not finite.all():
        raise UserError(
            f"{called}: the label of {sentence(int(finite.argmin()))!r} is not finite in {dtype}: take --teacher_dtype "
            "bf16 or fp32 for a model, and --label_dtype fp32"
        )
    return labels


def sources(*splits) -> Iterator[str]:
    """The source sentences of pairs splits."""
    for split in splits:
        for rows in split.select_columns("source").iter(1000):
            yield from rows["source"]


def matches(files: list[str], sentences: Iterable[str], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Which of `count` sentences the sentences of a table are, by their place, (n,), with their vectors (n, dimension).

    By hashes of 128 bits: neither the sentences nor the vectors are in memory.
    """

    def digests(texts: Iterable[str], count: int) -> np.ndarray:
        return np.fromiter((xxhash.xxh3_128_digest(text.encode()) for text in texts), "S16", count)

    known = digests(sentences, count)
    order = np.argsort(known, kind="stable")
    known = known[order]
    for texts, vectors in vector_batches(files):
        check_signal()
        asked = digests(texts, len(texts))
        first, last = (np.searchsorted(known, asked, side) for side in ("left", "right"))
        times = last - first  # a sentence may stand in two rows
        yield order[np.repeat(first, times) + within(times)], np.repeat(vectors, times, axis=0)


def with_vectors(
    teachers: list[Teacher], splits: dict, contents: dict[str, str], drop: bool, cache_dir: Path, accelerator
) -> tuple[dict, dict[str, str]]:
    """The splits and their fingerprints without the rows that a table has no vector for, which are counted.

    UserError where there are any and they are not to be dropped, or nothing is left of a split.
    """
    tables = [teacher for teacher in teachers if isinstance(teacher, TableTeacher)]
    if drop and not tables:
        raise UserError("--allow_missing_vectors does nothing without --teacher_vectors: give both, or leave it out")
    rows = sum(map(len, splits.values()))
    found = np.ones(rows, bool)
    for table in tables:
        found &= table.has(splits, contents, cache_dir)
    if found.all():
        return splits, contents
    called, parts = " or ".join(table.called for table in tables), {}
    for name, split in splits.items():
        parts[name], found = found[: len(split)], found[len(split) :]
    if not drop:
        examples = [splits[name][row]["source"] for name in parts for row in np.flatnonzero(~parts[name])[:3].tolist()]
        missing = sum(int((~part).sum()) for part in parts.values())
        raise UserError(f"{lacking(called, missing, rows, examples)}, or drop their rows by --allow_missing_vectors")
    if empty := [name for name, part in parts.items() if not part.any()]:
        raise UserError(
            f"{called} has no vector for any source sentence of the split {empty[0]}: give those of its sentences"
        )
    dropped = [f"{(~part).sum():,} of {len(part):,} rows of {name}" for name, part in parts.items()]
    accelerator.on_main_process(print)(f"dropped, since {called} has no vector for their source: {', '.join(dropped)}")
    kept = {name: np.flatnonzero(part) for name, part in parts.items()}
    contents = {name: fingerprint(contents[name], rows) for name, rows in kept.items()}
    return {name: split.select(kept[name]) for name, split in splits.items()}, contents
