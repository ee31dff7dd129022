"""Tables of sentences and their vectors, from whatever system gave them: read in batches, and checked.

Parquet, Arrow (an IPC file or stream) and JSON lines have the columns `sentence` and `vector`, a list of numbers;
X.npy holds the vectors of the sentences in X.txt, one a line.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from distill.command import UserError
from distill.text_files import decode, reading, text_blocks, text_lines

ROWS = 4096  # vectors in memory at a time
COLUMNS = ["sentence", "vector"]
JSON = pa.json.ParseOptions(
    explicit_schema=pa.schema({"sentence": pa.string(), "vector": pa.list_(pa.float64())}),
    unexpected_field_behavior="ignore",
)


def is_vector_table(path: str) -> bool:
    """Whether a path is that of a table of vectors, as its name says."""
    return Path(path).suffix.lower() in READERS and not Path(path).is_dir()


def reader_of(path: str) -> Callable:
    """What reads a table, by the name of its file; UserError for anything else."""
    if not is_vector_table(path):
        raise UserError(f"{path} is no table of vectors: give {', '.join(READERS)} (.npy beside a .txt)")
    return READERS[Path(path).suffix.lower()]


def table_files(paths: Iterable[str]) -> list[str]:
    """All files of a table: beside X.npy stands X.txt."""
    texts = {path: [str(Path(path).with_suffix(".txt"))] for path in paths if reader_of(path) is _npy}
    return [file for path in paths for file in [path, *texts.get(path, [])]]


def vector_batches(paths: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Sentences and their vectors (n, dimension) float32, of all files, at most `ROWS` at a time.

    UserError where a file cannot be read, or where not all vectors are of the same width and of finite numbers.
    """
    width = None
    for path in paths:
        for sentences, vectors in reader_of(path)(path):
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                raise UserError(
                    f"{path} has vectors of {vectors.shape[1]} dimensions, after others of {width}: give the files "
                    "of one system, or another option for each"
                )
            with np.errstate(over="ignore"):
                vectors = vectors.astype(np.float32)
            finite = np.isfinite(vectors).all(1)
            if not finite.all():
                raise UserError(
                    f"{path}: the vector of {sentences[finite.argmin()]!r} holds a number that is not finite in fp32: "
                    "remove the row"
                )
            yield sentences, vectors
    if width is None:
        raise UserError(f"{' '.join(paths)} holds no vector: check the file")


class VectorTable:
    """A table in the place of a model, which gives its vectors as they are."""

    normalize, prompt = False, ""

    def __init__(self, path: str):
        self.path, self.differing = path, 0

    def vectors_of(self, sentences: Iterable[str]) -> dict[str, np.ndarray]:
        """The vector of each sentence; of two the first, and `differing` counts those that it is not equal to.

        UserError where the table lacks any.
        """
        wanted, found = dict.fromkeys(sentences), {}
        for batch, vectors in vector_batches([self.path]):
            for sentence, vector in zip(batch, vectors, strict=True):
                if sentence in found:
                    self.differing += not np.array_equal(found[sentence], vector)
                elif sentence in wanted:
                    found[sentence] = vector.copy()  # not a view, which would keep the batch
        if missing := [sentence for sentence in wanted if sentence not in found]:
            raise UserError(lacking(self.path, len(missing), len(wanted), missing))
        return found


def lacking(table: str, count: int, total: int, examples: list[str]) -> str:
    """What a table lacks, in words."""
    listed = ", ".join(repr(sentence[:80]) for sentence in examples[:3])
    return f"{table} has no vector for {count:,} of {total:,} sentences, such as {listed}: add them"


# ---------------------------------------------------------------- formats


