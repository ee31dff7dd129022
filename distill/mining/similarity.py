"""How similar the two sentences of a pair are to a model."""

from functools import cache

import numpy as np
import polars as pl
import torch

from distill.encoder.sentence_encoder import SentenceEncoder, set_matmul_precision

ROWS = 10_000  # pairs whose vectors are in memory at a time


@cache
def encoder(name_or_path: str) -> SentenceEncoder:
    """The model, on a GPU where there is one; it reads the prompt that its folder names."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_matmul_precision(device)
    return SentenceEncoder.from_pretrained(name_or_path).on(device)


def similarities(pairs: pl.DataFrame, name_or_path: str) -> pl.Series:
    """Cosine of `source` and `target`, (n,) float32; null where there is no target."""
    found = [_cosines(part, encoder(name_or_path)) for part in pairs.select("source", "target").iter_slices(ROWS)]
    return pl.concat(found) if found else pl.Series("similarity", [], dtype=pl.Float32)


def _cosines(pairs: pl.DataFrame, model: SentenceEncoder) -> pl.Series:
    there = pairs.drop_nulls()
    sentences = pl.concat([there["source"], there["target"]]).unique(maintain_order=True)
    vectors = model.encode(sentences.to_list())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {sentence: number for number, sentence in enumerate(sentences)}
    sides = (vectors[[place[sentence] for sentence in there[side]]] for side in ("source", "target"))
    cosines = pl.Series("similarity", np.multiply(*sides).sum(1), dtype=pl.Float32)
    at = pairs["target"].is_not_null().arg_true()
    return pl.repeat(None, len(pairs), dtype=pl.Float32, eager=True).scatter(at, cosines).alias("similarity")
