"""Source sentences without translations: kept by build_pairs.py, trained on by train_distill.py."""

import json

import datasets
import polars as pl
import pytest
from test_build_pairs import ENGLISH, ITALIAN, build, content, dropped, tsv, write

from distill.command import UserError
from distill.pairs.pairs_folder import language_sentences, load_pairs, pairs_by_language, sentence_counts, sentences
from distill.scoring.bitext import read_bitext

KEEP = "--keep_untranslated"


def rows(result: dict) -> dict[str, list[str]]:
    """The translations of each source sentence."""
    return {row["source"]: [target["sentence"] for target in row["targets"]] for row in result["rows"]}


def of_source(result: dict, corpus: int = 0) -> dict:
    """The account of the sentences by themselves."""
    entry = result["report"]["corpora"][corpus]["languages"]["en"]
    return {"read": entry["read"], "kept": entry["kept"], **entry["dropped"]}


TRANSLATIONS = [ITALIAN[0], None, "12345"]  # sound, missing, dropped as no_letters


def corpus_of(kind: str, folder) -> str:
    """A corpus of three English sentences with these translations into Italian, in one of the schemas."""
    path = folder / f"x-en-it.{kind}"
    if kind == "tsv":
        return tsv(path, [(e, i or "") for e, i in zip(ENGLISH, TRANSLATIONS, strict=True)])
    if kind == "tmx":
        units = "".join(
            f'<tu><tuv xml:lang="en"><seg>{e}</seg></tuv>'
            + (f'<tuv xml:lang="it"><seg>{i}</seg></tuv></tu>' if i else "</tu>")
            for e, i in zip(ENGLISH, TRANSLATIONS, strict=True)
        )
        return write(path, f'<tmx version="1.4"><header srclang="en"/><body>{units}</body></tmx>')
    if kind == "text":
        write(folder / "x.en", *ENGLISH)
        write(folder / "x.it", *(i or "" for i in TRANSLATIONS))
        return f"{folder}/x.{{en,it}}"
    both = list(zip(ENGLISH, TRANSLATIONS, strict=True))
    there = [(["en", "it"][:n], [e, i][:n]) for e, i in both for n in [1 + (i is not None)]]
    listed = [[{"language": "it", "sentence": i}] * (i is not None) for i in TRANSLATIONS]
    tables = {
        "ted": [{"translations": {"language": tags, "translation": texts}} for tags, texts in there],
        "opus": [{"translation": {"en": e, "it": i}} for e, i in both],
        "wide": [{"en": e, "it": i, "de": None} for e, i in both],
        "columns": [{"english": e, "non_english": i, "language": "it"} for e, i in both],
        "grouped": [{"source": e, "targets": targets} for e, targets in zip(ENGLISH, listed, strict=True)],
    }
    pl.DataFrame(tables[kind]).write_parquet(folder / f"{kind}.parquet")
    return folder / f"{kind}.parquet"


@pytest.mark.parametrize("kind", ["tsv", "tmx", "text", "ted", "opus", "wide", "columns", "grouped"])
def test_sentences_whose_translations_are_missing_or_dropped_are_kept_if_asked_for(tmp_path, kind):
    corpus = corpus_of(kind, tmp_path)
    assert rows(build(tmp_path, corpus)) == {ENGLISH[0]: [ITALIAN[0]]}
    result = build(tmp_path, corpus, KEEP)
    assert rows(result) == {ENGLISH[0]: [ITALIAN[0]], ENGLISH[1]: [], ENGLISH[2]: []}
    assert of_source(result) == {"read": 3, "kept": 2, "translated": 1}
    assert dropped(result)["no_letters"] == 1
    assert result["report"]["splits"]["train"] == {"rows": 3, "pairs": {"it": 1}, "untranslated": 2}


def test_a_text_of_the_source_language_alone(tmp_path):
    """Cleaned, excluded, deduplicated as others; a sentence that has translations elsewhere is one row with these."""
    pairs = tsv(tmp_path / "x-en-it.tsv", zip(ENGLISH, ITALIAN, strict=True))
    news = write(tmp_path / "news.txt", "Good  news.", ENGLISH[0], "Good news.", "", "12", "Bad news.", "x" * 300)
    evaluation = write(tmp_path / "sts.csv", "a,BAD NEWS!,5")
    result = build(tmp_path, [f"en={news}", pairs], KEEP, "--exclude", evaluation)
    assert rows(result) == {e: [i] for e, i in zip(ENGLISH, ITALIAN, strict=True)} | {"Good news.": []}
    expected = {"read": 7, "kept": 1, "translated": 1, "duplicate": 1, "empty": 1, "no_letters": 1, "too_long": 1}
    assert of_source(result) == expected | {"excluded": 1}
    assert result["report"]["corpora"][0]["languages"]["en"]["mended"]["white_space"] == 1
    assert of_source(result, 1) == {"read": 3, "kept": 0, "translated": 2, "duplicate": 1}
    samples = [json.loads(line) for line in (result["folder"] / "dropped_samples.jsonl").read_text().splitlines()]
    assert {
        "reason": "excluded",
        "corpus": f"en={news}",
        "language": "en",
        "source": "Bad news.",
        "target": None,
    } in samples


