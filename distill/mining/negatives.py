"""Hard negatives: of each source sentence the translations of others that a model takes nearly for its own."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator

from distill.mining.neighbours import BLOCK, is_exact, searcher, write_vectors
from distill.training.cache import fill, fingerprint, mapped
from distill.training.teachers import ModelTeacher
from distill.training.tokens import TokenizedPairs

SPARE = 16  # neighbours looked at beside those asked for, and its own translations: such as are nearly right


def hard_negatives(
    dataset,
    content: str,
    pairs: TokenizedPairs,
    model: ModelTeacher,
    k: int,
    relative_margin: float,
    cache_dir: Path,
    accelerator: Accelerator,
) -> tuple[np.ndarray, str]:
    """At most k wrong translations of each row's source, nearest first, as numbers of pairs: (rows, k), -1 for none.

    And a name for them. Wrong is one of another row that reads as none of its own translations, and whose cosine with
    the source is below that of its own translations in the mean by more than `relative_margin` of it: what is nearer
    may be right too. Of those that read the same one is taken. Found by all ranks, kept on disk; `content` is the
    dataset's fingerprint, all of whose rows have translations.
    """
    device, rows = accelerator.device, len(dataset)
    k, first_pair = min(k, len(pairs.row_of_pair)), pairs.first_pair

    def targets(start: int, stop: int) -> list[str]:
        first, last = pairs.row_of_pair[start], pairs.row_of_pair[stop - 1]
        found = [target["sentence"] for of_row in dataset[first : last + 1]["targets"] for target in of_row]
        return found[start - first_pair[first] :][: stop - start]

    def sources(start: int, stop: int) -> list[str]:
        return dataset[start:stop]["source"]

    name, vectors = fingerprint(model.name, accelerator.mixed_precision, content), []
    for number, (count, sentences) in enumerate(((rows, sources), (len(pairs.row_of_pair), targets))):
        folder = cache_dir / f"vectors-{fingerprint(name, number)}"
        vectors.append(write_vectors(folder, count, sentences, model.vectors, accelerator))
    of_sources, of_targets = vectors
    exact = is_exact("auto", len(of_sources), len(of_targets), device)
    search = searcher(of_targets, exact, cache_dir / f"index-{name}", accelerator)
    most = int(np.diff(first_pair).max())

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

    found = fingerprint(name, pairs.fingerprint, k, relative_margin, exact)
    fill(cache_dir / f"negatives-{found}", rows, wrong, accelerator, "hard negatives", BLOCK[device.type])
    return mapped(cache_dir / f"negatives-{found}" / "pairs.bin", np.int32).reshape(rows, k), found
