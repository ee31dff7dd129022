"""Sentences of different lengths in one forward: padded, or packed one after another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FORWARD_COST = {"cpu": 256, "cuda": 2500}  # padding that a forward more is worth, in tokens


def within(lengths: np.ndarray) -> np.ndarray:
    """Of sequences one after another, the position of each item in its own, from 0 on: (sum of lengths,)."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def packed_batches(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Cut sequences, longest first, into batches of at most `max_tokens` tokens (or one sequence)."""
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    stops = [0]
    while stops[-1] < len(order):
        before = ends[stops[-1] - 1] if stops[-1] else 0
        stops.append(max(stops[-1] + 1, int(np.searchsorted(ends, before + max_tokens, side="right"))))
    return np.split(order, stops[1:-1])


def padded_batches(lengths: np.ndarray, max_tokens: int, batch_cost: int = FORWARD_COST["cpu"]) -> list[np.ndarray]:
    """Cut sequences, longest first, into batches of at most `max_tokens` padded tokens (or one sequence).

    Of all cuts of the sorted sequences the one with the least sum of padded tokens, where each batch costs
    `batch_cost` tokens more: by dynamic programming over the places where a batch may start. Longest first,
    memory runs out at once or never.
    """
    order = np.argsort(-lengths, kind="stable")
    cost, begin = np.full(len(order) + 1, np.inf), np.zeros(len(order) + 1, dtype=int)
    cost[0] = 0
    for start, length in enumerate(lengths[order]):
        sizes = np.arange(1, min(max(1, max_tokens // length), len(order) - start) + 1)
        through = cost[start] + batch_cost + sizes * length
        better = through < cost[start + sizes]
        cost[start + sizes[better]], begin[start + sizes[better]] = through[better], start
    batches, stop = [], len(order)
    while stop > 0:
        batches.append(order[begin[stop] : stop])
        stop = begin[stop]
    return batches[::-1]


def pad(ids: np.ndarray, lengths: np.ndarray, pad_token_id: int) -> dict[str, Tensor]:
    """Sequences one after another (tokens,) to a model's `input_ids` and `attention_mask`: (batch, longest) int64."""
    real = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(real.shape, pad_token_id)
    input_ids[real] = ids
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}


def to_device(inputs: dict, device: torch.device) -> dict:
    """Inputs with their tensors on the device. Only from pinned memory is a copy to a GPU one nobody waits for."""

    def moved(tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor
        return pinned.to(device, non_blocking=True)

    return {name: moved(value) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def out_of_memory(error: Exception) -> bool:
    """Whether an error is one of memory: of a device's, of pinned memory or of that of cuBLAS, or of a CPU's."""
    said = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
    others = isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    return isinstance(error, torch.OutOfMemoryError) or others


@contextmanager
def ending_out_of_memory(mend: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """End the block where memory runs out in it and `mend()` says that it can be tried again with less.

    After the block nothing is held any more by the error and its frames.
    """
    try:
        yield
    except RuntimeError as error:
        if not (out_of_memory(error) and mend()):
            raise


def pack(ids: np.ndarray, lengths: np.ndarray, first_position: int) -> dict:
    """Sequences one after another (tokens,) as one, (1, tokens), with positions; and where the sequences are in it.

    `attention_mask`, (sequences, longest) int64: 1 for each token, as if they were padded; `slots`, (tokens,): where
    each would stand. `bounds`, (sequences + 1,) int32: where each begins, and the last ends; `runs`: of neighbours of
    equal length (sequences, length), which attention can take as one batch.
    """
    position, longest = within(lengths), int(lengths.max())
    first_of_run = np.flatnonzero(np.diff(lengths, prepend=0))
    counts = np.diff(first_of_run, append=len(lengths))
    return {
        "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
        "position_ids": torch.from_numpy(position + first_position)[None],
        "attention_mask": torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64)),
        "slots": torch.from_numpy(position + np.repeat(np.arange(len(lengths)) * longest, lengths)),
        "bounds": torch.from_numpy(np.append(0, np.cumsum(lengths)).astype(np.int32)),
        "longest": longest,
        "runs": list(zip(counts.tolist(), lengths[first_of_run].tolist(), strict=True)),
    }


def unpack(tokens: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
    """Packed vectors (tokens, width) as those of padded sentences, (sequences, longest, width), 0 where none is."""
    return tokens.new_zeros(mask.numel(), tokens.shape[1]).index_copy(0, slots, tokens).unflatten(0, mask.shape)


def _in_runs(query, key, value, scaling: float, dropout: float, runs: list, **_) -> Tensor:
    """Sequences of equal length at once, written out.

    On a CPU torch's flash kernel takes several times as long for short sentences. Split once and not sliced, so that
    backward writes each gradient once.
    """
    sizes = [count * length for count, length in runs]
    parts = []
    split = (x[0].split(sizes, dim=1) for x in (query * scaling, key, value))
    for (count, length), *qkv in zip(runs, *split, strict=True):
        # (heads, count * length, width) to (count, heads, length, width) and back
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in qkv)
        weights = nn.functional.dropout((q @ k.transpose(-1, -2)).softmax(-1), dropout)
        parts.append((weights @ v).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _by_kernel(query, key, value, scaling: float, dropout: float, bounds: Tensor, longest: int, **_) -> Tensor:
    """All at once, by flash attention's kernel for sequences of any lengths, which knows no dropout."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)


# Attention within each of packed sentences, by device: (1, heads, tokens, width) each to (tokens, heads, width).
PACKED = {"cpu": _in_runs, "cuda": _by_kernel}


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention within each sentence: of packed ones by the way of the device, of padded ones torch's own."""
    if "runs" not in kwargs:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return PACKED[query.device.type](query, key, value, scaling, dropout, **kwargs)[None], None


def _mask(*, attention_mask=None, allow_is_bidirectional_skip=False, **settings):
    """The mask of padded sentences; packed ones need none.

    Without the skip, which would read the mask back from the GPU in every forward, to see whether it is all ones.
    """
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **settings)


AttentionInterface.register("packed", _attention)
AttentionMaskInterface.register("packed", _mask)
# Model types whose attention can be replaced by the one above; their own position ids are those of padded sentences.
PACKABLE = ("bert", "roberta", "xlm-roberta", "camembert")
