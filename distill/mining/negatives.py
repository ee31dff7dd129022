"""Hard negatives: of each source sentence the translations of others that a model takes nearly for its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.mining.neighbours import BLOCK, is_exact, searcher, write_vectors
from distill.ranks import on_first_rank
from distill.training.cache import check_whole, fill, fingerprint, mapped
from distill.training.teachers import ModelTeacher
from distill.training.tokens import TokenizedPairs

SPARE = 16  # neighbours looked at beside those asked for, and its own translations: such as are nearly right


class Passing(NamedTuple):
    """A student as it is at a step of its training, which finds hard negatives in place of a `ModelTeacher`."""

    name: str  # of its weights
    vectors: Callable[[list[str]], np.ndarray]


def as_it_is(student: SentenceEncoder, max_tokens: int, accelerator: Accelerator) -> Passing:
    """A student in training, on every rank, with forwards of `max_tokens`."""
    weights = (parameter.detach().cpu().numpy() for parameter in student.parameters())

    def vectors(sentences: list[str]) -> np.ndarray:
        with accelerator.autocast():
            return student.encode(sentences, max_tokens)

    return Passing(on_first_rank(lambda: fingerprint(*weights), accelerator), vectors)


def hard_negatives(
    dataset,
    content: str,
    pairs: TokenizedPairs,
    model: ModelTeacher | Passing,
    k: int,
    relative_margin: float,
    cache_dir: Path,
    accelerator: Accelerator,
) -> tuple[np.ndarray, str]:
    """At most k wrong translations of each row's source, nearest first, as numbers of pairs: (rows, k), -1 for none.

    And a name for them. Wrong is one of another row that reads as none of its own translations, and whose cosine with
    the source is below that of its own translations in the mean by more than `relative_margin` of it: what is nearer
    may be right too. Of those that read the same one is taken. Found by all ranks, kept on disk, with the vectors of a
    model that may be asked again; `content` is the dataset's fingerprint, all of whose rows have translations.
    """
    device, rows, count = accelerator.device, len(dataset), len(pairs.row_of_pair)
    k, first_pair, most = min(k, count), pairs.first_pair, int(np.diff(pairs.first_pair).max())
    exact = is_exact("auto", rows, count, device)
    name = fingerprint(model.name, accelerator.mixed_precision, content)
    found = fingerprint(name, pairs.fingerprint, k, relative_margin, exact)
    if on_first_rank((cache_dir / f"negatives-{found}").is_dir, accelerator):
        return kept_negatives(found, rows, cache_dir, accelerator), found

    def targets(start: int, stop: int) -> list[str]:
        first, last = pairs.row_of_pair[start], pairs.row_of_pair[stop - 1]
        found = [target["sentence"] for of_row in dataset[first : last + 1]["targets"] for target in of_row]
        return found[start - first_pair[first] :][: stop - start]

    def sources(start: int, stop: int) -> list[str]:
        return dataset[start:stop]["source"]

    folders = [cache_dir / f"vectors-{fingerprint(name, number)}" for number in (0, 1)]
    sides = zip(folders, (rows, count), (sources, targets), strict=True)
    of_sources, of_targets = (write_vectors(*side, model.vectors, accelerator) for side in sides)
    folders.append(cache_dir / f"index-{name}")
    search = searcher(of_targets, exact, folders[-1], accelerator)

    def wrong(start: int, stop: int) -> dict[str, np.ndarray]:
        cosines, found = search(of_sources[start:stop], min(k + most + SPARE, len(of_targets)))
        result = np.full((stop - start, k), -1, np.int32)
        for i, row in enumerate(range(start, stop)):
            own = slice(first_pair[row], first_pair[row + 1])
            nearness = float((of_sources[row].astype(np.float32) * of_targets[own].astype(np.float32)).sum(1).mean())
            far = found[i][cosines[i] < nearness - relative_margin * abs(nearness)]
            text = pairs.digests(pairs.target_of_pair(far))
            its = pairs.digests(pairs.target_of_pair(np.arange(own.start, own.stop)))
            _, first = np.unique(text, return_index=True)  # of equal texts the nearest
            first = np.sort(first)
            far = far[first[~np.isin(text[first], its)]][:k]
            result[i, : len(far)] = far
        return {"pairs": result.ravel()}

    fill(cache_dir / f"negatives-{found}", rows, wrong, accelerator, "hard negatives", BLOCK[device.type])
    if isinstance(model, Passing):
        on_first_rank(lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in folders], accelerator)
    return kept_negatives(found, rows, cache_dir, accelerator), found


def kept_negatives(found: str, rows: int, cache_dir: Path, accelerator: Accelerator) -> np.ndarray:
    """Those that a name stands for, (rows, k); how many sources have some is said. UserError where they are gone."""
    folder = cache_dir / f"negatives-{found}"

    def having() -> int:
        if not folder.is_dir():
            lost = f"{folder} is gone, which the run has found while it trained"
            raise UserError(f"{lost}: name the --cache_dir that it had, or start a new run")
        check_whole(folder)
        first = mapped(folder / "pairs.bin", np.int32).reshape(rows, -1)[:, 0]
        return sum(int((first[i : i + (1 << 16)] >= 0).sum()) for i in range(0, rows, 1 << 16))

    accelerator.on_main_process(print)(
        f"{on_first_rank(having, accelerator):,} of {rows:,} sources have hard negatives"
    )
    return mapped(folder / "pairs.bin", np.int32).reshape(rows, -1)
