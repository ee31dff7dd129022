"""Sentences of different lengths in one forward: padded, or packed one after another."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def packed_batches(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Cut sequences, longest first, into batches of at most `max_tokens` tokens (or one sequence)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    starts, tokens = [], max_tokens
    for place, length in enumerate(np.asarray(lengths)[order]):
        if tokens + length > max_tokens:
            starts.append(place)
            tokens = 0
        tokens += length
    return np.split(order, starts[1:])


def padded_batches(lengths: np.ndarray, max_tokens: int, batch_cost: int = 256) -> list[np.ndarray]:
    """Cut sequences, longest first, into batches of at most `max_tokens` padded tokens (or one sequence).

    Of all cuts of the sorted sequences the one with the least sum of padded tokens, where each batch costs
    `batch_cost` tokens more: by dynamic programming over the places where a batch may start. Longest first,
    memory runs out at once or never.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    cost, begin = np.full(len(order) + 1, np.inf), np.zeros(len(order) + 1, dtype=int)
    cost[0] = 0
    for start, length in enumerate(np.asarray(lengths)[order]):
        sizes = np.arange(1, min(max(1, max_tokens // length), len(order) - start) + 1)
        through = cost[start] + batch_cost + sizes * length
        better = through < cost[start + sizes]
        cost[start + sizes[better]], begin[start + sizes[better]] = through[better], start
    batches, stop = [], len(order)
    while stop > 0:
        batches.append(order[begin[stop] : stop])
        stop = begin[stop]
    return batches[::-1]


def pad(sequences: list, pad_token_id: int) -> dict[str, Tensor]:
    """Token id sequences to a model's `input_ids` and `attention_mask`, both (batch, longest) int64."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    real = torch.arange(int(lengths.max())) < lengths[:, None]
    input_ids = torch.full(real.shape, pad_token_id)
    input_ids[real] = torch.from_numpy(np.concatenate(sequences).astype(np.int64))
    return {"input_ids": input_ids, "attention_mask": real.long()}


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
def ending_out_of_memory() -> Iterator[None]:
    """End the block where memory runs out in it: after it nothing is held any more by the error and its frames."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise


def pack(sequences: list, first_position: int) -> dict:
    """Token id sequences one after another, (1, tokens), with their positions and the runs of equal lengths.

    A run is (sequences, length): so many neighbours of the same length, which attention can take as one batch.
    """
    lengths = [len(sequence) for sequence in sequences]
    positions = np.concatenate([np.arange(first_position, first_position + length) for length in lengths])
    return {
        "input_ids": torch.from_numpy(np.concatenate(sequences).astype(np.int64))[None],
        "position_ids": torch.from_numpy(positions)[None],
        "runs": [(len(list(run)), length) for length, run in itertools.groupby(lengths)],
    }


def _packed_attention(module, query, key, value, attention_mask, runs=None, dropout=0.0, scaling=None, **kwargs):
    """Attention within each of packed sentences; without `runs`, sdpa on padded ones.

    query, key, value: (1, heads, tokens, width of a head). Split once and not sliced, so that backward writes
    each gradient once. Written out: on a CPU torch's flash kernel takes several times as long for short sentences.
    """
    if runs is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    sizes = [count * length for count, length in runs]
    parts = []
    split = (x[0].split(sizes, dim=1) for x in (query * scaling, key, value))
    for (count, length), *qkv in zip(runs, *split, strict=True):
        # (heads, count * length, width) to (count, heads, length, width) and back
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in qkv)
        weights = nn.functional.dropout((q @ k.transpose(-1, -2)).softmax(-1), dropout)
        parts.append((weights @ v).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


def _packed_mask(*, attention_mask=None, **settings):
    """Packed sentences need no mask."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **settings)


AttentionInterface.register("packed", _packed_attention)
AttentionMaskInterface.register("packed", _packed_mask)
# Model types whose attention can be replaced by the one above; their own position ids are those of padded sentences.
PACKABLE = ("bert", "roberta", "xlm-roberta", "camembert")
