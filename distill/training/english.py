"""The English task's pairs: tables of an anchor, a sentence that means the same, and perhaps one that does not."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import polars as pl
from accelerate import Accelerator

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.pairs.pairs_folder import GROUPED
from distill.pairs.schemas import MISSING, check_text
from distill.pairs.tables import named_tables
from distill.ranks import together
from distill.text_files import expand_globs
from distill.training.cache import fingerprint
from distill.training.tokens import NEGATIVE, TokenizedPairs

ANCHOR, POSITIVE = "anchor", "positive"
COLUMNS = (ANCHOR, POSITIVE, NEGATIVE)


class EnglishPairs(NamedTuple):
    """English pairs as pairs of translations are: an anchor stands for a source, its positive for a target.

    A row for each line of the tables, then one for each negative, as a pair with itself that no epoch takes.
    """

    dataset: datasets.Dataset
    pairs: TokenizedPairs
    negatives: np.ndarray  # (rows, 1) of each anchor, as numbers of pairs; -1 for none


def english_lines(specs: list[str]) -> pl.DataFrame:
    """The lines of tables with the columns `anchor`, `positive` and, where they have it, `negative`; null where empty.

    UserError for a table that lacks one, or has no text in it.
    """

    def frames() -> Iterator[pl.DataFrame]:
        yield pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
        for path in (path for spec in specs for path in expand_globs(spec)):
            for table in named_tables(path):
                if not {ANCHOR, POSITIVE} <= set(table.columns):
                    names = ", ".join(table.columns) or "(none)"
                    raise UserError(f"{path} has the columns {names}: name two anchor and positive, a third negative")
                lines = table.select(name for name in COLUMNS if name in table.columns)
                check_text(lines.schema, path)
                yield lines.cast(pl.String)

    lines = pl.concat(frames(), how="diagonal")
    return lines.with_columns(pl.all().str.strip_chars().replace(dict.fromkeys(MISSING)))


def read_english(specs: list[str], encoder: SentenceEncoder, cache_dir: Path, accelerator: Accelerator) -> EnglishPairs:
    """The pairs of tables, tokenized as `encoder` reads them; how many is said. UserError where fewer than two."""
    lines = together(lambda: english_lines(specs), accelerator)
    used = lines.drop_nulls([ANCHOR, POSITIVE])
    if len(used) < 2:
        named = f"{' '.join(specs)}: {len(used)} of {len(lines)} lines have an anchor and a positive"
        raise UserError(f"{named}, give two or more, to choose among")
    left_out = f"{len(lines) - len(used):,} lines that lack an anchor or a positive are left out"
    having = used[NEGATIVE].count()
    accelerator.on_main_process(print)(f"{len(used):,} English pairs, {having:,} with a negative; {left_out}")
    wrong = used[NEGATIVE].drop_nulls().unique(maintain_order=True)
    asked = used.select(source=ANCHOR, language=pl.lit(POSITIVE), sentence=POSITIVE)
    rows = asked.vstack(wrong.to_frame().select(source=NEGATIVE, language=pl.lit(NEGATIVE), sentence=NEGATIVE))
    table = rows.select("source", targets=pl.concat_list(pl.struct("language", "sentence")))
    dataset = datasets.Dataset(table.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(GROUPED))
    pairs = TokenizedPairs(dataset, fingerprint(*used.iter_rows()), encoder, cache_dir, accelerator)
    number = pl.Series(range(len(used), len(rows)), dtype=pl.Int32)
    found = used[NEGATIVE].replace_strict(wrong, number, default=-1, return_dtype=pl.Int32)
    negatives = np.append(found, np.full(len(wrong), -1, np.int32))[:, None]
    return EnglishPairs(dataset, pairs, negatives)
