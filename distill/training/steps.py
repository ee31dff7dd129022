"""What a step is made of: the order of an epoch, the pairs of a step, a rank's part of it in micro-batches.

Everything that grows with the corpus is a memory-mapped file, so that training's own memory does not grow with it.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.command import UserError
from distill.encoder.packing import to_device, within
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.ranks import end_workers, ignore_signals
from distill.training.cache import fingerprint
from distill.training.tokens import UNTRANSLATED, TokenizedPairs, pairs_per_language

FEW_PAIRS = 64  # for a GPU: its step is mostly calls
BANK = 1  # beside a step's number: its order is drawn from the epoch's
SIDES = ("source", "target")  # of a pair, that a student can be trained on


def scratch(folder: Path, rows: int, length: int) -> np.ndarray:
    """An int32 array (rows, length) in an unnamed file of `folder`: it takes disk, not memory, and ends with its users.

    UserError when the disk has no room for it, or takes no file.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 4 * rows * length)  # else a full disk is met later, and ends all
            return np.memmap(file, np.int32, mode="r+", shape=(rows, length)).view(np.ndarray)
    except OSError as error:
        reason = f"{folder} cannot take the order of an epoch ({os.strerror(error.errno)})"
        raise UserError(
            f"{reason}: make room there and add --resume_from_checkpoint latest, or name another --cache_dir"
        ) from error


