"""A folder of pairs: an Arrow dataset with a row per source sentence, its views, its sentences by language."""

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from isal import igzip

from distill.command import UserError
from distill.folders import file_hash, read_json
from distill.pairs.hash_order import starts_run
from distill.pairs.schemas import ALONE, grouped_pairs
from distill.pairs.tables import saved_dataset
from distill.text_files import expand_languages, text_lines

GROUPED = pa.schema(
    {"source": pa.string(), "targets": pa.list_(pa.struct({"language": pa.string(), "sentence": pa.string()}))}
)
FLAT = pa.schema({"source": pa.string(), "target": pa.string(), "language": pa.string()})
SCORED = FLAT.append(pa.field("similarity", pa.float32()))
BATCH = 10_000  # rows of an Arrow record batch on disk


def load_pairs(path: str) -> datasets.DatasetDict:
    """The folder that build_pairs.py wrote: splits, none empty, with the columns `source` and `targets`."""
    pairs = saved_dataset(path) if (Path(path) / "dataset_dict.json").is_file() else {}
    if not {"source", "targets"} <= set(pairs["train"].column_names if "train" in pairs else ()):
        raise UserError(f"{path} is no folder of build_pairs.py (train with the columns source and targets)")
    for name, split in pairs.items():
        if len(split) == 0:
            raise UserError(f"{path} holds no pair in its split {name}: build it anew from more sentences")
        list(grouped_pairs(pl.DataFrame(pl.from_arrow(split.with_format("arrow")[:1])), path))
    return pairs


def load_splits(path: str) -> dict[str, datasets.Dataset]:
    """The pairs to train on, and those to choose the best student by; UserError when there are none of these."""
    pairs = load_pairs(path)
    if "dev" not in pairs:
        raise UserError(f"{path} has no dev split: build it with a --dev_fraction above 0")
    return {name: pairs[name] for name in ("train", "dev")}


def pairs_report(path: str) -> dict:
    """What a folder of pairs says of itself: its source language, its corpora, its training pairs by language."""
    report = read_json(Path(path) / "report.json", {})
    train = report.get("splits", {}).get("train", {})
    return {
        "source_language": source_language_of(path, "en"),
        "corpora": [corpus["corpus"] for corpus in report.get("corpora", [])],
        "pairs": train.get("pairs", {}),
        "untranslated": train.get("untranslated", 0),
    }


def source_language_of(corpus: str, otherwise: str) -> str:
    """That of a folder of build_pairs.py or mine_pairs.py, which says it; of any other corpus, `otherwise`."""
    return read_json(Path(corpus) / "args.json", {}).get("source_language", otherwise)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Numbers of `most` of so many rows, from the first to the last; of all where they are fewer."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def arrow_strings(column: pl.Series) -> pa.Array:
    return column.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())


def grouped(pairs: pl.DataFrame) -> pa.Table:
    """One row per source sentence, with its translations in all languages; pairs of a source must be neighbours.

    A sentence by itself has no translations.
    """
    starts = starts_run(pairs, "source").arg_true().to_numpy()
    translated = pairs["language"] != ALONE
    before = np.append(0, translated.cast(pl.Int32).cum_sum())  # translations before each pair, and in all
    offsets = pa.array(before[np.append(starts, len(pairs))], pa.int32())
    columns = [arrow_strings(pairs[name].filter(translated)) for name in ("language", "target")]
    targets = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, ["language", "sentence"]))
    return pa.table([arrow_strings(pairs["source"].gather(starts)), targets], schema=GROUPED)


def flat(pairs: pl.DataFrame) -> pa.Table:
    """One row per pair, with its similarity where it has one."""
    columns = [arrow_strings(pairs[name]) for name in FLAT.names]
    if "similarity" in pairs.columns:
        return pa.table([*columns, pairs["similarity"].to_arrow()], schema=SCORED)
    return pa.table(columns, schema=FLAT)


def write_rows(path: Path, rows: pa.Table) -> str:
    """Write a file of Arrow as `datasets` has it, in record batches of `BATCH` rows; the hash of its bytes."""
    schema = datasets.Features.from_arrow_schema(rows.schema).arrow_schema
    with pa.ipc.new_stream(str(path), schema) as file:
        file.write_table(rows.cast(schema).combine_chunks(), max_chunksize=BATCH)
    return file_hash(path)


