"""Turn: a model's vectors in the directions of their principal components, so that their first dimensions say most."""

import numpy as np
import torch
from torch import nn

from distill.encoder.sentence_encoder import SentenceEncoder


def turn(encoder: SentenceEncoder, sentences: list[str]) -> np.ndarray:
    """Give an encoder a last linear layer that turns its vectors; the share of each dimension in their variance.

    The directions are those of the largest variance of the sentences' vectors, sorted by it: of all cuts to the first k
    dimensions by a rotation theirs loses least of it. Dot products, and so cosines, of whole vectors stay the same.
    """
    normalize, encoder.normalize = encoder.normalize, False
    vectors = encoder.encode(sentences).astype(np.float64)
    encoder.normalize = normalize
    variance, rising = np.linalg.eigh(np.cov(vectors, rowvar=False))  # sorted by variance
    linear = nn.Linear(encoder.dimension, encoder.dimension, bias=False)
    linear.weight.data = torch.from_numpy(np.ascontiguousarray(rising.T[::-1])).float()
    encoder.dense.append(nn.Sequential(linear, nn.Identity()))
    return variance[::-1] / variance.sum()
