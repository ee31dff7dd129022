"""Sentence pairs in the order of a seeded hash of their source sentence, on disk when they outgrow memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

MEMORY = 1 << 28  # bytes of sentences held before they go to disk, and about as many read back at a time
BUCKETS = 1 << 10  # ranges of the hash that a file on disk is cut into


def starts_run(frame: pl.DataFrame, *columns: str) -> pl.Series:
    """Whether a row differs from the row before it in one of the columns; so do the first row and every null."""
    changes = [(pl.col(name) != pl.col(name).shift(1)).fill_null(True) for name in columns]
    return frame.select(pl.any_horizontal(changes)).to_series()


def source_hash(sources: pl.Series, seed: int) -> pl.Series:
    """xxh3 (64 bits) of each sentence. A null hashes as the empty sentence."""
    hashes = [xxhash.xxh3_64_intdigest(text or b"", seed) for text in sources.cast(pl.Binary).to_list()]
    return pl.Series("hash", hashes, dtype=pl.UInt64)


def hash_range(shard: int, shards: int) -> tuple[int, int]:
    """The lowest and the highest hash of a shard, counted from 0."""
    return shard * 2**64 // shards, (shard + 1) * 2**64 // shards - 1


class HashOrder:
    """Collects frames in any order and gives their rows back sorted by the columns `hash` and `language`.

    Rows that are equal in both stay in the order they came in. Beyond `memory` bytes, sorted runs go to files in
    `folder`, one record batch per range of the hash, so that any range can be read back from all runs without the rest.
    """

    def __init__(self, folder: Path, memory: int = MEMORY):
        self.folder, self.memory = folder, memory
        self.frames: list[pl.DataFrame] = []
        self.held = 0
        self.runs: list[Path] = []
        self.sizes = np.zeros(BUCKETS, dtype=np.int64)  # bytes on disk of each range

    def add(self, frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        self.frames.append(frame)
        self.held += frame.estimated_size()
        if self.held > self.memory:
            self._spill()

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Frames of about `memory` bytes in hash order; the rows of one hash are never in two of them."""
        if not self.runs:
            if self.frames:
                yield pl.concat(self.frames, rechunk=True).sort("hash", "language", maintain_order=True)
            return
        self._spill()
        total, first = 0, 0
        for last, size in enumerate(self.sizes):
            total += int(size)
            if total >= self.memory or last == BUCKETS - 1:
                if total == 0:
                    return
                tables = [self._read(run, first, last + 1) for run in self.runs]
                frame = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))
                yield frame.sort("hash", "language", maintain_order=True)
                total, first = 0, last + 1

    def _spill(self) -> None:
        if not self.frames:
            return
        frame = pl.concat(self.frames, rechunk=True).sort("hash", "language", maintain_order=True)
        self.frames, self.held = [], 0
        edges = np.arange(1, BUCKETS, dtype=np.uint64) << np.uint64(54)
        edges = [0, *np.searchsorted(frame["hash"].to_numpy(), edges).tolist(), len(frame)]
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
        self.folder.mkdir(exist_ok=True)
        run = self.folder / f"{len(self.runs)}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(run), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
            for bucket in range(BUCKETS):
                rows = table.slice(edges[bucket], edges[bucket + 1] - edges[bucket])
                self.sizes[bucket] += rows.nbytes
                batches = rows.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
                writer.write_batch(batches[0])
        self.runs.append(run)

    @staticmethod
    def _read(run: Path, first: int, last: int) -> pa.Table:
        # Not memory-mapped: pages that were read would count as memory in use.
        with pa.OSFile(str(run)) as file, pa.ipc.open_file(file) as reader:
            return pa.Table.from_batches([reader.get_batch(i) for i in range(first, last)], reader.schema)
