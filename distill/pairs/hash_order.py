"""Sentence pairs in the order of a seeded hash of their source sentence, from sorted runs on disk."""

import math
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

MEMORY = 1 << 28  # bytes of sentences held before they go to disk as a run
BUCKETS = 1 << 10  # ranges of the hash that a run is cut into
PAIRS = 1 << 20  # of a part that is put in order at a time, at most


def starts_run(frame: pl.DataFrame, *columns: str) -> pl.Series:
    """Whether a row differs from the row before it in one of the columns; so do the first row and every null."""
    changes = [(pl.col(name) != pl.col(name).shift(1)).fill_null(True) for name in columns]
    return frame.select(pl.any_horizontal(changes)).to_series()


def source_hash(sources: pl.Series, seed: int) -> pl.Series:
    """xxh3 (64 bits) of each sentence. A null hashes as the empty sentence."""
    hashes = [xxhash.xxh3_64_intdigest(text or b"", seed) for text in sources.cast(pl.Binary).to_list()]
    return pl.Series("hash", hashes, dtype=pl.UInt64)


def parts_of_order(pairs: int) -> int:
    """Into how many ranges of the hash, all as wide, so many pairs are cut: a power of two, at most BUCKETS."""
    return min(BUCKETS, 1 << math.ceil(math.log2(max(1, pairs / PAIRS))))


class Runs:
    """Writes frames, added in any order, as runs: files called by `stem` and a number, sorted by `hash` and `language`.

    Rows that are equal in both stay in the order they came in. A run has one record batch per range of the hash, so
    that any range can be read back from all runs without the rest.
    """

    def __init__(self, stem: Path):
        self.stem = stem
        self.frames: list[pl.DataFrame] = []
        self.held = 0
        self.paths: list[Path] = []

    def add(self, frame: pl.DataFrame) -> None:
        self.frames.append(frame)
        self.held += frame.estimated_size()
        if self.held > MEMORY:
            self.close()

    def close(self) -> None:
        """Write what is held."""
        if not self.frames:
            return
        table = _sorted(pl.concat(self.frames)).to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        self.frames, self.held = [], 0
        edges = np.arange(1, BUCKETS, dtype=np.uint64) << np.uint64(54)
        edges = [0, *np.searchsorted(table["hash"].to_numpy(), edges).tolist(), len(table)]
        self.paths.append(self.stem.with_name(f"{self.stem.name}-{len(self.paths)}.arrow"))
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        temporary = self.stem.with_name(uuid4().hex)
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as run:
            for bucket in range(BUCKETS):
                rows = table.slice(edges[bucket], edges[bucket + 1] - edges[bucket])
                batches = rows.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
                run.write_batch(batches[0])
        temporary.replace(self.paths[-1])


def read_part(runs: Iterable[Path], part: int, parts: int) -> pl.DataFrame:
    """The rows of all runs (one at least) whose hash lies in range `part` of `parts`, in the order of a run."""
    buckets = range(part * BUCKETS // parts, (part + 1) * BUCKETS // parts)
    tables = []
    for path in runs:
        # Not memory-mapped: pages that were read would count as memory in use.
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as run:
            tables.append(pa.Table.from_batches([run.get_batch(bucket) for bucket in buckets], run.schema))
    return _sorted(pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))))


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort("hash", "language", maintain_order=True)
