"""Poolings: from the vectors of tokens to one of a sentence."""

import torch
from torch import Tensor


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def places(mask: Tensor) -> Tensor:
    """The place of each token in its sentence, from 1 on: (length, 1)."""
    return torch.arange(1, mask.shape[1] + 1, device=mask.device)[:, None]


def _at(tokens: Tensor, place: Tensor) -> Tensor:
    return tokens.gather(1, place.expand(-1, -1, tokens.shape[-1]))[:, 0]


POOLINGS = {  # (batch, length, width) tokens and their (batch, length, 1) mask to (batch, width)
    "cls": lambda tokens, mask: _at(tokens, mask.argmax(1, keepdim=True)),
    "max": lambda tokens, mask: tokens.masked_fill(mask == 0, -1e9).amax(1),
    "mean": _mean,
    "mean_sqrt_len_tokens": lambda tokens, mask: (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt(),
    "weightedmean": lambda tokens, mask: _mean(tokens, mask * places(mask)),
    "lasttoken": lambda tokens, mask: _at(tokens, (mask * places(mask)).argmax(1, keepdim=True)),
}
