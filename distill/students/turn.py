"""Turn: a model's vectors in the directions of their principal components, so that their first dimensions say most."""

import numpy as np
import torch
from torch import nn

from distill.encoder.sentence_encoder import SentenceEncoder


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The directions of largest variance of vectors (n, dimension), in rows, after their variances; both falling."""
    variances, rising = np.linalg.eigh(np.cov(vectors.astype(np.float64), rowvar=False))
    return variances[::-1], rising.T[::-1]


def turn(encoder: SentenceEncoder, sentences: list[str]) -> np.ndarray:
    """Give an encoder a last linear layer that turns its vectors; the share of each dimension in their variance.

    The directions are those of the largest variance of the sentences' vectors, sorted by it: of all cuts to the first k
    dimensions by a rotation theirs loses least of it. Dot products, and so cosines, of whole vectors stay the same.
    """
    encoder.before_normalize = True
    variances, directions = principal_components(encoder.encode(sentences))
    encoder.before_normalize = False
    linear = nn.Linear(encoder.dimension, encoder.dimension, bias=False)
    linear.weight.data = torch.from_numpy(np.ascontiguousarray(directions)).float()
    encoder.dense.append(nn.Sequential(linear, nn.Identity()))
    return variances / variances.sum()
