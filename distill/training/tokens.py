"""The sentences of a pairs split as token ids on disk, and which pairs they form."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import xxhash
from accelerate import Accelerator

from distill.encoder.packing import within
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.encoder.tokenizer import tokenizer_text
from distill.pairs.pairs_folder import sentence_counts
from distill.ranks import on_first_rank
from distill.training.cache import fill, fingerprint, mapped

UNTRANSLATED = "untranslated"  # the language of what stands among the pairs for a row without translations
NEGATIVE = "negative"  # the language of what is only ever a wrong answer


class TokenizedPairs:
    """A pairs split as token ids and tables of int32 and int64, memory-mapped.

    Sentences stand in row order, each source before its translations, as `encoder` reads them; pairs stand in the order
    of their targets. A row without translations is one pair, in a language of its own, whose target has no tokens.
    `content` is the split's fingerprint.
    """

    def __init__(self, dataset, content: str, encoder: SentenceEncoder, cache_dir: Path, accelerator: Accelerator):
        table = dataset.with_format("arrow")
        self.languages = sorted(sentence_counts(dataset).keys() - {""})
        if any(pc.any(pc.equal(pc.list_value_length(rows["targets"]), 0)).as_py() for rows in table.iter(10_000)):
            self.languages.append(UNTRANSLATED)
        number = {language: i for i, language in enumerate(self.languages)}

        def token_ids(start: int, stop: int) -> dict[str, np.ndarray]:
            rows = table[start:stop].to_pylist()
            sentences = [s for row in rows for s in (row["source"], *(t["sentence"] for t in row["targets"]))]
            ids = encoder.token_ids(sentences)
            counts = np.array([len(row["targets"]) for row in rows])
            none_after = np.flatnonzero(counts == 0)  # sources with no translation to follow them
            lengths = np.insert([len(i) for i in ids], none_after + np.cumsum(counts)[none_after] + 1, 0)
            pairs = np.maximum(counts, 1)
            languages = [t["language"] for row in rows for t in row["targets"] or [{"language": UNTRANSLATED}]]
            # The running sums begin with 0, so that item i lies between sums i and i + 1.
            zero = [0] * (start == 0)
            return {
                "ids": np.concatenate(ids).astype(np.int32),
                "offsets": np.cumsum([*zero, *lengths]),
                "row_of_pair": np.repeat(np.arange(start, stop, dtype=np.int32), pairs),
                "first_pair": np.cumsum([*zero, *pairs]),
                "language_of_pair": np.array([number[language] for language in languages], np.int32),
            }

        parts = content, tokenizer_text(encoder.tokenizer), encoder.max_seq_length, encoder.prompt
        self.fingerprint = on_first_rank(partial(fingerprint, *parts), accelerator)
        self.folder = cache_dir / f"tokens-{self.fingerprint}"
        running = {"offsets": "ids", "first_pair": "row_of_pair"}
        fill(self.folder, len(dataset), token_ids, accelerator, "token ids", 2048, running)
        self.ids = mapped(self.folder / "ids.bin", np.int32)
        self.offsets = mapped(self.folder / "offsets.bin", np.int64)
        self.first_pair = mapped(self.folder / "first_pair.bin", np.int64)
        self.row_of_pair = mapped(self.folder / "row_of_pair.bin", np.int32)
        self.language_of_pair = mapped(self.folder / "language_of_pair.bin", np.int32)

    def __getitem__(self, sentence: int) -> np.ndarray:
        """Token ids (length,) of a sentence."""
        return self.ids[self.offsets[sentence] : self.offsets[sentence + 1]]

    def token_ids(self, sentences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of sentences one after another, (tokens,), and how many are each one's."""
        lengths = self.lengths(sentences)
        return self.ids[np.repeat(self.offsets[sentences], lengths) + within(lengths)], lengths

    def digests(self, sentences: np.ndarray) -> np.ndarray:
        """A hash of each sentence as the encoder reads it, uint64: of equal ones the same."""
        return np.array([xxhash.xxh3_64_intdigest(self[sentence]) for sentence in sentences], np.uint64)

    def lengths(self, sentences: np.ndarray) -> np.ndarray:
        """Tokens of each sentence."""
        return self.offsets[sentences + 1] - self.offsets[sentences]

    def source_of_row(self, rows: np.ndarray) -> np.ndarray:
        """The sentence that is the source of each row: before it stand the earlier rows' sources and targets."""
        return rows + self.first_pair[rows]

    def evenly(self, size: int, block: int = 1 << 16) -> list[np.ndarray]:
        """At most `size` pairs of each language, evenly spaced, as the numbers of their rows."""
        have, _ = pairs_per_language(self, temperature=1)
        every, seen, found = -(-have // size), np.zeros_like(have), [[] for _ in have]
        for start in range(0, len(self.language_of_pair), block):
            part = self.language_of_pair[start : start + block]
            for language, rows in enumerate(found):
                its = np.flatnonzero(part == language)
                taken = (seen[language] + np.arange(len(its))) % every[language] == 0
                rows.append(self.row_of_pair[start + its[taken]])
                seen[language] += len(its)
        return [np.concatenate(rows) for rows in found]

    def counts(self, sides: Collection[str]) -> dict:
        """What trains on these sides: `pairs` by language, and sentences that are read without a translation."""
        have, _ = pairs_per_language(self, temperature=1)
        by_language = dict(zip(self.languages, have.tolist(), strict=True))
        alone = by_language.pop(UNTRANSLATED, 0)
        if "target" not in sides:
            return {"pairs": {}, "untranslated": len(self.first_pair) - 1}
        return {"pairs": by_language, "untranslated": alone if "source" in sides else 0}

    def translated(self, pairs: np.ndarray) -> np.ndarray:
        """Those of the pairs that have a target."""
        alone = self.languages.index(UNTRANSLATED) if UNTRANSLATED in self.languages else -1
        return pairs[self.language_of_pair[pairs] != alone]

    def target_of_pair(self, pairs: np.ndarray) -> np.ndarray:
        """The sentence that is the target of each pair: before it stand earlier targets, and sources to its own."""
        return pairs + self.row_of_pair[pairs] + 1


def pairs_per_language(
    pairs: TokenizedPairs, temperature: float, untranslated: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """How many pairs each language has, and how many an epoch takes: in proportion to count ** (1 / temperature).

    Both (languages,) int64. At temperature 1 they are equal; a high one takes as many of each
    (Devlin's exponential smoothing, as in Conneau & Lample 2019, arXiv 1901.07291, with alpha = 1 / temperature). None
    is taken of what is only a wrong answer, and with `untranslated` False for rows without translations.
    """
    blocks = range(0, len(pairs.language_of_pair), 1 << 16)
    parts = (pairs.language_of_pair[start : start + (1 << 16)] for start in blocks)
    have = sum(np.bincount(part, minlength=len(pairs.languages)) for part in parts)
    left_out = {NEGATIVE} if untranslated else {NEGATIVE, UNTRANSLATED}
    there = have * [language not in left_out for language in pairs.languages]
    share = there ** (1 / temperature)
    ends = np.rint(np.cumsum(share / share.sum()) * there.sum()).astype(np.int64)
    return have, np.diff(ends, prepend=0)
