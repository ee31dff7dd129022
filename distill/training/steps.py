"""What a step is made of: token ids and labels from disk, the order of an epoch, steps, micro-batches.

Everything that grows with the corpus is a memory-mapped file, so that training's own memory does not grow with it.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distill.encoder.sentence_encoder import SentenceEncoder, to_device, tokenize
from distill.folders import LoneError, writing
from distill.ranks import on_first_rank, together


def fingerprint(*parts) -> str:
    """A name for content: of byte buffers as they are, of anything else as its text."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part if isinstance(part, bytes | memoryview | np.ndarray) else repr(part).encode())
    return digest.hexdigest()


def tokenizer_text(tokenizer) -> str:
    """A tokenizer as JSON, without the truncation and padding that its last call left behind."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(content | {"truncation": None, "padding": None})


def file_bytes(dataset) -> list[np.ndarray]:
    """The Arrow files of a pairs split, memory-mapped, to fingerprint."""
    return [np.memmap(file["filename"], mode="r") for file in dataset.cache_files]


def mapped(path: Path, dtype) -> np.ndarray:
    """The numbers of a raw file, read from disk as they are used."""
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def scratch(folder: Path, length: int) -> np.ndarray:
    """An int32 array (length,) in an unnamed file of `folder`: it takes disk, not memory, and ends with its user.

    LoneError when the disk has no room for it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 4 * length)  # else a full disk is met later, and ends the process
        except OSError as error:
            raise LoneError(
                f"{folder} has no room for the order of an epoch ({os.strerror(error.errno)}): free some of it and add "
                "--resume_from_checkpoint latest"
            ) from error
        return np.memmap(file, np.int32, mode="r+", shape=length).view(np.ndarray)


# ---------------------------------------------------------------- caches: token ids and labels


def build_on_all_ranks(
    folder: Path,
    rows: int,
    compute: Callable[[int, int], dict[str, np.ndarray]],
    accelerator: Accelerator,
    description: str,
    chunk: int,
    summed: tuple[str, ...] = (),
) -> None:
    """Fill `folder` with the arrays that `compute(start, stop)` gives for chunks of rows, in order, as NAME.bin.

    Ranks take chunks in turn, each written to a file of its own, which a run that was killed finds again; rank 0
    joins them. The folder appears by rename, so it is whole or absent, and a later run finds it; of several at a time
    one builds it and the others wait. Arrays named in `summed` are joined as the running sum over all of their numbers.
    Raises what `together` raises.
    """
    parts, joined = folder.with_suffix(".parts"), folder.with_suffix(".tmp")
    starts = range(0, rows, chunk)

    def compute_part(start: int) -> None:
        part = parts / f"{start:012d}.npz"
        if start < rows and not part.exists():
            np.savez(part.with_suffix(".tmp.npz"), **compute(start, min(start + chunk, rows)))
            part.with_suffix(".tmp.npz").rename(part)

    def join() -> None:
        if not accelerator.is_main_process:
            return
        shutil.rmtree(joined, ignore_errors=True)
        joined.mkdir()
        totals = dict.fromkeys(summed, 0)
        for start in starts:
            for name, array in np.load(parts / f"{start:012d}.npz").items():
                if name in summed:
                    array = totals[name] + np.cumsum(array, dtype=np.int64)
                    totals[name] = array[-1]
                with open(joined / f"{name}.bin", "ab") as file:
                    array.tofile(file)
        if folder.is_dir():  # of a run that could not be seen, on a file system without locks
            shutil.rmtree(joined)
        else:
            joined.rename(folder)

    with turn_to_build(folder, accelerator) as ours:
        if ours:
            parts.mkdir(parents=True, exist_ok=True)
            world, rank = accelerator.num_processes, accelerator.process_index
            with tqdm(total=rows, desc=description, unit=" rows", disable=not accelerator.is_main_process) as bar:
                for first in range(0, rows, world * chunk):
                    together(partial(compute_part, first + rank * chunk), accelerator, folder.parent)
                    bar.update(min(world * chunk, rows - first))
            together(join, accelerator, folder.parent)
        if accelerator.is_main_process:
            shutil.rmtree(parts, ignore_errors=True)


