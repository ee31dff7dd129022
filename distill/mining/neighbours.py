"""Neighbours: the vectors of a side on disk, and the k nearest on the other side of each, exactly or by an index."""

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from accelerate import Accelerator

from distill.command import UserError
from distill.pairs.pairs_folder import evenly_spaced
from distill.ranks import check_signal
from distill.scoring.metrics import unit
from distill.scoring.search import k_nearest
from distill.training.cache import fill, fill_by_first, mapped

CHUNK = 4096  # sentences that a rank encodes, or adds to an index, at a time
BLOCK = {"cpu": 4096, "cuda": 16384}  # sentences of either side whose cosines are in memory at a time: 64 MB, 1 GB
EXACT = {"cpu": 10**11, "cuda": 10**13}  # the most cosines that are all computed
PROBES = 64  # lists of the index that are searched for a sentence
SAMPLE = 64  # vectors of a list that the index learns its lists from
FEWEST = 39  # vectors of a list, below which FAISS warns
VECTORS = np.float16  # of length 1: half precision moves a cosine by less than 0.001

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # as `k_nearest`, the answers given


def write_vectors(
    folder: Path,
    count: int,
    sentences: Callable[[int, int], list[str]],
    encode: Callable[[list[str]], np.ndarray],
    accelerator,
) -> np.ndarray:
    """The vectors (count, dimension) of sentences, of length 1, memory-mapped; encoded by all ranks.

    `sentences(start, stop)` reads some of them. UserError where a vector is not finite.
    """

    def vectors(start: int, stop: int) -> dict[str, np.ndarray]:
        texts = sentences(start, stop)
        found = unit(encode(texts))
        finite = np.isfinite(found).all(1)
        if not finite.all():
            sentence = texts[int(finite.argmin())]
            raise UserError(f"the vector of {sentence!r} is not finite: take another precision, or another model")
        return {"vectors": found.astype(VECTORS)}

    fill(folder, count, vectors, accelerator, "vectors", CHUNK)
    return mapped(folder / "vectors.bin", VECTORS).reshape(count, -1)


def is_exact(index: str, queries: int, answers: int, device: torch.device) -> bool:
    """Whether all cosines are computed: "auto" is "exact" where they are few enough, else "lists"."""
    return queries * answers <= EXACT[device.type] if index == "auto" else index == "exact"


def searcher(answers: np.ndarray, exact: bool, folder: Path, accelerator: Accelerator) -> Search:
    """What finds the k nearest answers: among all, or by FAISS in the lists of an index that are near to the query.

    The index lies in `folder`.
    """
    device = accelerator.device

    def among_all(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return k_nearest(queries, answers, k, device, BLOCK[device.type])

    def in_lists(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        cosines, rows = index.search(queries.astype(np.float32), k)
        lacking = (rows < 0).any(1)  # so few are in the lists that were searched
        if lacking.any():
            cosines[lacking], rows[lacking] = among_all(queries[lacking], k)
        return cosines, rows

    if exact:
        return among_all
    fill_by_first(folder, lambda growing: write_index(answers, growing / "index.bin"), accelerator)
    index = faiss.read_index(str(folder / "index.bin"), faiss.IO_FLAG_MMAP)
    index.nprobe = PROBES
    return in_lists


def write_index(vectors: np.ndarray, path: Path) -> None:
    """An inverted file of vectors in fp16, with four times the root of their number as lists, as FAISS advises."""
    count = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // FEWEST))
    index = faiss.index_factory(vectors.shape[1], f"IVF{count},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[evenly_spaced(len(vectors), SAMPLE * count)].astype(np.float32))
    for start in range(0, len(vectors), CHUNK):
        check_signal()
        index.add(vectors[start : start + CHUNK].astype(np.float32))
    faiss.write_index(index, str(path))


def write_neighbours(
    folder: Path, queries: np.ndarray, search: Search, k: int, accelerator: Accelerator
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows of the k nearest answers of each query, (n, k), memory-mapped; found by all ranks."""

    def nearest(start: int, stop: int) -> dict[str, np.ndarray]:
        cosines, rows = search(queries[start:stop], k)
        return {"cosines": cosines.astype(np.float32), "rows": rows.astype(np.int64)}

    fill(folder, len(queries), nearest, accelerator, "neighbours", BLOCK[accelerator.device.type])
    cosines, rows = mapped(folder / "cosines.bin", np.float32), mapped(folder / "rows.bin", np.int64)
    return cosines.reshape(len(queries), k), rows.reshape(len(queries), k)