@pytest.mark.parametrize("options", [["--skip", "duplicate"], []])
def test_a_sentence_by_itself_is_one_row_whatever_is_skipped(tmp_path, options):
    pairs = tsv(tmp_path / "x-en-it.tsv", zip(ENGLISH, ITALIAN, strict=True))
    news = write(tmp_path / "news.txt", "Good news.", "Good news.")
    assert rows(build(tmp_path, [f"en={news}", pairs], KEEP, *options))["Good news."] == []


@pytest.mark.parametrize(
    "spec, options, message",
    [
        ("en={}/news.txt", [], "holds no translations: add --keep_untranslated"),
        ("it={}/news.txt", [KEEP], "a language by itself must be the source language 'en'"),
        ("en={}/news.csv", [KEEP], "a language by itself stands before plain text, a sentence a line, not csv"),
        ("en={}/none.txt", [KEEP], "none.txt does not exist"),
        ("en={}/news.txt", [KEEP], "no corpus holds it: the target languages there are none"),
    ],
)
def test_a_text_that_cannot_be_taken_so_is_refused(tmp_path, spec, options, message):
    write(tmp_path / "news.txt", "Good news.")
    with pytest.raises(UserError, match=message):
        build(tmp_path, spec.format(tmp_path), *options)
    assert not (tmp_path / "pairs").exists()


def half_translated(folder, n: int = 400):
    """Sentences of which every other one has a translation."""
    return tsv(folder / "x-en-it.tsv", [(f"Sentence number {i}.", f"Frase numero {i}." * (i % 2)) for i in range(n)])


def test_without_the_option_the_bytes_are_those_of_a_corpus_without_such_rows(tmp_path):
    options = ("--dev_fraction", 0.1, "--export_pairs", "--export_tsv")
    some = content(build(tmp_path, half_translated(tmp_path), *options)["folder"])
    translated = [(f"Sentence number {i}.", f"Frase numero {i}.") for i in range(1, 400, 2)]
    for more in ((), (KEEP,)):
        result = content(build(tmp_path, tsv(tmp_path / "x-en-it.tsv", translated), *options, *more)["folder"])
        assert set(result) == set(some)
        accounts = {"args.json", "report.json", "dropped_samples.jsonl"}
        assert {name for name in some if result[name] != some[name]} <= accounts
    assert b'untranslated"' not in some["report.json"] and b'"en"' not in some["report.json"]


def test_dev_and_test_take_only_rows_with_translations_and_the_views_only_pairs(tmp_path):
    options = ("--dev_fraction", 0.2, "--test_fraction", 0.2, "--export_pairs", "--export_tsv")
    result = build(tmp_path, half_translated(tmp_path), *options, KEEP)
    splits, folder = result["splits"], result["folder"]
    alone = [row["source"] for row in splits["train"] if not row["targets"]]
    assert sorted(alone) == sorted(f"Sentence number {i}." for i in range(0, 400, 2))
    assert all(row["targets"] for name in ("dev", "test") for row in splits[name])
    without = build(tmp_path, half_translated(tmp_path), *options)
    for name in ("dev", "test"):
        assert list(without["splits"][name]) == list(splits[name])
    assert sum(map(len, datasets.load_from_disk(folder / "pairs_view").values())) == 200
    assert {path.name for path in (folder / "tsv").iterdir()} == {f"en-it-{name}.tsv.gz" for name in splits}


def test_the_limit_of_a_language_is_that_of_sentences_by_themselves_too(tmp_path):
    """100 of 200 translations are taken, and the first 100 of the 200 sentences that have none."""
    everything = build(tmp_path, half_translated(tmp_path))["pairs"]
    result = build(tmp_path, half_translated(tmp_path), KEEP, "--max_sentences_per_language", 100)
    assert result["pairs"] == everything[:100]
    assert of_source(result) == {"read": 400, "kept": 100, "translated": 200, "over_limit": 100}
    assert not {source for source, *_ in everything} & {s for s, targets in rows(result).items() if not targets}


def test_small_parts_hold_the_same_rows(tmp_path, monkeypatch):
    write(tmp_path / "news.txt", *(f"News number {i}." for i in range(100)))
    corpora = [half_translated(tmp_path), f"en={tmp_path}/news.txt"]
    options = (KEEP, "--dev_fraction", 0.1, "--max_sentences_per_language", 120)
    expected = build(tmp_path, corpora, *options)
    for name, value in (("hash_order.MEMORY", 5000), ("hash_order.PAIRS", 100), ("tables.PART", 1000)):
        monkeypatch.setattr(f"distill.pairs.{name}", value)
    found = build(tmp_path, corpora, *options)
    assert (found["rows"], found["report"]) == (expected["rows"], expected["report"])


def test_who_reads_a_folder_of_pairs_lives_with_rows_without_translations(tmp_path):
    folder = build(tmp_path, half_translated(tmp_path), KEEP, "--dev_fraction", 0.1)["folder"]
    pairs = load_pairs(str(folder))
    train, dev = len(pairs["train"]), len(pairs["dev"])
    translated = train - 200
    assert sentence_counts(pairs["train"]) == {"": train, "it": translated}
    assert len(list(sentences(pairs["train"]))) == train + translated
    assert len(pairs_by_language(pairs["train"], 1000)["it"][0]) == translated
    found = list(language_sentences(str(folder), []))
    assert sum(len(batch) for language, batch in found if language == "en") == train + dev
    assert [len(bitext.sources) for bitext in read_bitext(f"{folder}:train")] == [translated]