def epoch_order(
    pairs: TokenizedPairs,
    room: np.ndarray,
    translations_per_source: int,
    temperature: float,
    seed: int,
    epoch: int,
    block: int = 1 << 14,
    untranslated: bool = True,
) -> np.ndarray:
    """The order in which an epoch takes its pairs, (pairs,) int32: a pure function of its arguments.

    A row's pairs are dealt at random into groups of at most `translations_per_source`; groups are shuffled and stay
    together, so that the source sentence is encoded once for its group. `room`, (4, pairs + 1) int32, is where it
    works and where the order stands until the next call. Goes through blocks of rows: what it needs beside the room
    does not depend on the number of pairs. `untranslated`: whether rows without translations are taken.
    """
    rows, (dealt, begins, groups, order) = len(pairs.first_pair) - 1, room
    random = np.random.default_rng((seed, epoch))
    have, take = pairs_per_language(pairs, temperature, untranslated)
    phase, seen = random.integers(0, np.maximum(have, 1)), np.zeros_like(have)
    pair_count = group_count = 0
    for start in range(0, rows, block):
        taken = np.arange(pairs.first_pair[start], pairs.first_pair[min(start + block, rows)])
        # Of a language, every (have / take)-th pair is taken, or a pair take / have times, from a random phase on.
        copies = np.empty_like(taken)
        for language in range(len(have)):
            its = np.flatnonzero(pairs.language_of_pair[taken] == language)
            due = (np.arange(len(its) + 1) + seen[language]) * take[language] + phase[language]
            copies[its] = np.diff(due // max(have[language], 1))
            seen[language] += len(its)
        taken = np.repeat(taken, copies)
        row = pairs.row_of_pair[taken]
        position_in_row = np.arange(len(row)) - np.searchsorted(row, row)
        first = np.flatnonzero(position_in_row % translations_per_source == 0)
        dealt[pair_count : pair_count + len(row)] = taken[np.lexsort((random.random(len(row)), row))]
        begins[group_count : group_count + len(first)] = pair_count + first
        groups[group_count : group_count + len(first)] = np.arange(group_count, group_count + len(first))
        pair_count, group_count = pair_count + len(row), group_count + len(first)
    begins[group_count] = pair_count
    random.shuffle(groups[:group_count])
    done = 0
    for start in range(0, group_count, block):
        group = groups[start : min(start + block, group_count)]
        sizes = begins[group + 1] - begins[group]
        taken = np.repeat(begins[group], sizes) + within(sizes)
        order[done : done + len(taken)] = dealt[taken]
        done += len(taken)
    return order[:done]


class Step(NamedTuple):
    """The sentences of an optimizer step, of the sides trained on. A source stands once for all of its pairs in it."""

    sentences: np.ndarray  # (n,) their numbers in TokenizedPairs
    rows: np.ndarray  # (n,) of the dataset
    weights: np.ndarray  # (n,) how many of the step's pairs each is in: a hard negative in none
    languages: np.ndarray  # (n,) 0 for a source, 1 + the number of its language for a target


class Steps:
    """Which pairs form which optimizer step: a pure function of (seed, epoch, step), whatever the processes.

    Where the side `source` is not trained on, rows without translations are `left_out`; UserError where no other is.
    `negatives`, (rows, k): wrong translations of each row's source, as numbers of pairs, -1 where there is none; those
    of a step's rows stand in it too. What would be a last step of less than `fewest` pairs is joined to the one before.
    """

    def __init__(
        self,
        pairs: TokenizedPairs,
        batch_size: int,
        translations_per_source: int,
        temperature: float,
        seed: int,
        sides: Collection[str] = SIDES,
        bank_size: int = 0,
        negatives: np.ndarray | None = None,
        fewest: int = 1,
    ):
        if "source" not in sides and pairs.languages == [UNTRANSLATED]:
            raise UserError("--train_on target: no row to train on has translations, so train on source, or add some")
        self.pairs, self.batch_size, self.sides = pairs, batch_size, sides
        self.order_settings, self.bank_size = (translations_per_source, temperature, seed), bank_size
        self.negatives = negatives
        self.pairs_per_epoch = int(pairs_per_language(pairs, temperature, "source" in sides)[1].sum())
        self.left_out = len(pairs.row_of_pair) - self.pairs_per_epoch
        self.per_epoch = max(1, -((fewest - 1 - self.pairs_per_epoch) // batch_size))
        self.fingerprint = fingerprint(pairs.fingerprint, batch_size, self.order_settings)
        # In a file: the process that makes the steps fills it, this one sees that there is room.
        self.room = scratch(pairs.folder, 4, len(pairs.row_of_pair) + 1)
        self.epoch, self.order = None, None

    def __getitem__(self, step: int) -> Step:
        epoch, step = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            of_epoch = (self.pairs, self.room, *self.order_settings, epoch)
            self.epoch, self.order = epoch, epoch_order(*of_epoch, untranslated="source" in self.sides)
        end = (step + 1) * self.batch_size if step + 1 < self.per_epoch else None
        taken = self.order[step * self.batch_size : end]
        of_sides = []
        if "source" in self.sides:
            rows, weights = np.unique(self.pairs.row_of_pair[taken], return_counts=True)
            of_sides.append((self.pairs.source_of_row(rows), rows, weights, np.zeros_like(rows)))
        if "target" in self.sides:
            taken = self.pairs.translated(taken)
            rows, languages = self.pairs.row_of_pair[taken], self.pairs.language_of_pair[taken]
            of_sides.append((self.pairs.target_of_pair(taken), rows, np.ones_like(taken), languages + 1))
        if self.negatives is not None:
            wrong = np.setdiff1d(self.negatives[self.pairs.row_of_pair[taken]], [-1, *taken])
            rows, languages = self.pairs.row_of_pair[wrong], self.pairs.language_of_pair[wrong]
            of_sides.append((self.pairs.target_of_pair(wrong), rows, np.zeros_like(wrong), languages + 1))
        return Step(*map(np.concatenate, zip(*of_sides, strict=True)))

    def pairs_of(self, step: int) -> TokenizedPairs:
        """What a step's sentences are of."""
        return self.pairs

    def bank(self, step: int) -> np.ndarray:
        """Rows whose labels the loss compares a step's sentences with, at most `bank_size`, drawn at random."""
        rows = len(self.pairs.first_pair) - 1
        *_, seed = self.order_settings
        random = np.random.default_rng((seed, step, BANK))
        return np.sort(random.choice(rows, min(self.bank_size, rows), replace=False, shuffle=False))

    def pairs_before(self, step: int) -> int:
        """The number of pairs of all steps before one: an epoch's last step may be of another size."""
        epochs, steps = divmod(step, self.per_epoch)
        return epochs * self.pairs_per_epoch + steps * self.batch_size


class Turns:
    """The steps of two tasks in turn, `share` of them, evenly spread, the second's; an epoch is one of the first's.

    Which task a step is of depends on its number alone, and each goes on where it was. Rows and languages of the
    second, whose sources are one of these, are numbered behind those of the first.
    """

    def __init__(self, first: Steps, second: Steps, share: float):
        self.first, self.second, self.share = first, second, share
        self.per_epoch = first.per_epoch / (1 - share)

    def before(self, step: int) -> tuple[int, int]:
        """How many of the steps before one are of each task."""
        of_second = int(step * self.share)
        return step - of_second, of_second

    def task(self, step: int) -> tuple[Steps, int]:
        """The task of a step, and the step's number in it."""
        (first, second), (_, after) = self.before(step), self.before(step + 1)
        return (self.first, first) if after == second else (self.second, second)

    def __getitem__(self, step: int) -> Step:
        task, number = self.task(step)
        found, before = task[number], self.first.pairs
        if task is self.first:
            return found
        rows, languages = len(before.first_pair) - 1, len(before.languages) + 1
        return found._replace(rows=found.rows + rows, languages=found.languages + languages)

    def pairs_of(self, step: int) -> TokenizedPairs:
        return self.task(step)[0].pairs

    def pairs_before(self, step: int) -> int:
        first, second = self.before(step)
        return self.first.pairs_before(first) + self.second.pairs_before(second)


def few_pairs(batch_size: int, accelerator) -> str:
    """What to say of a step that leaves each of some GPUs too little to do; nothing on CPUs."""
    processes = accelerator.num_processes
    if accelerator.device.type != "cuda" or batch_size >= FEW_PAIRS * processes:
        return ""
    each = f"{batch_size / processes:.0f} pairs on each of {processes} GPUs"
    return f"--batch_size {batch_size} is {each}, too few to keep one busy: raise it, see docs/clusters.md"


class RankStep(NamedTuple):
    """A rank's part of a step: its sentences, longest first, in micro-batches that a forward takes one by one."""

    pairs: int  # of the step, over all ranks
    weight: int  # of the step's sentences, over all ranks
    rows: np.ndarray  # (n,) of the dataset
    labels: Tensor | None  # (n, dimension) float32
    weights: Tensor  # (n,) float32
    languages: Tensor  # (n,) int64
    bank: Tensor | None  # (size, dimension) float32, labels of other rows
    size: int  # sentences of the step, over all ranks
    places: Tensor  # (n,) int64, in the step over all ranks; of a sentence that only takes part, the step's size
    of_all: dict[str, Tensor]  # what a loss is to know of all of the step's sentences
    inputs: list[dict]  # of each micro-batch, as SentenceEncoder.inputs gives them
    sizes: list[int]  # sentences of each micro-batch
    tokens: int  # without padding

    def on(self, device: torch.device) -> "RankStep":
        """The same with its tensors on a device."""
        inputs = [to_device(batch, device) for batch in self.inputs]
        of_all = to_device(self.of_all, device)
        return RankStep(**to_device(self._asdict() | {"inputs": inputs, "of_all": of_all}, device))

    def micro_batches(self) -> Iterator[tuple[dict, Tensor, Tensor]]:
        """Inputs, labels and weights of each micro-batch of a step with labels."""
        return zip(self.inputs, self.labels.split(self.sizes), self.weights.split(self.sizes), strict=True)


class RankSteps(Dataset):
    """A rank's part of every step, by the step's number, in pieces of at most `max_tokens` tokens with padding.

    With labels, those of its sentences and of the bank; with `of_all(step, pairs=...)` what that gives for all of a
    step's.
    """

    def __init__(
        self,
        steps: Steps | Turns,
        labels: np.ndarray | None,
        student: SentenceEncoder,
        packed: bool,
        max_tokens: int,
        accelerator,
        of_all: Callable[..., dict[str, Tensor]] = lambda step, pairs: {},
    ):
        self.steps, self.labels, self.student, self.max_tokens = steps, labels, student, max_tokens
        self.of_all = of_all
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.on_gpu, self.packed = accelerator.device.type == "cuda", packed

    def __getitem__(self, number: int) -> RankStep:
        # Ranks are dealt sentences in order of length, so that they finish together, and all cut as rank 0 does, which
        # has the longest: with sharded weights they take each forward together. A rank that would get none takes one
        # with weight 0: it must take part in the exchange of gradients.
        step, pairs = self.steps[number], self.steps.pairs_of(number)
        lengths = pairs.lengths(step.sentences)
        order = np.argsort(-lengths, kind="stable")
        parts, weights, stand = [], [], []
        for dealt in self.student.cut(lengths[order[:: self.world]], self.max_tokens, self.packed):
            places = dealt * self.world + self.rank
            part = order[places[places < len(order)]]
            weights.append(step.weights[part] if len(part) else np.zeros(1))
            stand.append(part if len(part) else [len(order)])
            parts.append(part if len(part) else order[-1:])
        taken = np.concatenate(parts)

        def labels_of(rows: np.ndarray) -> Tensor:
            return torch.from_numpy(self.labels[rows]).float()

        return RankStep(
            pairs=self.steps.pairs_before(number + 1) - self.steps.pairs_before(number),
            weight=int(step.weights.sum()),
            rows=step.rows[taken],
            labels=None if self.labels is None else labels_of(step.rows[taken]),
            weights=torch.from_numpy(np.concatenate(weights)).float(),
            languages=torch.from_numpy(step.languages[taken]).long(),
            bank=None if self.labels is None else labels_of(self.steps.bank(number)),
            size=len(order),
            places=torch.from_numpy(np.concatenate(stand)).long(),
            of_all=self.of_all(step, pairs=pairs),
            inputs=[self.student.batch(*pairs.token_ids(step.sentences[part]), self.packed) for part in parts],
            sizes=[len(part) for part in parts],
            tokens=int(lengths[taken].sum()),
        )

    def coming(self, first: int, last: int, workers: int) -> Iterator[RankStep]:
        """One after the other from step `first` on, before `last`; with a worker (1) prepared ahead by a process."""
        end_workers()  # two would write their orders of an epoch to the same room
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a worker's tensors come as open files
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first, last),
            collate_fn=lambda step: step,
            num_workers=workers,
            worker_init_fn=ignore_signals,
            pin_memory=self.on_gpu,
            generator=torch.Generator(),  # else it draws from the random numbers that dropout takes
        )
        return iter(loader)

    def halve(self) -> bool:
        """Take half of the tokens of a forward from now on, where memory has run out; whether that can be tried.

        Not where there is no smaller one to try, or other ranks wait for this one's gradients.
        """
        if self.world > 1 or self.max_tokens == 1:
            print(f"out of memory: give --max_tokens_per_batch less than {self.max_tokens}", file=sys.stderr)
            return False
        end_workers()  # so that the iterator can be let go at once
        self.max_tokens //= 2
        print(f"out of memory: from here on {self.max_tokens} tokens a forward", file=sys.stderr)
        return True
