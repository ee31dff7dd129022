"""Which pairs stay, judged against each other; their split; and an account of those that do not."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import polars as pl

from distill.languages import covers, standard_tag
from distill.pairs.cleaning import MENDING, REASON, first_reason, letters
from distill.pairs.hash_order import starts_run
from distill.pairs.schemas import ALONE

SAMPLES = 5  # dropped pairs shown per corpus, language and reason


class Account:
    """Counts every pair once: what was read, mended, dropped for which reason, and kept, by corpus and language.

    Sentences by themselves are counted as pairs of the source language.
    """

    def __init__(self, source_language: str):
        self.shown = {ALONE: source_language}
        self.counts: Counter = Counter()
        self.samples: defaultdict[tuple, list] = defaultdict(list)
        self.variants: defaultdict[int, Counter] = defaultdict(Counter)  # (language, tag) that it was taken from
        self.not_taken: defaultdict[int, Counter] = defaultdict(Counter)  # tags that were read and not asked for

    def add(self, later: "Account") -> None:
        """What another has counted, of pairs that came after these."""
        self.counts.update(later.counts)
        for key, pairs in later.samples.items():
            self.samples[key] = [*self.samples[key], *pairs][:SAMPLES]
        for corpora, found in ((self.variants, later.variants), (self.not_taken, later.not_taken)):
            for corpus, tags in found.items():
                corpora[corpus].update(tags)

    def taken(self, pairs: pl.DataFrame, corpus: int, languages: dict[str, str | None]) -> pl.DataFrame:
        """The pairs under the language that each tag is taken as; those of others (None) are counted and left out."""
        for tag, number in pairs.group_by("language").len().iter_rows():
            if languages[tag] is None:
                self.not_taken[corpus][tag] += number
            elif languages[tag] != tag:
                self.variants[corpus][languages[tag], tag] += number
        names = pl.col("language").replace_strict(languages, return_dtype=pl.String)
        return pairs.with_columns(names).filter(pl.col("language").is_not_null())

    def cleaned(self, pairs: pl.DataFrame, corpus: int) -> pl.DataFrame:
        """Count pairs read from a corpus, what mending changed and what was dropped; the others are returned."""
        steps = [step for step in MENDING if step in pairs.columns]
        pairs = pairs.with_columns(corpus=pl.lit(corpus, pl.UInt32))
        sums = pairs.group_by("language").agg(pl.len().alias("read"), pl.col(steps).sum())
        for language, *numbers in sums.iter_rows():
            for name, number in zip(["read", *steps], numbers, strict=True):
                self.counts[corpus, language, name] += number
        return self.dropped(pairs.drop(steps))

    def dropped(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Count and sample the pairs whose column `dropped` holds a reason; the others are returned."""
        drops = pairs.filter(pl.col("dropped").is_not_null())
        for *key, number in drops.group_by("corpus", "language", "dropped").len().iter_rows():
            self.counts[tuple(key)] += number
        columns = ["corpus", "language", "dropped", "source", "target"]
        some = drops.select(columns).group_by(columns[:3], maintain_order=True).head(SAMPLES)
        for *key, source, target in some.iter_rows():
            if len(self.samples[tuple(key)]) < SAMPLES:
                self.samples[tuple(key)].append((source, target))
        return pairs.filter(pl.col("dropped").is_null()).drop("dropped")

    def report(self, corpora: list[str]) -> list[dict]:
        """Per corpus and language: pairs read, kept, mended by step and dropped by reason (read = kept + dropped).

        Also the variants that a language was taken from, if any; and by tag the pairs that were read but not taken.
        """
        report = [
            {"corpus": spec, "languages": {}, "not_taken": dict(sorted(self.not_taken[corpus].items()))}
            for corpus, spec in enumerate(corpora)
        ]
        for (corpus, language, name), number in sorted(self.counts.items()):
            empty = {"read": 0, "kept": 0, "mended": {}, "dropped": {}}
            entry = report[corpus]["languages"].setdefault(self.shown.get(language, language), empty)
            if name in ("read", "kept"):
                entry[name] = number
            elif number:
                entry["mended" if name in MENDING else "dropped"][name] = number
        for corpus, found in self.variants.items():
            for (language, tag), number in sorted(found.items()):
                report[corpus]["languages"][language].setdefault("variants", {})[tag] = number
        return report

    def summary(self) -> str:
        """What became of all pairs, in one line: '12 read, dropped wrong_script 12'."""
        totals = Counter()
        for (_, _, name), number in self.counts.items():
            totals[name] += number
        drops = ", ".join(f"{name} {n}" for name, n in totals.most_common() if name not in ("read", "kept", *MENDING))
        others = sum(sum(tags.values()) for tags in self.not_taken.values())
        return f"{totals['read']} read, dropped {drops or 'none'}, {others} of other languages not taken"

    def write_samples(self, path: Path, corpora: list[str]) -> None:
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:  # a path's bytes may be no UTF-8
            for (corpus, language, reason), pairs in sorted(self.samples.items()):
                for source, target in pairs:
                    shown = {"source": source and source[:500], "target": target and target[:500]}
                    named = {"language": self.shown.get(language, language)}
                    line = {"reason": reason, "corpus": corpora[corpus]} | named | shown
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def language_taken(tag: str, wanted: set[str] | None, source_language: str) -> str | None:
    """The language that pairs of a tag are taken as: 'zh-CN' as 'zh' where that was asked for; None where none was."""
    if tag == ALONE:
        return tag
    if wanted is None:
        return tag if standard_tag(tag) and not covers(source_language, tag) else None
    return max((language for language in wanted if covers(language, tag)), key=len, default=None)


