"""Search by cosine: the nearest vectors on the other side, exactly, and never all similarities in memory at once."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distill.ranks import check_signal

BLOCK = 4096  # vectors of either side whose cosines are in memory at a time: 64 MB of fp32


def cosine_blocks(source: np.ndarray, target: np.ndarray, device, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The cosines of all sources with all targets, a block of each at a time, with the rows of both."""

    def blocks(vectors: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(vectors), block):
            rows = slice(start, min(start + block, len(vectors)))
            taken = torch.from_numpy(np.array(vectors[rows])).to(device).float()
            yield rows, torch.nn.functional.normalize(taken, dim=1)

    for rows, queries in blocks(source):
        for columns, answers in blocks(target):
            yield rows, columns, queries @ answers.T


def neighbourhood(source: np.ndarray, target: np.ndarray, k: int, device, block: int) -> tuple[Tensor, Tensor]:
    """The mean cosine of each source (n,) with its k nearest targets, and of each target (m,) with its k sources."""
    k = min(k, len(source), len(target))
    nearest = [torch.full((len(side), k), -torch.inf, device=device) for side in (source, target)]
    for rows, columns, cosines in cosine_blocks(source, target, device, block):
        for kept, here, scores in ((nearest[0], rows, cosines), (nearest[1], columns, cosines.T)):
            best = scores.topk(min(k, scores.shape[1]), dim=1).values
            kept[here] = torch.cat([kept[here], best], dim=1).topk(k, dim=1).values
    return nearest[0].mean(1), nearest[1].mean(1)


def nearest_neighbours(
    source: np.ndarray, target: np.ndarray, margin_k: int = 0, device="cpu", block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest target of each source (n,), and the nearest source of each target (m,), as row numbers.

    By cosine; with `margin_k` by the ratio of the cosine to the mean of both sentences' cosines with their k nearest
    neighbours, which tells a good match from a sentence that is near to everything (Artetxe & Schwenk 2019, arXiv
    1811.01136, equation 2 with the ratio margin). Blockwise: n x m numbers are never in memory at once. Of equals
    the first is taken.
    """
    around = neighbourhood(source, target, margin_k, device, block) if margin_k else None
    best = [torch.full((len(side),), -torch.inf, device=device) for side in (source, target)]
    found = [torch.zeros(len(side), dtype=torch.long, device=device) for side in (source, target)]
    for rows, columns, scores in cosine_blocks(source, target, device, block):
        if around is not None:
            scores = 2 * scores / (around[0][rows, None] + around[1][columns])
        for side, here, there, dim in ((0, rows, columns, 1), (1, columns, rows, 0)):
            # Where the highest stands is asked only of the few rows that a block has something better for.
            highest = scores.amax(dim)
            better = torch.nonzero(highest > best[side][here])[:, 0]
            best[side][here.start + better] = highest[better]
            found[side][here.start + better] = scores.index_select(1 - dim, better).argmax(dim) + there.start
    return found[0].cpu().numpy(), found[1].cpu().numpy()


def k_nearest(
    queries: np.ndarray,
    answers: np.ndarray,
    k: int,
    device: torch.device,
    block: int = BLOCK,
    hidden: Callable[[slice, slice], Tensor] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k highest cosines of each query with the answers, falling, and the answers' rows: (n, k) each. Blockwise.

    `hidden(rows, columns)`: which answers a query does not see, (queries, answers) bool of those rows; where fewer than
    k are seen the last cosines are -inf.
    """
    nearest = torch.full((len(queries), k), -torch.inf, device=device)
    found = torch.zeros((len(queries), k), dtype=torch.long, device=device)
    for here, there, cosines in cosine_blocks(queries, answers, device, block):
        check_signal()
        if hidden:
            cosines.masked_fill_(hidden(here, there), -torch.inf)
        best = cosines.topk(min(k, cosines.shape[1]), dim=1)
        values = torch.cat([nearest[here], best.values], dim=1)
        rows = torch.cat([found[here], best.indices + there.start], dim=1)
        nearest[here], order = values.topk(k, dim=1)
        found[here] = rows.gather(1, order)
    return nearest.cpu().numpy(), found.cpu().numpy()
