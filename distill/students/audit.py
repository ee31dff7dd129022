"""Audit: what a tokenizer makes of a language, in figures, a table and a picture."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from tabulate import tabulate

from distill.command import UserError
from distill.encoder.tokenizer import token_ids
from distill.pairs.pairs_folder import evenly_spaced

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is no formula

# Thai, Lao, Tibetan, Burmese, Khmer, kana and Han: written without spaces between words.
UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")
# Kana, Han and Hangul: one sign is a syllable or a word.
SYLLABLES = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
PUNCTUATION = "".join(sign for sign in map(chr, range(1 << 16)) if unicodedata.category(sign)[0] == "P")
MOST_READ = 10_000  # characters of a text, some 2,000 tokens: the rest says no more of a language, and takes time
MAX_UNKNOWN = 0.05  # share of unknown tokens from which on a tokenizer does not read a language
# Tokens per sign from which on a tokenizer spells instead of reading: in letters, in syllables.
SPELLED = (0.6, 1.5)
# Share of words that do not come back from which on a tokenizer strips what tells words apart. Of English BERT's Czech
# 53% do not, and 1.3% of the words are taken for a more frequent one; of its Vietnamese 80%, and 21%.
MAX_LOST = 2 / 3


def audit(tokenizer, sentences: list[str], max_seq_length: int = 128) -> dict[str, int | float | str | None]:
    """Figures of a tokenizer on sentences of one language, without special tokens and cut by no length limit.

    `unknown_share`: unknown tokens among all; `lost_share`: words (of `word_counts`) that are others, be it by an
    accent, when their tokens are decoded, after NFKC and case folding; `tokens_per_word`: a word is what stands
    between spaces, so None for text in a script without them; `tokens_per_character`: spaces are not counted;
    `cut_share`: sentences that have more than `max_seq_length` tokens, with the special ones; `vocabulary_share`:
    tokens that occur, of all there are.
    `verdict`: "unknown" above `MAX_UNKNOWN`; else "spells" above `SPELLED` tokens per character, the limit of a mixed
    text lying between the two; else "strips" above `MAX_LOST`; else "reads".
    """
    room = max_seq_length - tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise UserError(
            f"--max_seq_length {max_seq_length}: special tokens of {tokenizer.name_or_path} take all of it, raise it"
        )
    ids = token_ids(tokenizer, sentences)
    text = " ".join(sentences)
    words, characters = len(text.split()), len("".join(text.split()))
    tokens = max(sum(map(len, ids)), 1)
    unknown_share = sum(sentence.count(tokenizer.unk_token_id) for sentence in ids) / tokens
    letters, syllables = SPELLED
    limit = letters + (syllables - letters) * len(SYLLABLES.findall(text)) / characters
    counts = word_counts(sentences)
    decoded = tokenizer.batch_decode(word_ids(tokenizer, counts), clean_up_tokenization_spaces=False)
    lost = sum(counts[word] for word, again in zip(counts, decoded, strict=True) if folded(word) != folded(again))
    lost_share = lost / max(counts.total(), 1)
    failures = {
        "unknown": unknown_share > MAX_UNKNOWN,
        "spells": tokens / characters > limit,
        "strips": lost_share > MAX_LOST,
    }
    return {
        "sentences": len(sentences),
        "unknown_share": unknown_share,
        "lost_share": lost_share,
        "tokens_per_word": None if len(UNSPACED.findall(text)) > characters / 2 else tokens / words,
        "tokens_per_character": tokens / characters,
        "cut_share": sum(len(sentence) > room for sentence in ids) / len(sentences),
        "vocabulary_share": len(set().union(*ids)) / len(tokenizer),
        "verdict": next((verdict for verdict, failed in failures.items() if failed), "reads"),
    }


def beginnings(sentences: Iterable[str]) -> list[str]:
    """The first `MOST_READ` characters of each: a corpus may hold texts of megabytes."""
    return [sentence[:MOST_READ] for sentence in sentences]


def folded(text: str) -> str:
    """A text without what NFKC, case and white space tell apart."""
    return "".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def word_counts(sentences: list[str]) -> Counter:
    """How often each word occurs: what stands between spaces, punctuation left out.

    In scripts without spaces every character is a word.
    """
    counts = Counter()
    for sentence in sentences:
        unspaced = len(UNSPACED.findall(sentence)) > len(sentence) / 2
        counts.update(word.strip(PUNCTUATION) for word in (sentence if unspaced else sentence.split()))
    del counts[""], counts[" "]
    return counts


def word_ids(tokenizer, words: Iterable[str]) -> list[list[int]]:
    """Token ids of each word, with a space before it: at the beginning of a text byte-level tokenizers have others."""
    return token_ids(tokenizer, [f" {word}" for word in words])


def worst_words(tokenizer, sentences: list[str], most: int = 20) -> list[dict]:
    """The words that cost most over all sentences: first by their unknown tokens, then by all tokens but one each."""
    counts = word_counts(sentences)
    found = [
        {
            "word": word,
            "occurrences": counts[word],
            "tokens": tokenizer.convert_ids_to_tokens(pieces),
            "unknown": pieces.count(tokenizer.unk_token_id),
        }
        for word, pieces in zip(counts, word_ids(tokenizer, counts), strict=True)
    ]
    found = [word for word in found if word["unknown"] or len(word["tokens"]) > 1]
    found.sort(key=lambda w: (-w["unknown"] * w["occurrences"], (1 - len(w["tokens"])) * w["occurrences"], w["word"]))
    return found[:most]


def check_tokenizer(tokenizer, dataset, pairs, allow_unknown: bool) -> str:
    """What the student's tokenizer makes of each language, as a table, from up to 1,000 sentences of each.

    `dataset` is a pairs split, `pairs` the same as TokenizedPairs. UserError when more than 5% of a language's tokens
    are unknown, unless `allow_unknown`.
    """
    rows = evenly_spaced(len(dataset), 1000)
    table = {"source": audit(tokenizer, beginnings(dataset[rows]["source"]))}
    for language, rows in zip(pairs.languages, pairs.evenly(1000), strict=True):
        listed = [target for targets in dataset[np.unique(rows)]["targets"] for target in targets]
        if listed:  # else they are the rows without translations
            table[language] = audit(tokenizer, beginnings(t["sentence"] for t in listed if t["language"] == language))
    unread = [
        f"{name} ({row['unknown_share']:.0%})" for name, row in table.items() if row["unknown_share"] > MAX_UNKNOWN
    ]
    if unread and not allow_unknown:
        raise UserError(
            f"the student's tokenizer does not know {', '.join(unread)} of the tokens: choose a student that reads "
            "these languages, make one (build_student.py graft), or add --allow_unknown_tokens"
        )
    lines = [
        (
            name,
            f"{row['unknown_share']:.1%}",
            row["tokens_per_word"],
            row["tokens_per_character"],
            f"{row['lost_share']:.1%}",
        )
        for name, row in table.items()
    ]
    headers = ["the student reads", "unknown", "tokens per word", "per character", "words lost"]
    return tabulate(lines, headers, floatfmt=".2f", missingval="-", colalign=("left", *["right"] * 4))


def short_names(paths: list[str]) -> list[str]:
    """As many of the last parts of each path as tell them apart: 'runs/a/student', 'runs/b/student' -> 'a/student'."""
    most = max(len(Path(path).parts) for path in paths)
    shortened = (["/".join(Path(path).parts[-parts:]) for path in paths] for parts in range(1, most))
    return next((names for names in shortened if len(set(names)) == len(names)), paths)


def draw_audit(report: dict, path: Path) -> None:
    """Tokens per character, unknown tokens and lost words by language and tokenizer, with their limits, as PNG.

    Languages with most tokens per character first; hatched is what makes a tokenizer fail.
    """
    first = next(iter(report.values()))["languages"]
    means = {tag: np.mean([of["languages"][tag]["tokens_per_character"] for of in report.values()]) for tag in first}
    languages = sorted(first, key=lambda tag: -means[tag])
    inches = min(13, 3 + 0.55 * len(languages)), 8  # at most 1,560 pixels
    figure, panels = plt.subplots(3, 1, figsize=inches, sharex=True, layout="constrained")
    # Limits as they are drawn, and that from which on a tokenizer fails; of letters it may be lower, by the verdict
    kinds = [
        ("tokens_per_character", 1, dict(zip(SPELLED, ("letters", "syllables"), strict=True)), max(SPELLED)),
        ("unknown_share", 100, {100 * MAX_UNKNOWN: "unknown"}, MAX_UNKNOWN),
        ("lost_share", 100, {100 * MAX_LOST: "strips"}, MAX_LOST),
    ]
    width = 0.8 / len(report)
    for axes, (name, factor, limits, most) in zip(panels, kinds, strict=True):
        for number, (label, entry) in enumerate(zip(short_names([*report]), report.values(), strict=True)):
            rows = [entry["languages"][tag] for tag in languages]
            at = np.arange(len(languages)) + (number - (len(report) - 1) / 2) * width
            bars = axes.bar(at, [factor * row[name] for row in rows], width, label=label, edgecolor="white")
            for bar, row in zip(bars, rows, strict=True):
                spells = name == "tokens_per_character" and row["verdict"] == "spells"
                bar.set_hatch("///" if spells or row[name] > most else "")
        top = axes.get_ylim()[1]
        for limit, what in limits.items():
            if limit < 1.5 * top or limit == min(limits):
                axes.axhline(limit, color="black", linewidth=0.8, linestyle="--")
                axes.text(len(languages) - 0.5, limit, f" {what}", va="center", fontsize="small", clip_on=False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set(ylabel="tokens per character", title="What a tokenizer makes of each language (hatched: fails)")
    panels[1].set(ylabel="unknown tokens, %")
    panels[2].set(ylabel="words lost, %", xlim=(-0.5, len(languages) - 0.5))
    panels[2].set_xticks(range(len(languages)), languages, rotation=90 if len(languages) > 18 else 0)
    colours = [Patch(facecolor=bars[0].get_facecolor(), label=bars.get_label()) for bars in panels[0].containers]
    panels[0].legend(handles=colours, fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_audit(tokenizer: str, entry: dict, max_seq_length: int) -> None:
    print(f"\n{tokenizer}: {entry['vocabulary']:,} tokens")
    print("n sentences; tokens unknown; words lost; tokens per word and character;")
    print(f"sentences of over {max_seq_length} tokens; vocabulary used\n")
    rows = []
    for language, row in entry["languages"].items():
        figures = {name: value for name, value in row.items() if name != "worst_words"}
        cells = (f"{value:.1%}" if name.endswith("_share") else value for name, value in figures.items())
        rows.append([language, *cells])
    align = ["left", *["right"] * 7, "left"]
    headers = ["language", "n", "unknown", "lost", "/ word", "/ char", "cut", "used", "verdict"]
    print(tabulate(rows, headers, floatfmt=".2f", missingval="-", colalign=align))
    print("\nworst words, with their tokens")
    for language, row in entry["languages"].items():
        worst = [f"{w['word'][:16]} {'unknown' if w['unknown'] else len(w['tokens'])}" for w in row["worst_words"][:3]]
        print(f"{language:<9} {', '.join(worst) or '-'}")
