"""Text of one language that is not aligned with anything: its sentences, sound ones, each once, on disk."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import langcodes
import numpy as np
import polars as pl
import pyarrow as pa
import sentencex
from accelerate import Accelerator

from distill.command import UserError
from distill.folders import hashes_of, read_json, write_json
from distill.languages import required_tag
from distill.pairs.cleaning import MENDING, fold, inspect
from distill.pairs.hash_order import source_hash
from distill.pairs.pairs_folder import arrow_strings
from distill.pairs.readers import line_chunks
from distill.pairs.tables import CHUNK
from distill.ranks import check_signal, on_first_rank
from distill.text_files import expand_languages
from distill.training.cache import fill_by_first, fingerprint, mapped

# Why a sentence is of no use, as build_pairs.py has it.
FAULTS = ["empty", "too_long", "no_letters", "wrong_script", "wrong_language"]
SCHEMA = pa.schema({"sentence": pa.string()})


class Rules(NamedTuple):
    """What is taken from text: whether a line holds many sentences; the FAULTS that count; characters at most."""

    split: bool
    faults: list[str]
    max_length: int


class Text(NamedTuple):
    """The sentences of a language, a dataset with the column `sentence`, and what was counted.

    `contents`: a hash of each sentence, whatever its case and punctuation (n,); `name`: a fingerprint of it all.
    """

    language: str
    sentences: datasets.Dataset
    contents: np.ndarray
    name: str
    counts: dict[str, int]


def files_by_language(specs: list[str]) -> dict[str, list[str]]:
    """The files of brace paths, by the languages' standard tags; UserError where a path is given twice."""
    files: dict[str, list[str]] = {}
    for spec in specs:
        for tag, path in expand_languages(spec).items():
            files.setdefault(required_tag(tag, spec), []).append(path)
    for paths in files.values():
        if twice := [path for path, number in Counter(paths).items() if number > 1]:
            raise UserError(f"--text names {twice[0]} twice: leave one out")
    return files


def read_text(language: str, paths: list[str], rules: Rules, cache_dir: Path, accelerator: Accelerator) -> Text:
    """The sentences of some files, a line each, or as the rules say; read once, by rank 0.

    They are mended as build_pairs.py mends them. Left out and counted are those with a fault, and those that were there
    before, whatever their case and punctuation.
    """

    name = on_first_rank(lambda: fingerprint(language, rules, hashes_of(paths)), accelerator)
    folder = cache_dir / f"text-{name}"
    fill_by_first(folder, partial(write_sentences, language, paths, rules), accelerator)
    sentences = datasets.Dataset.from_file(str(folder / "sentences.bin"))
    rows, contents = mapped(folder / "rows.bin", np.int64), mapped(folder / "contents.bin", np.uint64)
    counts = on_first_rank(partial(read_json, folder / "counts.json", {}), accelerator)
    return Text(language, sentences.select(rows), contents, name, counts)


def write_sentences(language: str, paths: list[str], rules: Rules, folder: Path) -> None:
    """Write the files of a text; UserError where no sentence is left.

    sentences.bin: all sound sentences, an Arrow stream; rows.bin: which of them to take (int64); contents.bin: their
    hashes (uint64); counts.json.
    """
    counts, hashes = Counter(lines=0, sentences=0, **dict.fromkeys(FAULTS, 0)), []
    with pa.ipc.new_stream(str(folder / "sentences.bin"), SCHEMA) as writer:
        for path in paths:
            for lines in line_chunks(path, CHUNK):
                check_signal()
                counts["lines"] += len(lines)
                found = split_lines(lines, language) if rules.split else lines
                tags = pl.repeat(language, len(found), eager=True)
                frame = inspect(found, tags, MENDING, rules.faults, rules.max_length, None)
                counts.update(dict(frame.drop_nulls("fault").group_by("fault").len().iter_rows()))
                sound = frame.filter(pl.col("fault").is_null())["sentence"]
                hashes.append(source_hash(fold(sound), seed=0).to_numpy())
                writer.write_table(pa.table([arrow_strings(sound)], schema=SCHEMA))
    hashes = np.concatenate([np.array([], np.uint64), *hashes])
    rows = np.sort(np.unique(hashes, return_index=True)[1])
    if len(rows) == 0:
        dropped = ", ".join(f"{counts[fault]:,} {fault}" for fault in FAULTS)
        raise UserError(f"{' '.join(paths)} holds no sentence in {language} ({dropped}): check the file")
    counts["duplicate"], counts["sentences"] = len(hashes) - len(rows), len(rows)
    rows.astype(np.int64).tofile(folder / "rows.bin")
    hashes[rows].tofile(folder / "contents.bin")
    write_json(folder / "counts.json", counts)


def split_lines(lines: pl.Series, language: str) -> pl.Series:
    """The sentences of lines, by the language's rules where sentencex knows it."""
    rules = langcodes.Language.get(language).language
    sentences = [sentence for line in lines for sentence in sentencex.segment(rules, line) or [line]]
    return pl.Series("line", sentences, dtype=pl.String)