def _parquet(path: str) -> Iterator[tuple[list[str], np.ndarray]]:
    # Read as it is needed: else the columns of a row group, or of all, are in memory at once.
    with reading(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        for batch in file.iter_batches(ROWS, columns=_present(path, file.schema_arrow), use_threads=False):
            yield _columns(path, batch)


def _arrow(path: str) -> Iterator[tuple[list[str], np.ndarray]]:
    with reading(path), pa.memory_map(path) as file:
        as_file = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if as_file else pa.ipc.open_stream(file)
        names = _present(path, reader.schema)
        for batch in (reader.get_batch(i) for i in range(reader.num_record_batches)) if as_file else reader:
            for start in range(0, len(batch), ROWS):
                yield _columns(path, batch.select(names).slice(start, ROWS))


def _json(path: str) -> Iterator[tuple[list[str], np.ndarray]]:
    for number, block in text_blocks(path):
        text = decode(path, number, block).strip()
        if text and not text.startswith("{"):  # Arrow's reader dies of a null
            raise UserError(f"{path}, line {number} is no JSON object: write one object a line")
        whole = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        try:
            table = pa.json.read_json(io.BytesIO(text.encode()), whole, JSON) if text else None
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} cannot be read in or after line {number} ({error}): mend the line") from None
        if text and table["sentence"].null_count == len(table):
            raise UserError(
                f'{path}, line {number} has no field sentence: write {{"sentence": "...", "vector": [...]}}'
            )
        for batch in table.to_batches(ROWS) if text else []:
            yield _columns(path, batch)


def _npy(path: str) -> Iterator[tuple[list[str], np.ndarray]]:
    text, start = str(Path(path).with_suffix(".txt")), 0
    with reading(path):
        try:
            vectors = np.load(path, mmap_mode="r")
        except ValueError as error:
            raise UserError(f"{path} cannot be read ({error}): write it with numpy.save") from None
    if not isinstance(vectors, np.ndarray):
        raise UserError(f"{path} is an archive of arrays: write one with numpy.save")
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.shape[1]:
        raise UserError(f"{path} holds {vectors.dtype} of the shape {vectors.shape}: numbers (rows, dimension) are due")
    for _, lines in text_lines(text):
        for first in range(0, len(lines), ROWS):
            sentences = lines[first : first + ROWS].to_list()
            taken = vectors[start : start + len(sentences)]
            start += len(sentences)
            if len(taken) == len(sentences):
                yield sentences, taken
    if start != len(vectors):
        raise UserError(f"{path} has {len(vectors):,} rows and {text} {start:,} lines: they must be as many")


def _present(path: str, schema: pa.Schema) -> list[str]:
    """COLUMNS; UserError where one is not in the schema, or not of its type."""
    if missing := [name for name in COLUMNS if name not in schema.names]:
        raise UserError(f"{path} has no column {missing[0]}, only {', '.join(schema.names)}: rename one")
    text, vector = (schema.field(name).type for name in COLUMNS)
    if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_string_view(text)):
        raise UserError(f"{path}: its column sentence is of the type {text}: it must hold text")
    lists = pa.types.is_list(vector) or pa.types.is_large_list(vector) or pa.types.is_fixed_size_list(vector)
    if not lists or not (pa.types.is_floating(vector.value_type) or pa.types.is_integer(vector.value_type)):
        raise UserError(f"{path}: its column vector is of the type {vector}: it must hold lists of numbers")
    return COLUMNS


def _columns(path: str, batch: pa.RecordBatch) -> tuple[list[str], np.ndarray]:
    """The two columns of a batch; UserError where a cell or a number is missing, or widths differ."""
    sentences, vectors = batch["sentence"].to_pylist(), batch["vector"]
    if None in sentences:
        raise UserError(f"{path} has a vector without a sentence: remove the row")
    lengths = pc.fill_null(pc.list_value_length(vectors), 0).to_numpy()
    numbers = pc.list_flatten(vectors)
    if not lengths.all() or numbers.null_count:
        row = lengths.argmin() if not lengths.all() else next(i for i, v in enumerate(vectors) if None in v.as_py())
        raise UserError(f"{path}: the vector of {sentences[row]!r} is empty or lacks a number: remove the row")
    if (lengths != lengths[0]).any():
        other = sentences[(lengths != lengths[0]).argmax()]
        raise UserError(f"{path}: the vector of {other!r} is not of {lengths[0]} dimensions, as others are: mend it")
    return sentences, numbers.to_numpy(zero_copy_only=False).reshape(len(sentences), lengths[0])


READERS = {".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow, ".ipc": _arrow}
READERS |= {".jsonl": _json, ".ndjson": _json, ".json": _json, ".npy": _npy}
