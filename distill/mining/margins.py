"""Margins: which sentences of two languages are translations, by how much nearer they are than their neighbours."""

from typing import NamedTuple

import numpy as np

CHUNK = 1 << 20  # candidates that are looked at one by one at a time


class Mined(NamedTuple):
    """Pairs of rows of the source and the target side, (n,) each, by falling margin."""

    sources: np.ndarray
    targets: np.ndarray
    margins: np.ndarray


def best_margins(
    cosines: np.ndarray, rows: np.ndarray, around_others: np.ndarray, copies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbour of each sentence that has the highest ratio margin, and that margin: (n,) each.

    The margin of two sentences is their cosine over the mean of both sentences' mean cosines with their k nearest
    neighbours (Artetxe & Schwenk 2019, arXiv 1811.01136, equation 2 with the ratio margin). cosines, rows: (n, k);
    around_others: the other side's mean cosines (m,). Of equals the nearer one is taken. A copy, (n, k) bool, and a
    sentence that is near to none have the margin -inf.
    """
    around = (cosines.mean(1, keepdims=True) + around_others[rows]) / 2
    sound = (cosines > 0) & (around > 0) & ~copies
    ratios = np.full_like(cosines, -np.inf)
    np.divide(cosines, around, out=ratios, where=sound)
    best = ratios.argmax(1)[:, None]
    return np.take_along_axis(rows, best, 1)[:, 0], np.take_along_axis(ratios, best, 1)[:, 0]


def mined_pairs(
    of_sources: tuple[np.ndarray, np.ndarray],
    of_targets: tuple[np.ndarray, np.ndarray],
    contents: tuple[np.ndarray, np.ndarray],
    lowest: float,
) -> tuple[Mined, np.ndarray]:
    """The pairs of two sides by the cosines and rows (n, k) of their neighbours; and each source's best margin (n,).

    Each sentence's best neighbour is a candidate, from either side. The candidate of the highest margin is a pair, then
    that of the highest margin of which neither sentence is in a pair yet, and so on ("max" in the paper), down to the
    `lowest` margin. `contents`: a hash of the sentences of either side; those that are equal are copies, not
    translations.
    """
    sides, others = (of_sources, of_targets), contents[::-1]
    around = [cosines.mean(1) for cosines, _ in sides]
    copies = [own[:, None] == other[rows] for own, other, (_, rows) in zip(contents, others, sides, strict=True)]
    targets, forward = best_margins(*of_sources, around[1], copies[0])
    sources, backward = best_margins(*of_targets, around[0], copies[1])
    own = [np.arange(len(side)) for side in (targets, sources)]
    sources, targets = np.concatenate([own[0], sources]), np.concatenate([targets, own[1]])
    margins = np.concatenate([forward, backward])
    high = np.flatnonzero(np.isfinite(margins) & (margins >= lowest))
    order = high[np.lexsort((targets[high], sources[high], -margins[high]))]
    kept = order[one_to_one(sources[order], targets[order])]
    return Mined(sources[kept], targets[kept], margins[kept]), forward


def one_to_one(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Whether each candidate, the best first, is of two sentences that no better one has taken: (n,) bool."""
    taken = [bytearray(int(side.max(initial=-1)) + 1) for side in (sources, targets)]
    kept = np.zeros(len(sources), bool)
    for start in range(0, len(kept), CHUNK):
        candidates = (side[start : start + CHUNK].tolist() for side in (sources, targets))
        for place, (source, target) in enumerate(zip(*candidates, strict=True), start):
            if not (taken[0][source] or taken[1][target]):
                taken[0][source] = taken[1][target] = True
                kept[place] = True
    return kept