def select(pairs: pl.DataFrame, skip: list[str], max_translations: int) -> pl.DataFrame:
    """Judge clean pairs, in the order of a run, against each other: adds `dropped` (null for what is kept).

    Two are alike where both their sentences have the same letters. A sentence by itself is kept once, where it has no
    translation.
    """
    run = starts_run(pairs, "hash", "language")
    several = (~(run & run.shift(-1, fill_value=True))).arg_true()
    dropped = pl.Series([None], dtype=REASON).new_from_index(0, len(pairs))
    # Only where sources are alike, or one has several translations in a language, is one there twice, or too many.
    few = pairs[several].select("hash", "language", "source", "target", start=run.gather(several))
    few = few.with_columns(letters=letters(few["target"]))
    again = ~pl.struct("source", "language", "target").is_first_distinct()
    alike = ~pl.struct("hash", "language", "letters").is_first_distinct()
    is_alone = pl.col("language") == ALONE
    reasons = [("duplicate", again & is_alone if "duplicate" in skip else again)]
    if not {"duplicate", "near_duplicate"} & {*skip}:
        reasons.append(("near_duplicate", alike))
    few = few.with_columns(dropped=first_reason(reasons))
    alive = pl.col("dropped").is_null().cast(pl.Int64)
    rank = alive.cum_sum() - pl.when("start").then(alive.cum_sum() - alive).forward_fill()
    few = few.with_columns(pl.coalesce("dropped", first_reason([("many_translations", rank > max_translations)])))
    pairs = pairs.with_columns(dropped=dropped.scatter(several, few["dropped"]))
    if (pairs["language"] == ALONE).any():
        translated = (pl.col("dropped").is_null() & ~is_alone).any().over("hash")
        pairs = pairs.with_columns(pl.coalesce("dropped", first_reason([("translated", is_alone & translated)])))
    return pairs


def marked(pairs: pl.DataFrame, reason: str, applies: pl.Expr) -> pl.DataFrame:
    """Adds `dropped` to pairs: the reason where it applies, null elsewhere."""
    return pairs.with_columns(dropped=first_reason([(reason, applies)]))


def limited(pairs: pl.DataFrame, room: dict[str, int]) -> pl.DataFrame:
    """Adds `dropped` to pairs in their order: those that their language has no room for."""
    full = pl.int_range(pl.len()).over("language") >= pl.col("language").replace_strict(room, return_dtype=pl.Int64)
    return marked(pairs, "over_limit", full)


def held_out(dev_fraction: float, dev_size: int | None, pairs: dict[str, int]) -> dict[str, float]:
    """The share of each language's pairs that is held out: the fraction; or what makes the size, at most half."""
    return {tag: min(dev_size / count, 0.5) if dev_size else dev_fraction for tag, count in pairs.items()}


def split_of(dev_fractions: dict[str, float], test_fraction: float) -> pl.Expr:
    """The split of a pair. The hash of its source decides: no sentence is on two sides, whatever else is there.

    A source with translations in several languages is held out with the highest of their `dev_fractions`. Sentences by
    themselves have no translation to find or to measure: all are trained on.
    """
    dev = pl.col("language").replace_strict(dev_fractions | {ALONE: 0.0}, return_dtype=pl.Float64).max().over("hash")
    # The low half of the hash, so that every part (a range of the high bits) holds its share of each split.
    place = (pl.col("hash") & 0xFFFFFFFF) / 2**32
    split = pl.when(pl.col("language") == ALONE).then(pl.lit("train")).when(place < dev).then(pl.lit("dev"))
    return split.when(place < dev + test_fraction).then(pl.lit("test")).otherwise(pl.lit("train"))
