"""Losses: what tells a student's vectors of a batch how far they are from what the teacher's labels ask.

A term compares each sentence's vector with its label; some also with a bank, labels of rows that are drawn anew for
every step. Labels are constants: a sentence's error is the same in whatever batch, micro-batch or process it stands.
"""

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, log_softmax, normalize

from distill.command import UserError, between
from distill.pairs.pairs_folder import evenly_spaced

WEIGHT = between(1e-6, 1e6)
VARIANCE_SAMPLE = 20_000  # labels whose variance is the unit of squared errors
BANK = {"bank_size": 1024, "loss_temperature": 0.05}  # where they are not given
ALIKE = 0.9  # of the way from the bank's mean cosine to 1: where labels have no other meaning, but are paraphrases


def mse(vectors: Tensor, labels: Tensor) -> Tensor:
    """Squared error, mean over dimensions: equation 1 of Reimers & Gurevych 2020, arXiv 2004.09813."""
    return (vectors - labels).square().mean(1)


def l2(vectors: Tensor, labels: Tensor) -> Tensor:
    """Distance, not squared, as in LEAF, arXiv 2509.12539: far vectors count no more than near ones."""
    return torch.linalg.vector_norm(vectors - labels, dim=1)


def cosine(vectors: Tensor, labels: Tensor) -> Tensor:
    """1 - cos(vector, label), as in jina-embeddings-v5, arXiv 2602.15547."""
    return 1 - cosine_similarity(vectors, labels)


def contrastive(vectors: Tensor, labels: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding the label among the bank by cosine / temperature, as LASER3-CO does, arXiv 2210.05033.

    Labels of the bank that are alike to the sentence's own are not among those to choose from: by a measure of the
    teacher's own, since of some all cosines lie near 1.
    """
    similar = cosines(labels, bank)
    mean = similar.mean(1, keepdim=True)
    alike = similar >= mean + ALIKE * (1 - mean)
    others = cosines(vectors, bank).masked_fill(alike, -torch.inf)
    found = torch.cat([cosine_similarity(vectors, labels)[:, None], others], 1)
    return -log_softmax(found / temperature, 1)[:, 0]


def distribution(vectors: Tensor, labels: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """KL(p || q), p the softmax of cosine / temperature of the label to itself and the bank, q that of the vector.

    As IMASCL matches distributions of similarities, arXiv 2405.16155: there of a batch's sentences.
    """
    own = cosine_similarity(labels, labels)  # 1, but of a label of zeros
    asked = torch.cat([own[:, None], cosines(labels, bank)], 1)
    found = torch.cat([cosine_similarity(vectors, labels)[:, None], cosines(vectors, bank)], 1)
    logs = (log_softmax(similarity / temperature, 1) for similarity in (found, asked))
    return kl_div(*logs, reduction="none", log_target=True).sum(1)


def similarity(vectors: Tensor, labels: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Squared error of the cosines to the bank, in units of the temperature, mean over the bank.

    As Jasper matches matrices of similarities, arXiv 2412.19048.
    """
    return ((cosines(vectors, bank) - cosines(labels, bank)) / temperature).square().mean(1)


def spread(vectors: Tensor, labels: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """How much less a vector's cosines to the bank are spread than those of random directions: m1^2 + max(0, m2 - 1/d).

    m1 is their mean, m2 that of their squares, d the dimension: global orthogonal regularisation, Zhang et al. 2017,
    arXiv 1708.06320. It asks nothing of the labels: beside other terms only.
    """
    similar = cosines(vectors, bank)
    return similar.mean(1).square() + (similar.square().mean(1) - 1 / bank.shape[1]).relu()


def cosines(vectors: Tensor, bank: Tensor) -> Tensor:
    """Cosine (batch, size) of vectors (batch, dimension) with each label of a bank (size, dimension)."""
    return normalize(vectors) @ normalize(bank).T


# Errors (batch,) of vectors (batch, dimension) by labels (batch, dimension).
TO_LABELS = {"mse": mse, "l2": l2, "cosine": cosine}
# The same, by labels and a bank (size, dimension), and a temperature.
TO_BANK = {"contrastive": contrastive, "distribution": distribution, "similarity": similarity, "spread": spread}
TERMS = [*TO_LABELS, *TO_BANK]


class Loss:
    """A weighted sum of terms, `weights` by name; `labels`, (rows, dimension), those that a run trains on.

    Beside other terms `mse` is in units of the labels' variance, `l2` of its root over all dimensions, so that a weight
    means the same with every teacher: a student that gives their mean for all has an error of 1. Alone `mse` is the
    article's. UserError where the labels are all the same.
    """

    def __init__(self, weights: dict[str, float], temperature: float | None, labels: np.ndarray):
        self.temperature, unit = temperature, variance(labels)
        units = {"mse": unit, "l2": (unit * labels.shape[1]) ** 0.5} if len(weights) > 1 else {}
        self.factors = {name: weight / units.get(name, 1.0) for name, weight in weights.items()}

    def errors(self, vectors: Tensor, labels: Tensor, bank: Tensor) -> Tensor:
        """The error of each sentence by each term, (terms, batch)."""

        def of(name: str) -> Tensor:
            if name in TO_LABELS:
                return TO_LABELS[name](vectors, labels)
            return TO_BANK[name](vectors, labels, bank, self.temperature)

        return torch.stack([of(name) for name in self.factors])

    def total(self, errors):
        """The weighted sum (...) of errors (terms, ...): tensors or numbers."""
        return sum(factor * error for factor, error in zip(self.factors.values(), errors, strict=True))


def variance(labels: np.ndarray) -> float:
    """Squared distance of labels (rows, dimension) to their mean, mean over dimensions, of a sample of the rows.

    UserError where it is no more than rounding.
    """
    sample = labels[evenly_spaced(len(labels), VARIANCE_SAMPLE)].astype(np.float64)
    found = float(sample.var(0).mean())
    if found <= 1e-9 * np.square(sample).mean():
        raise UserError("all source sentences have the same label: check the teacher, or its table of vectors")
    return found


def term(text: str) -> tuple[str, float]:
    """The type of an option that is a term of the loss, NAME or NAME:WEIGHT."""
    name, colon, weight = text.partition(":")
    if name not in TERMS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(TERMS)}")
    try:
        return name, WEIGHT(weight) if colon else 1.0
    except ValueError:
        raise argparse.ArgumentTypeError(f"{weight!r}, the weight of {name}, is no number") from None


def settle_loss(args: argparse.Namespace) -> None:
    """Make `args.loss` weights by name, in one order, and what is not given what it is then.

    UserError for a term that stands twice, and for options of a bank that no term reads.
    """
    given = args.loss or [("mse", 1.0)]
    names = [name for name, _ in given]
    if names == ["spread"]:
        raise UserError("--loss spread asks nothing of the labels: add another term")
    if len(set(names)) < len(names):
        raise UserError(f"--loss {' '.join(names)}: name each term once")
    args.loss = {name: dict(given)[name] for name in TERMS if name in names}
    for option, value in BANK.items():
        readers = [name for name in TO_BANK if (option, name) != ("loss_temperature", "spread")]
        given, read = getattr(args, option), not set(readers).isdisjoint(names)
        if given is not None and not read:
            raise UserError(f"--{option} is for {', '.join(readers)}: add one of them to --loss, or leave it out")
        if given is None and read:
            setattr(args, option, value)
