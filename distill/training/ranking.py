"""Translation ranking: each sentence of a pair is to find the other among all of a step's sentences."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Ranking:
    """Cross-entropy over cosines times `scale`, from each side to the other, `margin` taken from a pair's own cosine.

    Of dual encoders with shared weights: Chidambaram et al. 2019, arXiv 1810.12836; the margin is that of Yang et al.
    2019, arXiv 1902.08564, as LaBSE has it, arXiv 2007.01852. With one translation a source and no margin it is
    sentence-transformers' MultipleNegativesRankingLoss in both directions, each with a softmax of its own.
    """

    def __init__(self, scale: float, margin: float):
        self.scale, self.margin = scale, margin
        self.factors = {"ranking": 1.0}

    def errors(self, vectors: Tensor, rows: Tensor, weights: Tensor, languages: Tensor) -> Tensor:
        """The error of each sentence of a step, (n,), a source's summed over its pairs; a hard negative has none.

        vectors: (n, dimension); rows, weights, languages: as those of a Step. Their sum over that of the weights is
        the mean over the pairs of both directions' cross-entropies. A source is compared with all translations but
        those of its own row, a translation with all sources; hard negatives stand among the translations.
        """
        units = normalize(vectors)
        source, target = (languages == 0).nonzero()[:, 0], ((languages > 0) & (weights > 0)).nonzero()[:, 0]
        among = (languages > 0).nonzero()[:, 0]
        own = torch.searchsorted(rows[source].contiguous(), rows[target].contiguous())  # sources stand in order of rows
        right = self.scale * ((units[target] * units[source[own]]).sum(1) - self.margin)
        cosines = units[source] @ units[among].T
        same = rows[source, None] == rows[among]
        wrong = (self.scale * cosines).masked_fill(same, torch.finfo(cosines.dtype).min)
        to_target = torch.logaddexp(wrong.logsumexp(1)[own], right) - right
        of_targets = wrong.T[weights[among] > 0]  # a translation's own source is the only one of its row
        to_source = torch.logaddexp(of_targets.logsumexp(1), right) - right
        return torch.zeros_like(vectors[:, 0]).index_add(0, source[own], to_target).index_add(0, target, to_source)

    def total(self, errors):
        """The loss (...) of errors (1, ...) by its only term: tensors or numbers."""
        return errors[0]
