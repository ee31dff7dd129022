"""Translation ranking: each sentence of a pair is to find the other among all of a step's sentences."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus
from torch.utils.checkpoint import checkpoint

from distill.training.steps import Step
from distill.training.tokens import TokenizedPairs

BLOCK = 256  # sources whose cosines with all others are in memory at a time


def choices(step: Step, pairs: TokenizedPairs) -> dict[str, Tensor]:
    """What `Ranking.errors` is to know of a step, made where steps are prepared: on a GPU indices would be waited for.

    `sources`, `targets`: which sentences they are; `own`: of each target its source, among the sources; `among`: what a
    source chooses among, the targets and the hard negatives behind them; `right` (sources, among): whether one is a
    translation of the source, or has the same text as one, or is of another source with the same text.
    """
    is_source = step.languages == step.languages[0]  # they stand first
    sources, targets = np.flatnonzero(is_source), np.flatnonzero(~is_source & (step.weights > 0))
    among = np.concatenate([targets, np.flatnonzero(~is_source & (step.weights == 0))])
    rows = step.rows[sources]  # in order, each once
    (_, asked), (_, text) = (
        np.unique(pairs.digests(step.sentences[part]), return_inverse=True) for part in (sources, among)
    )
    its = np.minimum(np.searchsorted(rows, step.rows[among]), len(rows) - 1)
    there = rows[its] == step.rows[among]  # of a hard negative the source may not be
    right = np.zeros((asked.max() + 1, text.max() + 1), bool)
    right[asked[its[there]], text[there]] = True
    own = its[: len(targets)]
    found = {"sources": sources, "targets": targets, "among": among, "own": own}
    return {name: torch.from_numpy(numbers) for name, numbers in found.items()} | {
        "right": torch.from_numpy(right[asked[:, None], text])
    }


class Ranking:
    """Cross-entropy over cosines times `scale`, from each side to the other, `margin` taken from a pair's own cosine.

    Of dual encoders with shared weights: Chidambaram et al. 2019, arXiv 1810.12836; the margin is that of Yang et al.
    2019, arXiv 1902.08564, as LaBSE has it, arXiv 2007.01852. With one translation a source and no margin it is
    sentence-transformers' MultipleNegativesRankingLoss in both directions, each with a softmax of its own.
    """

    def __init__(self, scale: float, margin: float):
        self.scale, self.margin = scale, margin
        self.factors = {"ranking": 1.0}

    def errors(
        self, vectors: Tensor, sources: Tensor, targets: Tensor, among: Tensor, own: Tensor, right: Tensor
    ) -> Tensor:
        """The error of each sentence of a step, (n,), a source's summed over its pairs; a hard negative has none.

        vectors: (n, dimension); the others as `choices` gives them. The errors' sum over that of the weights is the
        mean over the pairs of both directions' cross-entropies. A source is to find each of its translations among it
        and all that are wrong, a translation its source among it and all sources that it is wrong for.
        """
        units = normalize(vectors)
        found = self.scale * ((units[targets] * units[sources[own]]).sum(1) - self.margin)
        answers = units[among]

        def wrong_in(block: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
            """What is wrong for each of some sources, and among them for each target, as logarithms of sums."""
            wrong = self.scale * (block @ answers.T)
            wrong = wrong.masked_fill(right, torch.finfo(wrong.dtype).min)
            return wrong.logsumexp(1), wrong[:, : len(targets)].logsumexp(0)

        # The backward computes a block's cosines anew: their number grows with the square of a step
        blocks = zip(units[sources].split(BLOCK), right.split(BLOCK), strict=True)
        sums = [checkpoint(wrong_in, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
        of_sources, of_targets = zip(*sums, strict=True)
        to_target = softplus(torch.cat(of_sources)[own] - found)
        to_source = softplus(torch.stack(of_targets).logsumexp(0) - found)
        return torch.zeros_like(vectors[:, 0]).index_add(0, sources[own], to_target).index_add(0, targets, to_source)

    def total(self, errors):
        """The loss (...) of errors (1, ...) by its only term: tensors or numbers."""
        return errors[0]
