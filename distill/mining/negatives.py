"""Hard negatives: of each source sentence the translations of others that a model takes nearly for its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash
from accelerate import Accelerator

from distill.mining.neighbours import BLOCK, CHUNK, is_exact, searcher, write_vectors
from distill.training.cache import fill, fingerprint, mapped
from distill.training.teachers import ModelTeacher
from distill.training.tokens import TokenizedPairs

SPARE = 16  # neighbours looked at beside those asked for, and its own translations: such as are nearly right


class Sentences:
    """One side of the pairs as a column `sentence`, read from the dataset as it is used. `texts(start, stop)`."""

    def __init__(self, length: int, texts: Callable[[int, int], list[str]]):
        self.length, self.texts = length, texts

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: slice) -> dict[str, list[str]]:
        return {"sentence": self.texts(place.start, min(place.stop, self.length))}


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

    And a name for them. Wrong is one of another row whose text is none of its own translations', and whose cosine with
    the source is below that of its own translations in the mean by more than `relative_margin` of it: what is nearer
    may be right too. Of equal texts one is taken. Found by all ranks, kept on disk; `content` is the dataset's
    fingerprint, all of whose rows have translations.
    """
    device, rows = accelerator.device, len(dataset)
    k, first_pair = min(k, len(pairs.row_of_pair)), pairs.first_pair

    def targets(start: int, stop: int) -> list[str]:
        first, last = pairs.row_of_pair[start], pairs.row_of_pair[stop - 1]
        found = [target["sentence"] for of_row in dataset[first : last + 1]["targets"] for target in of_row]
        return found[start - first_pair[first] :][: stop - start]

    def encode(sentences: list[str]) -> np.ndarray:
        with accelerator.autocast():
            return model.encoder.on(device).encode(sentences)

    name, sides = fingerprint(model.name, accelerator.mixed_precision, content), []
    columns = ((rows, lambda start, stop: dataset[start:stop]["source"]), (len(pairs.row_of_pair), targets))
    for number, column in enumerate(columns):
        folder = cache_dir / f"vectors-{fingerprint(name, number)}"
        sides.append(write_vectors(folder, Sentences(*column), encode, accelerator))
    of_sources, of_targets = sides

    def digests(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"digests": np.array([xxhash.xxh3_64_intdigest(t.encode()) for t in targets(start, stop)], np.uint64)}

    fill(cache_dir / f"texts-{fingerprint(content)}", len(of_targets), digests, accelerator, "texts", CHUNK)
    text = mapped(cache_dir / f"texts-{fingerprint(content)}" / "digests.bin", np.uint64)
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
            _, first = np.unique(text[far], return_index=True)  # of equal texts the nearest
            far = far[np.sort(first)]
            far = far[~np.isin(text[far], text[own])][:k]
            result[i, : len(far)] = far
        return {"pairs": result.ravel()}

    found = fingerprint(name, k, relative_margin, exact)
    fill(cache_dir / f"negatives-{found}", rows, wrong, accelerator, "hard negatives", BLOCK[device.type])
    return mapped(cache_dir / f"negatives-{found}" / "pairs.bin", np.int32).reshape(rows, k), found