@contextmanager
def turn_to_build(folder: Path, accelerator: Accelerator) -> Iterator[bool]:
    """Whether `folder` is this run's to build, all of whose ranks must ask; first waits for one that is at it.

    Rank 0 looks for all, since on a network file system another node may not see the folder yet, and holds a lock on
    a file beside it, which the kernel takes from a run that dies.
    """
    lock = None

    def turn() -> str:
        nonlocal lock
        if not folder.is_dir():
            with writing(folder.parent):
                folder.parent.mkdir(parents=True, exist_ok=True)
                lock = lock or folder.with_suffix(".lock").open("w")
            if not locked(lock):
                return "theirs"
        return "there" if folder.is_dir() else "ours"

    whose = on_first_rank(turn, accelerator)
    if whose == "theirs":
        accelerator.on_main_process(print)(f"another run makes {folder}: waiting for it")
    while whose == "theirs":
        together(partial(time.sleep, 1), accelerator)
        whose = on_first_rank(turn, accelerator)
    yield whose == "ours"
    if lock is not None:
        Path(lock.name).unlink(missing_ok=True)
        lock.close()


def locked(file) -> bool:
    """Whether this process has a file's lock now; on a file system that knows no locks, everyone has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


class TokenizedPairs:
    """A pairs split as token ids and tables of int32 and int64, memory-mapped.

    Sentences stand in row order, each source before its translations; pairs stand in the order of their targets.
    """

    def __init__(self, dataset, tokenizer, max_seq_length: int, cache_dir: Path, accelerator: Accelerator):
        table = dataset.with_format("arrow")
        found = [pc.unique(pc.list_flatten(chunk).field("language")) for chunk in table.data.column("targets").chunks]
        self.languages = sorted(pa.chunked_array(found).unique().to_pylist())
        number = {language: i for i, language in enumerate(self.languages)}

        def token_ids(start: int, stop: int) -> dict[str, np.ndarray]:
            rows = table[start:stop].to_pylist()
            sentences = [s for row in rows for s in (row["source"], *(t["sentence"] for t in row["targets"]))]
            ids = tokenize(tokenizer, sentences, max_seq_length)
            counts = [len(row["targets"]) for row in rows]
            # The running sums begin with 0, so that item i lies between sums i and i + 1.
            zero = [0] * (start == 0)
            return {
                "ids": np.concatenate(ids).astype(np.int32),
                "offsets": np.array(zero + [len(sentence) for sentence in ids]),
                "first_pair": np.array(zero + counts),
                "row_of_pair": np.repeat(np.arange(start, stop, dtype=np.int32), counts),
                "language_of_pair": np.array([number[t["language"]] for r in rows for t in r["targets"]], np.int32),
            }

        self.fingerprint = fingerprint(*file_bytes(dataset), tokenizer_text(tokenizer), max_seq_length)
        self.folder = cache_dir / f"tokens-{self.fingerprint}"
        summed = ("offsets", "first_pair")
        build_on_all_ranks(self.folder, len(dataset), token_ids, accelerator, "token ids", 2048, summed)
        self.ids = mapped(self.folder / "ids.bin", np.int32)
        self.offsets = mapped(self.folder / "offsets.bin", np.int64)
        self.first_pair = mapped(self.folder / "first_pair.bin", np.int64)
        self.row_of_pair = mapped(self.folder / "row_of_pair.bin", np.int32)
        self.language_of_pair = mapped(self.folder / "language_of_pair.bin", np.int32)

    def __getitem__(self, sentence: int) -> np.ndarray:
        """Token ids (length,) of a sentence."""
        return self.ids[self.offsets[sentence] : self.offsets[sentence + 1]]

    def lengths(self, sentences: np.ndarray) -> np.ndarray:
        """Tokens of each sentence."""
        return self.offsets[sentences + 1] - self.offsets[sentences]

    def source_of_row(self, rows: np.ndarray) -> np.ndarray:
        """The sentence that is the source of each row: before it stand the earlier rows' sources and targets."""
        return rows + self.first_pair[rows]

    def evenly(self, size: int, block: int = 1 << 16) -> list[np.ndarray]:
        """At most `size` pairs of each language, evenly spaced, as the numbers of their rows."""
        have, _ = pairs_per_language(self, temperature=1)
        every, seen, found = -(-have // size), np.zeros_like(have), [[] for _ in have]
        for start in range(0, len(self.language_of_pair), block):
            part = self.language_of_pair[start : start + block]
            for language, rows in enumerate(found):
                its = np.flatnonzero(part == language)
                rows.append(
                    self.row_of_pair[start + its[(seen[language] + np.arange(len(its))) % every[language] == 0]]
                )
                seen[language] += len(its)
        return [np.concatenate(rows) for rows in found]

    def target_of_pair(self, pairs: np.ndarray) -> np.ndarray:
        """The sentence that is the target of each pair: before it stand earlier targets, and sources to its own."""
        return pairs + self.row_of_pair[pairs] + 1


def teacher_fingerprint(teacher: SentenceEncoder) -> str:
    """A name for the vectors that a teacher gives: its weights, tokenizer and settings."""
    weights = [weight.detach().cpu().numpy().reshape(-1).view(np.uint8) for weight in teacher.state_dict().values()]
    settings = (teacher.pooling, teacher.normalize, teacher.max_seq_length, teacher.prompt)
    return fingerprint(*weights, tokenizer_text(teacher.tokenizer), settings)


def teacher_labels(
    teacher: SentenceEncoder, dataset, dtype: str, cache_dir: Path, accelerator: Accelerator
) -> np.ndarray:
    """The teacher's vector of every source sentence, (rows, dimension) float32 or float16, computed once."""
    folder = cache_dir / f"labels-{fingerprint(*file_bytes(dataset), teacher_fingerprint(teacher), dtype)}"

    def labels(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"labels": teacher.encode(dataset[start:stop]["source"]).astype(dtype)}

    # The teacher sorts a chunk by length: in a big one its batches hold hardly any padding.
    build_on_all_ranks(folder, len(dataset), labels, accelerator, "teacher's labels", 4096)
    return mapped(folder / "labels.bin", dtype).reshape(len(dataset), teacher.dimension)


def append_pca(
    teacher: SentenceEncoder, dataset, width: int, cache_dir: Path, accelerator: Accelerator, sample: int = 20_000
) -> None:
    """Narrow a teacher's vectors to their first `width` principal components, by a layer at its end.

    Fitted on the vectors of a sample of the sources, and kept beside the labels. The components are those of the
    centred vectors but the layer does not centre, as in sentence-transformers: cosines depend on the origin.
    """
    rows = np.linspace(0, len(dataset) - 1, min(sample, len(dataset))).astype(int)
    name = fingerprint(*file_bytes(dataset), teacher_fingerprint(teacher), len(rows))
    sample_folder, folder = cache_dir / f"sample-{name}", cache_dir / f"pca-{name}-{width}"

    def vectors(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"vectors": teacher.encode(dataset[rows[start:stop]]["source"])}

    def directions(start: int, stop: int) -> dict[str, np.ndarray]:
        found = mapped(sample_folder / "vectors.bin", np.float32).reshape(len(rows), teacher.dimension)
        _, rising = np.linalg.eigh(np.cov(found.astype(np.float64), rowvar=False))  # sorted by variance
        return {"directions": rising.T[::-1][start:stop].astype(np.float32)}

    build_on_all_ranks(sample_folder, len(rows), vectors, accelerator, "sample for the PCA", 1024)
    build_on_all_ranks(folder, width, directions, accelerator, "principal components", width)
    linear = torch.nn.Linear(teacher.dimension, width, bias=False)
    found = mapped(folder / "directions.bin", np.float32).reshape(width, teacher.dimension)
    linear.weight.data = torch.from_numpy(found.copy()).to(accelerator.device)
    teacher.dense.append(torch.nn.Sequential(linear, torch.nn.Identity()))


# ---------------------------------------------------------------- steps


def pairs_per_language(pairs: TokenizedPairs, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """How many pairs each language has, and how many an epoch takes: in proportion to count ** (1 / temperature).

    Both (languages,) int64 with the same sum. At temperature 1 they are equal; a high one takes as many of each
    (Devlin's exponential smoothing, as in Conneau & Lample 2019, arXiv 1901.07291, with alpha = 1 / temperature).
    """
    blocks = range(0, len(pairs.language_of_pair), 1 << 16)
    parts = (pairs.language_of_pair[start : start + (1 << 16)] for start in blocks)
    have = sum(np.bincount(part, minlength=len(pairs.languages)) for part in parts)
    share = have ** (1 / temperature)
    ends = np.rint(np.cumsum(share / share.sum()) * have.sum()).astype(np.int64)
    return have, np.diff(ends, prepend=0)


def epoch_order(
    pairs: TokenizedPairs, translations_per_source: int, temperature: float, seed: int, epoch: int, block: int = 1 << 14
) -> np.ndarray:
    """The order in which an epoch takes its pairs, (pairs,) int32 on disk: a pure function of its arguments.

    A row's pairs are dealt at random into groups of at most `translations_per_source`; groups are shuffled and stay
    together, so that the source sentence is encoded once for its group. Works through blocks of rows: its memory
    does not depend on the number of pairs.
    """
    total, rows = len(pairs.row_of_pair), len(pairs.first_pair) - 1
    dealt, begins, groups = (scratch(pairs.folder, total + 1) for _ in range(3))
    random = np.random.default_rng((seed, epoch))
    have, take = pairs_per_language(pairs, temperature)
    phase, seen = random.integers(0, np.maximum(have, 1)), np.zeros_like(have)
    pair_count = group_count = 0
    for start in range(0, rows, block):
        taken = np.arange(pairs.first_pair[start], pairs.first_pair[min(start + block, rows)])
        # Of a language, every (have / take)-th pair is taken, or a pair take / have times, from a random phase on.
        copies = np.empty_like(taken)
        for language in range(len(have)):
            its = np.flatnonzero(pairs.language_of_pair[taken] == language)
            due = (np.arange(len(its) + 1) + seen[language]) * take[language] + phase[language]
            copies[its] = np.diff(due // max(have[language], 1))
            seen[language] += len(its)
        taken = np.repeat(taken, copies)
        row = pairs.row_of_pair[taken]
        position_in_row = np.arange(len(row)) - np.searchsorted(row, row)
        first = np.flatnonzero(position_in_row % translations_per_source == 0)
        dealt[pair_count : pair_count + len(row)] = taken[np.lexsort((random.random(len(row)), row))]
        begins[group_count : group_count + len(first)] = pair_count + first
        groups[group_count : group_count + len(first)] = np.arange(group_count, group_count + len(first))
        pair_count, group_count = pair_count + len(row), group_count + len(first)
    begins[group_count] = pair_count
    random.shuffle(groups[:group_count])
    order, done = scratch(pairs.folder, total), 0
    for start in range(0, group_count, block):
        group = groups[start : min(start + block, group_count)]
        sizes = begins[group + 1] - begins[group]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        order[done : done + len(within)] = dealt[np.repeat(begins[group], sizes) + within]
        done += len(within)
    return order


class Step(NamedTuple):
    """The sentences of an optimizer step. A source stands once for all of its pairs in it."""

    sentences: np.ndarray  # (n,) their numbers in TokenizedPairs
    label_rows: np.ndarray  # (n,)
    weights: np.ndarray  # (n,) how many of the step's pairs each is in
    languages: np.ndarray  # (n,) 0 for a source, 1 + the number of its language for a target


class Steps:
    """Which pairs form which optimizer step: a pure function of (seed, epoch, step), whatever the processes."""

    def __init__(
        self, pairs: TokenizedPairs, batch_size: int, translations_per_source: int, temperature: float, seed: int
    ):
        self.pairs, self.batch_size = pairs, batch_size
        self.order_settings = (translations_per_source, temperature, seed)
        self.per_epoch = -(-len(pairs.row_of_pair) // batch_size)
        self.fingerprint = fingerprint(pairs.fingerprint, batch_size, self.order_settings)
        self.epoch, self.order = None, None

    def __getitem__(self, step: int) -> Step:
        epoch, step = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.pairs, *self.order_settings, epoch)
        taken = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        rows = self.pairs.row_of_pair[taken]
        source_rows, weights = np.unique(rows, return_counts=True)
        return Step(
            np.concatenate([self.pairs.source_of_row(source_rows), self.pairs.target_of_pair(taken)]),
            np.concatenate([source_rows, rows]),
            np.concatenate([weights, np.ones_like(taken)]),
            np.concatenate([np.zeros_like(source_rows), self.pairs.language_of_pair[taken] + 1]),
        )

    def pairs_in(self, step: int) -> int:
        """The number of pairs of a step: an epoch's last one may be smaller."""
        return min(self.batch_size, len(self.pairs.row_of_pair) - step % self.per_epoch * self.batch_size)


class MicroBatch(NamedTuple):
    """A part of a step on its device, as one forward takes it."""

    inputs: dict  # as SentenceEncoder.inputs gives them
    labels: Tensor  # (batch, dimension) float32
    weights: Tensor  # (batch,) float32
    languages: Tensor  # (batch,) int64
    rows: np.ndarray  # (batch,) of the dataset, on the host
    tokens: int  # without padding


def micro_batches(
    step: Step, pairs: TokenizedPairs, labels: np.ndarray, student: SentenceEncoder, accelerator, max_tokens: int
) -> list[MicroBatch]:
    """This rank's part of a step, cut into pieces of at most `max_tokens` tokens with padding.

    Ranks are dealt sentences in order of length, so that they finish together, and all cut as rank 0 does, which
    has the longest: with sharded weights they take each forward together. A rank that would get none takes one with
    weight 0: it must take part in the exchange of gradients.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    lengths = pairs.lengths(step.sentences)
    order = np.argsort(-lengths, kind="stable")
    batches = []
    for dealt in student.cut(lengths[order[::world]], max_tokens):
        places = dealt * world + rank
        part, weight = order[places[places < len(order)]], 1
        if len(part) == 0:
            part, weight = order[-1:], 0
        tensors = {
            "labels": torch.from_numpy(labels[step.label_rows[part]]).float(),
            "weights": torch.from_numpy(weight * step.weights[part]).float(),
            "languages": torch.from_numpy(step.languages[part]).long(),
        }
        inputs = student.inputs([pairs[sentence] for sentence in step.sentences[part]])
        batches.append(
            MicroBatch(
                to_device(inputs, accelerator.device),
                **to_device(tensors, accelerator.device),
                rows=step.label_rows[part],
                tokens=int(lengths[part].sum()),
            )
        )
    return batches


class Prefetched:
    """Micro-batches of step after step, the next step's made in a thread while this one is computed."""

    def __init__(self, make: Callable[[int, int], list[MicroBatch]], last_step: int, max_tokens: int):
        self.make, self.last_step, self.max_tokens = make, last_step, max_tokens
        self.thread, self.coming = ThreadPoolExecutor(1), {}

    def __getitem__(self, step: int) -> list[MicroBatch]:
        batches = self.coming.pop(step).result() if step in self.coming else self.make(step, self.max_tokens)
        if step < self.last_step:
            self.coming[step + 1] = self.thread.submit(self.make, step + 1, self.max_tokens)
        return batches

    def halve(self) -> None:
        """Cut into pieces of half the size from now on; what was made before is made again.

        Raises the OutOfMemoryError being handled when a piece is one sentence already.
        """
        if self.max_tokens == 1:
            raise
        for future in self.coming.values():
            future.result()
        self.max_tokens, self.coming = self.max_tokens // 2, {}
