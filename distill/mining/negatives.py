"""Hard negatives: of each source sentence the translations of others that a model takes nearly for its own."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import Accelerator

from distill.mining.neighbours import BLOCK, is_exact, searcher, write_vectors
from distill.training.cache import fill, fingerprint, mapped
from distill.training.teachers import ModelTeacher
from distill.training.tokens import TokenizedPairs

SPARE = 16  # neighbours looked at beside those asked for: its own translations, and such as are nearly right


def hard_negatives(
    dataset,
    pairs: TokenizedPairs,
    model: ModelTeacher,
    k: int,
    relative_margin: float,
    cache_dir: Path,
    accelerator: Accelerator,
) -> np.ndarray:
    """At most k wrong translations of each row's source, nearest first, as numbers of pairs: (rows, k), -1 for none.

    Wrong is one of another row whose cosine with the source is less than 1 - `relative_margin` times that of its own
    translations in the mean: what is nearer may be right too. Found by all ranks, kept on disk.
    """
    name = fingerprint(model.name, accelerator.mixed_precision, pairs.fingerprint)
    table = dataset.with_format("arrow")[:]
    targets = pc.struct_field(pc.list_flatten(table["targets"]), "sentence")

    def encode(sentences: list[str]) -> np.ndarray:
        with accelerator.autocast():
            return model.encoder.on(accelerator.device).encode(sentences)

    vectors = []
    for side, sentences in (("source", table["source"]), ("target", targets)):
        column = datasets.Dataset(pa.table({"sentence": sentences}))
        folder = cache_dir / f"vectors-{fingerprint(name, side)}"
        vectors.append(write_vectors(folder, column, encode, accelerator))
    of_sources, of_targets = vectors
    pair_of_target = pairs.translated(np.arange(len(pairs.row_of_pair)))
    row_of_target = pairs.row_of_pair[pair_of_target]
    exact = is_exact("auto", len(of_sources), len(of_targets), accelerator.device)
    search = searcher(of_targets, exact, cache_dir / f"index-{name}", accelerator)

    def wrong(start: int, stop: int) -> dict[str, np.ndarray]:
        rows = np.arange(start, stop)[:, None]
        cosines, found = search(of_sources[start:stop], min(k + SPARE, len(of_targets)))
        own = own_cosines(of_sources, of_targets, row_of_target, start, stop)
        fits = (row_of_target[found] != rows) & (cosines < (1 - relative_margin) * own[:, None])
        order = np.argsort(~fits, axis=1, kind="stable")[:, :k]
        taken = np.where(fits, pair_of_target[found], -1)
        taken = np.take_along_axis(taken, order, axis=1)
        return {"pairs": np.pad(taken, ((0, 0), (0, k - taken.shape[1])), constant_values=-1).astype(np.int64).ravel()}

    folder = cache_dir / f"negatives-{fingerprint(name, k, relative_margin, exact)}"
    fill(folder, len(of_sources), wrong, accelerator, "hard negatives", BLOCK[accelerator.device.type])
    return mapped(folder / "pairs.bin", np.int64).reshape(len(of_sources), k)


def own_cosines(
    sources: np.ndarray, targets: np.ndarray, row_of_target: np.ndarray, start: int, stop: int
) -> np.ndarray:
    """Mean cosine of the sources of some rows with their own translations, (stop - start,); -1 where there are none."""
    first, last = np.searchsorted(row_of_target, (start, stop))
    rows = row_of_target[first:last] - start
    cosines = (sources[start + rows].astype(np.float32) * targets[first:last].astype(np.float32)).sum(1)
    counts = np.bincount(rows, minlength=stop - start)
    sums = np.bincount(rows, cosines, minlength=stop - start)
    return np.where(counts > 0, sums / np.maximum(counts, 1), -1)