def save_splits(folder: Path, schema: pa.Schema, files: dict[str, list[Path]], hashes: dict[str, list[str]]) -> None:
    """Make a DatasetDict of files that `write_rows` wrote, which stay too; their hashes say what the rows are.

    The library saves an empty row in the place of each file, and with them the layout that it has.
    """
    stand_ins, schema = {}, datasets.Features.from_arrow_schema(schema).arrow_schema
    for name, paths in files.items():
        row = pa.Table.from_pylist([{}] * len(paths), schema=schema)
        # `datasets` would draw a random fingerprint
        fingerprint = xxhash.xxh3_64_hexdigest("".join(hashes[name]).encode())
        stand_ins[name] = datasets.Dataset(row, fingerprint=fingerprint, split=name)
    counts = {name: len(paths) for name, paths in files.items()}
    datasets.DatasetDict(stand_ins).save_to_disk(folder, num_shards=counts)
    for name, paths in files.items():
        for number, path in enumerate(paths):
            place = folder / name / f"data-{number:05d}-of-{len(paths):05d}.arrow"
            place.unlink()
            try:
                place.hardlink_to(path)
            except OSError:  # on a file system without
                shutil.copyfile(path, place)


def tsv_lines(pairs: pl.DataFrame) -> bytes:
    """Source TAB target, packed by gzip: as sentence-transformers reads them. Several of it may follow one another."""
    # Without the white space step a sentence may hold tabs and line ends, which this format cannot.
    text = pl.col("source", "target").str.replace_all(r"[\t\n\r]", " ")
    lines = pairs.select(text).select(pl.concat_str("source", "target", separator="\t") + "\n").to_series()
    # No time in the header: the same pairs give the same bytes.
    return igzip.compress("".join(lines.to_list()).encode(), mtime=0)


def language_sentences(pairs_dir: str | None, text_files: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The sentences of a pairs folder and of text files, in batches of one language each."""
    if not pairs_dir and not text_files:
        raise UserError("no corpus is given: add --pairs_dir or --text_files")
    if pairs_dir:
        source_language = source_language_of(pairs_dir, "source")
        for split in load_pairs(pairs_dir).values():
            for rows in split.iter(1000):
                batch = {source_language: rows["source"]}
                for target in (target for targets in rows["targets"] for target in targets):
                    batch.setdefault(target["language"], []).append(target["sentence"])
                yield from batch.items()
    for spec in text_files:
        for language, path in expand_languages(spec).items():
            empty = True
            for _, lines in text_lines(path):
                if filled := [line for line in lines if line.strip()]:
                    empty = False
                    yield language, filled
            if empty:
                raise UserError(f"{path} holds no sentence: check the file")


def rows_of(dataset) -> Iterator[tuple[str, list[dict]]]:
    """The source sentence and the translations of each row, read in batches: seven times as fast as row by row."""
    for rows in dataset.iter(1000):
        yield from zip(rows["source"], rows["targets"], strict=True)


def sentence_counts(dataset) -> Counter:
    """How many sentences of each language a pairs split has; those of the source under ''."""
    counts = Counter({"": len(dataset)})
    for table in dataset.with_format("arrow").iter(BATCH):
        languages = pc.struct_field(pc.list_flatten(table["targets"]), "language")
        counts.update({pair["values"]: pair["counts"] for pair in pc.value_counts(languages).to_pylist()})
    return counts


def sentences(dataset, most: float = math.inf) -> Iterator[str]:
    """The sentences of a pairs split, each source sentence and then its translations; of a language the first `most`.

    The first are a fair sample: the rows stand in the order of a hash.
    """
    taken = Counter()
    for source, targets in rows_of(dataset):
        for language, sentence in [("", source), *((target["language"], target["sentence"]) for target in targets)]:
            taken[language] += 1
            if taken[language] <= most:
                yield sentence


def pairs_by_language(dataset, most: int) -> dict[str, tuple[list[str], list[str]]]:
    """Source sentences and their translations by language, of each the first `most`."""
    languages = {}
    for row_source, targets in rows_of(dataset):
        for target in targets:
            source, translation = languages.setdefault(target["language"], ([], []))
            if len(source) < most:
                source.append(row_source)
                translation.append(target["sentence"])
    return languages
