"""build_pairs.py: every input kind, every filter, the account, sampling, workers, views, and a kill at any moment."""

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from string import ascii_lowercase
from types import SimpleNamespace

import datasets
import polars as pl
import psutil
import pyarrow as pa
import pytest

import build_pairs
from distill import text_files
from distill.command import UserError
from distill.folders import replaced_folder
from distill.languages import LETTER, is_region, languages_of_name, script_pattern, standard_tag
from distill.pairs import cleaning, hash_order, tables
from distill.pairs.hash_order import read_part
from distill.pairs.readers import PAIR, parts_of, read_corpus
from distill.text_files import expand_languages

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("DATA", ROOT / "data"))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real corpora are not at {DATA}")

ENGLISH = ["A dog runs.", "The sun is hot.", "We eat bread."]
ITALIAN = ["Un cane corre.", "Il sole è caldo.", "Mangiamo pane."]
GERMAN = ["Ein Hund rennt.", "Die Sonne ist heiß.", "Wir essen Brot."]
EN_IT = {(e, "it", i) for e, i in zip(ENGLISH, ITALIAN, strict=True)}
EN_IT_LIST = list(zip(ENGLISH, ITALIAN, strict=True))
EN_DE = {(e, "de", d) for e, d in zip(ENGLISH, GERMAN, strict=True)}


def parse(*arguments) -> list:
    return build_pairs.build_parser().parse_args([str(argument) for argument in arguments])


def build(folder: Path, corpora, *options, languages=("it",)) -> dict:
    """Build into `folder`; all rows, the pairs as a set, and the report. No dev split unless asked for."""
    corpora = corpora if isinstance(corpora, list) else [corpora]
    call = ["--corpus", *corpora, "--target_languages", *languages, "--output_dir", folder / "pairs"]
    build_pairs.main(parse(*call, *([] if "--dev_size" in options else ["--dev_fraction", 0]), *options))
    splits = datasets.load_from_disk(folder / "pairs")
    rows = [row for split in splits.values() for row in split]
    pairs = [(row["source"], target["language"], target["sentence"]) for row in rows for target in row["targets"]]
    report = json.loads((folder / "pairs/report.json").read_text(encoding="utf-8"))
    for corpus in report["corpora"]:
        for entry in corpus["languages"].values():
            assert entry["read"] == entry["kept"] + sum(entry["dropped"].values())
    return {"splits": splits, "rows": rows, "pairs": pairs, "report": report, "folder": folder / "pairs"}


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def tsv(path: Path, pairs) -> Path:
    return write(path, *("\t".join(pair) for pair in pairs))


def dropped(result: dict, corpus: int = 0, language: str = "it") -> dict:
    return result["report"]["corpora"][corpus]["languages"][language]["dropped"]


# ---------------------------------------------------------------- input kinds


TED = [
    {"translations": {"language": ["de", "en", "ita"], "translation": list(triple)}, "talk_name": "t"}
    for triple in zip(GERMAN, ENGLISH, ITALIAN, strict=True)
]
OPUS = [{"translation": {"en": e, "it": i}} for e, i in zip(ENGLISH, ITALIAN, strict=True)]
COLUMNS = [{"english": e, "non_english": i} for e, i in zip(ENGLISH, ITALIAN, strict=True)]
NAMED = [{"id": 1, "left": i, "right": e} for e, i in zip(ENGLISH, ITALIAN, strict=True)]
WIDE = [{"talk": "t", "eng": e, "ita": i, "de": d} for e, i, d in zip(ENGLISH, ITALIAN, GERMAN, strict=True)]
LONG = [{"source": e, "target": i, "language": "ita"} for e, i in zip(ENGLISH, ITALIAN, strict=True)]
TABLES = {"ted": TED, "opus": OPUS, "columns-en-it": COLUMNS, "named-ita-eng": NAMED, "wide": WIDE, "long": LONG}
NAMED_OPTIONS = {"named-ita-eng": ["--source_column", "right", "--target_column", "left"]}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow", "hub"])
@pytest.mark.parametrize("schema", TABLES)
def test_tables(tmp_path, kind, schema):
    rows = TABLES[schema]
    if kind == "csv" and schema in ("ted", "opus"):
        pytest.skip("CSV holds no nested columns")
    path = tmp_path / f"{schema}.{kind}"
    if kind == "jsonl":
        write(path, *(json.dumps(row) for row in rows))
    elif kind == "csv":
        pl.DataFrame(rows).write_csv(path)
    elif kind == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif kind == "arrow":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:  # no hub in a test: load_dataset takes a local folder in a hub id's place
        path.mkdir()
        pl.DataFrame(rows).write_parquet(path / "train.parquet")
        path = f"{path}:default:train"
    assert set(build(tmp_path, path, *NAMED_OPTIONS.get(schema, []))["pairs"]) == EN_IT


def test_hub_config_names_the_language(tmp_path):
    (tmp_path / "talks/en-it").mkdir(parents=True)
    pl.DataFrame(COLUMNS).write_parquet(tmp_path / "talks/en-it/dev.parquet")
    readme = "configs:\n- config_name: en-it\n  data_files:\n  - split: dev\n    path: en-it/dev.parquet"
    write(tmp_path / "talks/README.md", "---", *readme.split("\n"), "---")
    assert set(build(tmp_path, f"{tmp_path}/talks:en-it:dev")["pairs"]) == EN_IT


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst", ".bz2"])
def test_line_aligned_text(tmp_path, suffix):
    pack = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
        ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
    }[suffix]
    for tag, lines, end in (("eng", ENGLISH, "\r\n"), ("ita", ITALIAN, "\n"), ("deu", GERMAN, "\n")):
        (tmp_path / f"tatoeba.{tag}{suffix}").write_bytes(pack(end.join(lines).encode()))
    result = build(tmp_path, tmp_path / f"tatoeba.{{eng,ita,deu}}{suffix}", languages=("ita", "de"))
    assert set(result["pairs"]) == EN_IT | EN_DE


@pytest.mark.parametrize("name", ["talks-en-it.tsv", "opus.it-en.tsv.gz", "x-eng-ita-dev.tsv.xz"])
def test_two_column_tsv(tmp_path, name):
    pairs = (
        [(i, e) for e, i in zip(ENGLISH, ITALIAN, strict=True)]
        if "it-en" in name
        else [(e, i) for e, i in zip(ENGLISH, ITALIAN, strict=True)]
    )
    text = "".join("\t".join(pair) + "\n" for pair in pairs).encode()
    pack = {".tsv": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[Path(name).suffix]
    (tmp_path / name).write_bytes(pack(text))
    assert set(build(tmp_path, tmp_path / name)["pairs"]) == EN_IT


def test_wide_tsv_with_missing(tmp_path):
    path = write(
        tmp_path / "ted.tsv",
        "talk_name\ten\tita\tpt-br\tcalv",
        '1\tA "dog runs.\tUn cane corre.\t__NULL__\tx',
        "2\tThe sun is hot.\t_ _ NULL _ _\tO sol é quente.\tx",
        "3\tWe eat bread.\t\tComemos pão.\tx",
        "4\t__NULL__\tNiente.\tNada.\tx",
    )
    result = build(tmp_path, path, languages=("it", "pt_BR"))
    assert set(result["pairs"]) == {
        ('A "dog runs.', "it", "Un cane corre."),
        ("The sun is hot.", "pt-BR", "O sol é quente."),
        ("We eat bread.", "pt-BR", "Comemos pão."),
    }
    # A missing translation is no pair; a translation without its source is one, and is counted.
    assert dropped(result) == {"missing": 1} and dropped(result, language="pt-BR") == {"missing": 1}


def test_two_columns_count_what_is_missing(tmp_path):
    result = build(
        tmp_path, tsv(tmp_path / "a-en-it.tsv", [("Hello you.", "__NULL__"), *zip(ENGLISH, ITALIAN, strict=True)])
    )
    assert dropped(result) == {"missing": 1} and set(result["pairs"]) == EN_IT


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<tmx version="1.4"><header srclang="en"/><body>
{units}
</body></tmx>
"""


def unit(*variants: tuple[str, str]) -> str:
    return "<tu>" + "".join(f'<tuv xml:lang="{tag}"><seg>{text}</seg></tuv>' for tag, text in variants) + "</tu>"


def test_tmx(tmp_path):
    units = [unit(("EN", e), ("ITA", i), ("de", d)) for e, i, d in zip(ENGLISH, ITALIAN, GERMAN, strict=True)]
    units.append(
        unit(("en", '<bpt i="1">{\\b</bpt>Hi <hi>there</hi>.'), ("it", 'Ciao<ph x="1">&lt;br&gt;</ph> a voi.'))
    )
    units.append(unit(("de", "Allein."), ("it", "Da solo.")))
    (tmp_path / "x.tmx.gz").write_bytes(gzip.compress(TMX.format(units="\n".join(units)).encode()))
    result = build(tmp_path, tmp_path / "x.tmx.gz")
    assert set(result["pairs"]) == EN_IT | {("Hi there.", "it", "Ciao a voi.")}
    assert dropped(result) == {"missing": 1}


def test_format_overrides_the_name(tmp_path):
    path = tsv(tmp_path / "en-it.txt", zip(ENGLISH, ITALIAN, strict=True))
    with pytest.raises(UserError, match="says no format"):
        build(tmp_path, path)
    assert set(build(tmp_path, path, "--format", "tsv")["pairs"]) == EN_IT


def test_all_languages(tmp_path):
    path = write(tmp_path / "ted.jsonl", *(json.dumps(row) for row in TED))
    assert set(build(tmp_path, path, languages=("all",))["pairs"]) == EN_IT | EN_DE


def test_other_source_language(tmp_path):
    path = write(tmp_path / "columns-it-en.jsonl", *(json.dumps(row) for row in COLUMNS))
    result = build(tmp_path, path, "--source_language", "ita", languages=("en",))
    assert set(result["pairs"]) == {(i, "en", e) for e, i in zip(ENGLISH, ITALIAN, strict=True)}


def test_readers_give_bounded_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.pairs.readers.CHUNK", 2)
    monkeypatch.setattr("distill.text_files.BLOCK", 40)
    write(tmp_path / "x.en", *ENGLISH)
    write(tmp_path / "x.it", *ITALIAN)
    chunks = list(read_corpus(f"{tmp_path}/x.{{en,it}}", "en"))
    assert [len(chunk) for chunk in chunks] == [2, 1]
    assert pl.concat(chunks)["target"].to_list() == ITALIAN
    path = tsv(tmp_path / "x-en-it.tsv", zip(ENGLISH, ITALIAN, strict=True))
    chunks = list(read_corpus(str(path), "en"))
    assert len(chunks) > 1 and pl.concat(chunks)["target"].to_list() == ITALIAN


# ---------------------------------------------------------------- real corpora


@real_data
def test_real_ted(tmp_path):
    result = build(tmp_path, DATA / "ted_multi_sample.parquet", languages=("ar", "it"))
    table = pl.read_parquet(DATA / "ted_multi_sample.parquet").get_column("translations").struct.unnest()
    arabic = table.filter(pl.col("language").list.contains("ar"))
    entry = result["report"]["corpora"][0]["languages"]["ar"]
    assert entry["read"] == len(arabic) == 896
    assert entry["dropped"]["missing"] == arabic.filter(~pl.col("language").list.contains("en")).height


@real_data
def test_real_multi30k_and_tatoeba_merge(tmp_path):
    corpora = [DATA / "multi30k/val.{en,de,fr}.gz", DATA / "tatoeba/tatoeba.deu-eng.{deu,eng}"]
    result = build(tmp_path, corpora, languages=("deu", "fr"))
    reads = [{tag: e["read"] for tag, e in c["languages"].items()} for c in result["report"]["corpora"]]
    assert reads == [{"de": 1014, "fr": 1014}, {"de": 1000}]
    assert sum(len(row["targets"]) > 1 for row in result["rows"]) > 900


@real_data
def test_real_exclude(tmp_path):
    """The Italian STSb test sentences leave the TED sample, which is made from the same translations' train part."""
    spec = DATA / "stsb_multi_mt/stsb-{en,it}-test.csv"
    result = build(tmp_path, DATA / "ted_multi_sample.parquet", "--exclude", spec)
    assert dropped(result)["excluded"] > 100
    excluded = set(cleaning.read_excluded([str(spec)]))
    sentences = pl.Series([text for source, _, target in result["pairs"] for text in (source, target)])
    assert not excluded & set(cleaning.fold(sentences))


# ---------------------------------------------------------------- language tags


@pytest.mark.parametrize(
    "tag, standard",
    [("ita", "it"), ("zh-cn", "zh-CN"), ("pt_br", "pt-BR"), ("arb", "ar"), ("EN", "en"), ("calv", None), ("", None)],
)
def test_standard_tag(tag, standard):
    assert standard_tag(tag) == standard


@pytest.mark.parametrize("tag, near", [("itallian", "it (Italian)"), ("jp", "ja (Japanese)"), ("germn", "de (German)")])
def test_unknown_tag_names_near_ones(tmp_path, tag, near):
    with pytest.raises(UserError) as error:
        build(tmp_path, "x.jsonl", languages=("it", tag))
    assert repr(tag) in str(error.value) and near in str(error.value)


def test_absent_language_names_those_there(tmp_path):
    path = write(tmp_path / "ted.jsonl", *(json.dumps(row) for row in TED))
    with pytest.raises(UserError, match="no corpus holds ja: the target languages there are de it"):
        build(tmp_path, path, languages=("it", "ja"))
    with pytest.raises(UserError, match="--target_languages all stands alone"):
        build(tmp_path, path, languages=("all", "de"))


@pytest.mark.parametrize(
    "name, languages",
    [
        ("talks-en-pt-br-train.tsv.gz", ("pt-BR", True)),
        ("tatoeba.ita-eng", ("it", False)),
        ("de-en-dev.tsv", ("de", False)),
        ("ted-en-it.tsv", ("it", True)),
        ("en-it-test", ("it", True)),
        ("opus.tsv", None),
        ("kab-en.tsv", ("kab", False)),  # tsv is a language's code as well
        ("tatoeba.ast-eng.txt.gz", ("ast", False)),
        ("talks_en_to_it.tsv", ("it", True)),
        ("en_and_it", ("it", True)),
        ("news-en-it-mt.tsv", ("it", True)),
        ("en-de.no-dups", ("de", True)),
        ("nllb.eng_Latn-ita_Latn.tsv", ("it", True)),
        ("en-us-zh_tw", ("zh-TW", True)),
        ("en-to.tsv", ("to", True)),
        ("en-ceb", ("ceb", True)),
    ],
)
def test_languages_of_name(name, languages):
    assert languages_of_name(name, "en") == languages


def test_a_name_of_three_languages_is_refused_and_the_option_settles_it(tmp_path):
    path = tsv(tmp_path / "it-en-de.tsv", EN_IT_LIST)
    with pytest.raises(UserError, match=r"names de and it beside en: .* as in --corpus en\+de="):
        build(tmp_path, path)
    assert set(build(tmp_path, f"en+it={path}")["pairs"]) == EN_IT
    swapped = tsv(tmp_path / "x.tsv", [(it, en) for en, it in EN_IT_LIST])
    assert set(build(tmp_path, f"ita+en={swapped}")["pairs"]) == EN_IT
    with pytest.raises(UserError, match="one of the two languages must be the source language 'en'"):
        build(tmp_path, f"it+de={path}")
    write(tmp_path / "ted.jsonl", *(json.dumps(row) for row in TED))
    with pytest.raises(UserError, match=r"names its languages itself: give it without en\+it="):
        build(tmp_path, f"en+it={tmp_path}/ted.jsonl")


# ---------------------------------------------------------------- what a header says


@pytest.mark.parametrize(
    "header", ["source\ttarget", "English\tItalian", "en\tit", "Source\tTarget", "english\tnon_english"]
)
@pytest.mark.parametrize("swap", [False, True])
def test_a_header_of_two_columns_is_none_of_their_pairs(tmp_path, header, swap):
    rows = [header.split("\t"), *EN_IT_LIST]
    path = tsv(tmp_path / "x-en-it.tsv", [row[::-1] for row in rows] if swap else rows)
    assert set(build(tmp_path, path)["pairs"]) == EN_IT


def test_columns_are_named_in_tsv_too(tmp_path):
    """The languages swapped against the name, and a third column."""
    path = tsv(tmp_path / "x-en-it.tsv", [("n", "b", "a"), *(("1", it, en) for en, it in EN_IT_LIST)])
    assert set(build(tmp_path, path, "--source_column", "a", "--target_column", "b")["pairs"]) == EN_IT
    with pytest.raises(UserError, match="lacks the column 'c': its first line is n, b, a"):
        build(tmp_path, path, "--source_column", "a", "--target_column", "c")


def test_a_column_language_in_tsv_too(tmp_path):
    rows = [("source", "target", "language"), *((en, it, "Italian") for en, it in EN_IT_LIST), ("Hi.", "Ça va.", "fr")]
    result = build(tmp_path, tsv(tmp_path / "x.tsv", [*rows, ("Ho.", "Hm hm.", "Klingonish")]))
    assert set(result["pairs"]) == EN_IT
    assert result["report"]["corpora"][0]["not_taken"] == {"fr": 1, "Klingonish": 1}


def test_columns_of_numbers_are_no_languages(tmp_path):
    rows = [("id", "no", "en", "it"), *((str(i), f"t{i}", en, it) for i, (en, it) in enumerate(EN_IT_LIST))]
    result = build(tmp_path, tsv(tmp_path / "x.tsv", rows), languages=("all",))
    assert set(result["pairs"]) == EN_IT
    assert result["report"]["corpora"][0]["not_taken"] == {"column id": 3, "column no": 3}
    sentences = tsv(tmp_path / "y.tsv", [("id", "en"), ("Seekor anjing berlari.", "A dog runs.")])
    assert build(tmp_path, sentences, languages=("all",))["pairs"] == [("A dog runs.", "id", "Seekor anjing berlari.")]


# ---------------------------------------------------------------- regional variants


def test_a_language_takes_its_variants_and_says_so(tmp_path, capsys):
    chinese = [("A dog.", "zh-CN", "一只狗。"), ("A cat.", "zh-TW", "一隻貓。"), ("A cow.", "zh", "一头牛。")]
    rows = [{"source": en, "language": tag, "target": text} for en, tag, text in chinese]
    path = write(tmp_path / "x.jsonl", *map(json.dumps, rows))
    result = build(tmp_path, path, languages=("zh",))
    assert set(result["pairs"]) == {(en, "zh", text) for en, _, text in chinese}
    entry = result["report"]["corpora"][0]["languages"]["zh"]
    assert entry["variants"] == {"zh-CN": 1, "zh-TW": 1}
    assert "zh is zh-CN 1, zh-TW 1" in capsys.readouterr().out
    result = build(tmp_path, path, languages=("zh_cn",))
    assert result["pairs"] == [("A dog.", "zh-CN", "一只狗。")]
    assert result["report"]["corpora"][0]["not_taken"] == {"zh-TW": 1, "zh": 1}
    assert "not taken: zh 1, zh-TW 1" in capsys.readouterr().out
    both = build(tmp_path, path, languages=("zh", "zh-TW"))
    assert {language for _, language, _ in both["pairs"]} == {"zh", "zh-TW"} and len(both["pairs"]) == 3


def test_variants_of_the_source_language(tmp_path):
    units = [unit(("en-GB", en), ("it-IT", it)) for en, it in EN_IT_LIST]
    units.append(unit(("en-GB", "Colour!"), ("en", "Color!"), ("it", "Colore!")))
    (tmp_path / "x.tmx").write_text(TMX.format(units="\n".join(units)), encoding="utf-8")
    result = build(tmp_path, tmp_path / "x.tmx")
    assert set(result["pairs"]) == EN_IT | {("Color!", "it", "Colore!")}
    assert result["report"]["corpora"][0]["not_taken"] == {"en-GB": 1}
    write(tmp_path / "x.en-US", *ENGLISH)
    write(tmp_path / "x.it-IT", *ITALIAN)
    assert set(build(tmp_path, tmp_path / "x.{en-US,it-IT}")["pairs"]) == EN_IT
    row = {"language": ["en-GB", "it", "en"], "translation": ["Colour!", "Colore!", "Color!"]}
    write(tmp_path / "ted.jsonl", json.dumps({"translations": row}))
    assert build(tmp_path, tmp_path / "ted.jsonl")["pairs"] == [("Color!", "it", "Colore!")]
    wide = tsv(tmp_path / "w.tsv", [("en_GB", "it"), *EN_IT_LIST])
    assert set(build(tmp_path, wide)["pairs"]) == EN_IT


@pytest.mark.parametrize(
    "tag, right, wrong",
    [("ar", "مرحبا", "hello"), ("ja", "ひ", "안녕"), ("ko", "안녕", "ひ"), ("zh-TW", "漢", "a"), ("sr", "Да da", "ひ")],
)
def test_script_pattern(tag, right, wrong):
    assert pl.Series([right, wrong]).str.contains(script_pattern(tag)).to_list() == [True, False]


@pytest.mark.parametrize("tag", ["crh", "mni", "nan"])
def test_small_languages_may_be_in_latin_letters(tag):
    assert pl.Series(["Lí hó!"]).str.contains(script_pattern(tag)).item()


def test_unknown_script_is_not_judged():
    assert script_pattern("itt") == LETTER  # CLDR does not say how Maeng Itneg is written


# ---------------------------------------------------------------- cleaning

BAD = {
    "empty": ("   ", "Ciao a tutti."),
    "too_long": (
        "It is long and goes on for more than a line, since nobody has told us where this sentence of ours shall end, "
        "nor how many words of it anybody who reads the whole of this test would want to see before the next one, "
        "which is a good deal shorter than this.",
        "È lungo, e continua ancora, perché nessuno ci ha detto dove finisce.",
    ),
    "length_ratio": ("Yes.", "Naturalmente, e lo ripeto volentieri a tutti quelli che non hanno ancora capito."),
    "same_as_source": ("Microsoft Windows", "Microsoft Windows"),
    "no_letters": ("12:30 - 14:00", "12.30 - 14.00"),
    "wrong_script": ("Good morning.", "Доброе утро."),
    "markup": ("Click <b>here</b> to read on.", "Fai clic qui per leggere."),
    "repetition": ("the cat and " * 4, "il gatto e " * 4),
    "numbers": ("The train leaves at 18:45 from track 12.", "Il treno parte alle 7:30 dal binario 9."),
    "wrong_language": ("The weather is fine today.", "The weather was good yesterday."),
    "duplicate": (ENGLISH[0], ITALIAN[0]),
}


@pytest.mark.parametrize("reason", BAD)
def test_each_filter_drops_its_own_and_can_be_skipped(tmp_path, reason):
    path = tsv(tmp_path / "x-en-it.tsv", [*zip(ENGLISH, ITALIAN, strict=True), BAD[reason]])
    result = build(tmp_path, path)
    assert dropped(result) == {reason: 1}
    assert sorted(result["pairs"]) == sorted(EN_IT)
    sample = json.loads((result["folder"] / "dropped_samples.jsonl").read_text(encoding="utf-8"))
    assert sample["reason"] == reason and sample["target"] == " ".join(BAD[reason][1].split())
    implied = ["no_letters"] if reason == "empty" else []
    kept = build(tmp_path, path, "--skip", reason, *implied)
    assert dropped(kept) == {} and len(kept["pairs"]) == 4


def test_everything_skipped_keeps_everything(tmp_path):
    path = tsv(tmp_path / "x-en-it.tsv", [*zip(ENGLISH, ITALIAN, strict=True), *list(BAD.values())[1:]])
    result = build(tmp_path, path, "--skip", *cleaning.MENDING, *cleaning.FILTERS)
    assert sorted(result["pairs"]) == sorted([*EN_IT, *((e, "it", i) for e, i in list(BAD.values())[1:])])


def test_filters_judge_both_sides(tmp_path):
    pairs = [("Доброе утро.", "Buongiorno."), ("...", "Sì, certo."), ("Tell me more.", "")]
    result = build(tmp_path, tsv(tmp_path / "x-en-it.tsv", [*zip(ENGLISH, ITALIAN, strict=True), *pairs]))
    assert dropped(result) == {"wrong_script": 1, "no_letters": 1, "missing": 1}


def test_length_is_in_characters_and_inclusive(tmp_path):
    pairs = [("a" * 20, "è" * 20), ("b" * 21, "b è" * 7)]
    result = build(tmp_path, tsv(tmp_path / "x-en-it.tsv", pairs), "--max_sentence_length", 20)
    assert dropped(result) == {"too_long": 1} and result["pairs"] == [("a" * 20, "it", "è" * 20)]


def test_length_ratio_with_ten_characters_added(tmp_path):
    pairs = [("a" * 10, "è" * 70), ("b" * 10, "è" * 71)]  # 80 : 20 and 81 : 20
    result = build(tmp_path, tsv(tmp_path / "x-en-it.tsv", pairs))
    assert result["pairs"] == [("a" * 10, "it", "è" * 70)] and dropped(result) == {"length_ratio": 1}


MESSY = {
    "encoding": ("The sun is hot.", "Il sole Ã¨ caldo.", "Il sole è caldo."),
    "entities": ("The sun is hot.", "Il sole &egrave; caldo.", "Il sole è caldo."),
    "nfc": ("The sun is hot.", "Il sole e\u0300 caldo.", "Il sole è caldo."),
    "control_characters": ("The s\u200bun\u200b is\x00 hot.", "Il sole è caldo.\ufeff", "Il sole è caldo."),
    "white_space": ("  The sun\u00a0 is hot.", "Il  sole è\u3000caldo. ", "Il sole è caldo."),
}


@pytest.mark.parametrize("step", MESSY)
def test_mending(tmp_path, step):
    *pair, clean = MESSY[step]
    path = tsv(tmp_path / "x-en-it.tsv", [pair, ("We eat bread.", "Mangiamo pane.")])
    result = build(tmp_path, path)
    assert ("The sun is hot.", "it", clean) in result["pairs"]
    assert result["report"]["corpora"][0]["languages"]["it"]["mended"] == {step: 1}
    assert (*pair[:1], "it", pair[1]) in build(tmp_path, path, "--skip", step)["pairs"]


def test_mending_twice_changes_nothing():
    text = pl.Series(["e\u200b\u0301 a\x00\u0300", " \u00a0e\u0301\u2000 ", "\u1100\ufeff\u1161", "a\u0085\u00adb"])
    text = pl.concat([text, pl.Series(["&amp;amp;egrave;&#8203;", "Ã&copy;", "AT&T?a=1&copy=2"])])
    once, _ = cleaning.mend(text, cleaning.MENDING)
    assert once.to_list() == ["é à", "é", "가", "a…b", "è", "é", "AT&T?a=1&copy=2"]
    twice, changed = cleaning.mend(once, cleaning.MENDING)
    assert twice.equals(once) and not any(flags.any() for flags in changed.values())


def test_every_character_that_nfc_changes_is_a_suspect():
    """The search that spares clean text the normalisation must miss none, alone or after another character."""
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    changed = {c for c in characters if unicodedata.normalize("NFC", c) != c}
    for c in characters:
        changed.update(unicodedata.normalize("NFD", c)[1:])  # what composes with a character before it
    changed = pl.Series(sorted(changed - set(characters[:0x300])))
    assert len(changed) > 1000 and changed.str.contains(cleaning.NOT_NFC).all()


def test_what_differs_in_case_and_punctuation_alone_is_there_once_and_on_one_side(tmp_path):
    alike = [("A dog runs.", "Un cane corre."), ("a dog runs", "Un cane, corre!"), ("A dog runs!", "Corre un cane.")]
    verbs = {".": "corre", "!": "fugge"}
    more = [(f"Dog {name} runs{end}", f"Cane {name} {verbs[end]}.") for name in ascii_lowercase for end in verbs]
    path = tsv(tmp_path / "x-en-it.tsv", [*alike, alike[0], *more, ("Dog a runs. ", "cane a corre")])
    result = build(tmp_path, path, "--dev_fraction", 0.5, "--skip", "wrong_language")
    assert dropped(result) == {"duplicate": 1, "near_duplicate": 2}
    rows = [(row["source"], [target["sentence"] for target in row["targets"]]) for row in result["rows"]]
    assert sorted(rows)[:2] == [("A dog runs!", ["Corre un cane."]), ("A dog runs.", ["Un cane corre."])]
    assert len(rows) == 2 + len(more)
    train, dev = ({source[:-1] for source in result["splits"][name]["source"]} for name in ("train", "dev"))
    assert train and dev and not train & dev
    both = [("A dog runs.", "Un cane corre."), ("a dog runs", "Un cane corre.")]
    for skip, kept in (("near_duplicate", 2), ("duplicate", 3)):
        again = tsv(tmp_path / f"{skip}-en-it.tsv", [*both, both[0]])
        assert len(build(tmp_path, again, "--skip", skip)["pairs"]) == kept
    assert len(build(tmp_path, again)["pairs"]) == 1


def test_max_translations_keeps_the_first(tmp_path):
    pairs = [("A dog runs.", f"Un cane corre {word}.") for word in ("via", "lontano", "forte", "qui")]
    path = tsv(tmp_path / "x-en-it.tsv", [*pairs, pairs[0], ("A dog runs.", "Un cane corre via.  ")])
    result = build(tmp_path, path, "--max_translations", 2)
    assert [target for _, _, target in result["pairs"]] == ["Un cane corre via.", "Un cane corre lontano."]
    assert len(result["rows"]) == 1
    assert dropped(result) == {"duplicate": 2, "many_translations": 2}


def test_exclude(tmp_path):
    """NFC, case and white space are folded; source and target sentences count; a brace path is a file per language."""
    write(tmp_path / "sts-en.csv", '"a DOG  runs.",Something else entirely.,2.5')
    write(tmp_path / "sts-it.csv", "Qualcosa.,il sole e\u0300 CALDO.,2.5")
    write(tmp_path / "tatoeba.txt", "wir essen BROT.")
    write(tmp_path / "x.en", *ENGLISH)
    write(tmp_path / "x.it", *ITALIAN)
    write(tmp_path / "x.de", *GERMAN)
    exclude = ["--exclude", tmp_path / "sts-{en,it}.csv", tmp_path / "tatoeba.txt"]
    result = build(tmp_path, tmp_path / "x.{en,it,de}", *exclude, languages=("it", "de"))
    kept = {("The sun is hot.", "de", "Die Sonne ist heiß."), ("We eat bread.", "it", "Mangiamo pane.")}
    assert set(result["pairs"]) == kept
    assert dropped(result) == {"excluded": 2} and dropped(result, language="de") == {"excluded": 2}


EXCLUDING = {
    "headed.csv": "score,sentence1,sentence2\n2.5,{0},{1}\n",
    "other.csv": "idx,Sentence1,Sentence2\n0,{0},{1}\n",
    "headerless.csv": "7,{0},{1},2.5\n",
    "cells.tsv": "7\t{0}\t{1}\n",
    "lines.jsonl": '{{"text": "{0}", "more": [{{"of": "{1}"}}]}}\n',
    "x.tmx": "<tmx><body><tu><tuv lang='en'><seg>{0}</seg></tuv><tuv lang='it'><seg>{1}</seg></tuv></tu></body></tmx>",
    "plain.txt": "{0}\n{1}\n",
    "case.txt": "a  dog RUNS\nTHE SUN... is hot!\n",  # as ENGLISH but for case, white space and punctuation
}


@pytest.mark.parametrize("name", EXCLUDING)
def test_exclude_takes_every_text_whatever_holds_it(tmp_path, name):
    write(tmp_path / "x.en", *ENGLISH, "A cat sleeps.")
    write(tmp_path / "x.it", *ITALIAN, "Un gatto dorme.")
    (tmp_path / name).write_text(EXCLUDING[name].format(ENGLISH[0], ENGLISH[1]), encoding="utf-8")
    result = build(tmp_path, tmp_path / "x.{en,it}", "--exclude", tmp_path / name)
    assert set(result["pairs"]) == {(ENGLISH[2], "it", ITALIAN[2]), ("A cat sleeps.", "it", "Un gatto dorme.")}
    assert dropped(result) == {"excluded": 2}


def test_exclude_takes_saved_folders(tmp_path):
    datasets.Dataset.from_list([{"source": "x", "targets": [{"language": "en", "sentence": ENGLISH[0]}]}]).save_to_disk(
        tmp_path / "saved"
    )
    result = build(tmp_path, tsv(tmp_path / "x-en-it.tsv", EN_IT_LIST), "--exclude", tmp_path / "saved")
    assert dropped(result) == {"excluded": 1}


def test_rows_of_no_language_are_counted_as_missing(tmp_path):
    """A column of languages that pandas wrote as categories, with one null."""
    table = pl.DataFrame({"source": ENGLISH[:3], "target": [*ITALIAN[:2], GERMAN[2]], "language": ["it", None, "de"]})
    table.with_columns(pl.col("language").cast(pl.Categorical)).write_parquet(tmp_path / "pairs.parquet")
    result = build(tmp_path, tmp_path / "pairs.parquet", languages=("all",))
    assert {language for _, language, _ in result["pairs"]} == {"it", "de"}
    assert dropped(result, language="und") == {"missing": 1}
    row = {"language": ["en", None, "it"], "translation": [ENGLISH[0], "Etwas.", ITALIAN[0]]}
    write(tmp_path / "ted.jsonl", json.dumps({"translations": row}))
    result = build(tmp_path, tmp_path / "ted.jsonl", "--dev_fraction", 0, languages=("all",))
    assert result["pairs"] == [(ENGLISH[0], "it", ITALIAN[0])] and dropped(result, language="und") == {"missing": 1}


# ---------------------------------------------------------------- rows, sampling, splits


def many(folder: Path, n: int = 400, name: str = "x-en-it.tsv") -> Path:
    return tsv(folder / name, [(f"Sentence number {i}.", f"Frase numero {i}.") for i in range(n)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_row_per_source_from_all_corpora(tmp_path):
    tsv(tmp_path / "a-en-it.tsv", zip(ENGLISH, ITALIAN, strict=True))
    tsv(tmp_path / "b-en-de.tsv", zip(ENGLISH, GERMAN, strict=True))
    result = build(tmp_path, [tmp_path / "b-en-de.tsv", tmp_path / "a-en-it.tsv"], languages=("it", "de"))
    rows = {row["source"]: row["targets"] for row in result["rows"]}
    assert len(result["rows"]) == 3
    assert rows["A dog runs."] == [
        {"language": "de", "sentence": "Ein Hund rennt."},
        {"language": "it", "sentence": "Un cane corre."},
    ]


def test_corpus_without_the_language_is_shown_as_such(tmp_path, capsys):
    tsv(tmp_path / "a-en-it.tsv", zip(ENGLISH, ITALIAN, strict=True))
    tsv(tmp_path / "b-en-de.tsv", zip(ENGLISH, GERMAN, strict=True))
    result = build(tmp_path, [tmp_path / "b-en-de.tsv", tmp_path / "a-en-it.tsv"])
    assert [corpus["languages"].keys() for corpus in result["report"]["corpora"]] == [set(), {"it"}]
    assert str(tmp_path / "b-en-de.tsv") in capsys.readouterr().out


def test_same_call_same_bytes(tmp_path):
    options = ("--dev_fraction", 0.1, "--export_pairs", "--export_tsv")
    first = content(build(tmp_path, many(tmp_path), *options)["folder"])
    assert first == content(build(tmp_path, many(tmp_path), *options)["folder"])
    other = content(build(tmp_path, many(tmp_path), *options, "--seed", 7)["folder"])
    assert first["train/data-00000-of-00001.arrow"] != other["train/data-00000-of-00001.arrow"]
    assert first["train/state.json"] != other["train/state.json"]  # the fingerprint follows the content


def test_cap_takes_the_first_in_hash_order(tmp_path):
    everything = build(tmp_path, many(tmp_path))["pairs"]
    result = build(tmp_path, many(tmp_path), "--max_sentences_per_language", 150)
    assert result["pairs"] == everything[:150] and dropped(result) == {"over_limit": 250}
    assert everything != sorted(everything)


def test_splits_by_source(tmp_path):
    tsv(tmp_path / "b-en-de.tsv", [(f"Sentence number {i}.", f"Satz Nummer {i}.") for i in range(400)])
    corpora = [many(tmp_path), tmp_path / "b-en-de.tsv"]
    options = ("--dev_fraction", 0.1, "--test_fraction", 0.2)
    splits = build(tmp_path, corpora, *options, languages=("it", "de"))["splits"]
    sources = {name: set(split["source"]) for name, split in splits.items()}
    assert list(sources) == ["train", "dev", "test"] and sum(map(len, sources.values())) == 400
    assert not sources["train"] & sources["dev"] and not sources["train"] & sources["test"]
    assert 20 <= len(sources["dev"]) <= 60 and 55 <= len(sources["test"]) <= 105
    # A corpus more or less leaves a sentence on its side.
    assert set(build(tmp_path, many(tmp_path), *options)["splits"]["dev"]["source"]) == sources["dev"]


def test_empty_split_is_refused(tmp_path):
    path = tsv(tmp_path / "x-en-it.tsv", zip(ENGLISH, ITALIAN, strict=True))
    with pytest.raises(UserError, match="dev split would be empty: 3 source sentences"):
        build(tmp_path, path, "--dev_fraction", 0.001)
    assert not (tmp_path / "pairs").exists() and list(tmp_path.iterdir()) == [path]


def test_dev_size_is_that_of_each_language(tmp_path):
    """About 50 pairs of many, half of a few; a source that both share goes with the higher share."""
    first = [(f"Sentence number {i}.", f"Frase numero {i}.") for i in range(2000)]
    second = [(f"Phrase number {i}.", f"Satz Nummer {i}.") for i in range(60)]
    corpora = [tsv(tmp_path / "x-en-it.tsv", first), tsv(tmp_path / "y-en-de.tsv", second)]
    result = build(tmp_path, corpora, "--dev_size", 50, languages=("it", "de"))
    sizes = result["report"]["splits"]["dev"]["pairs"]
    assert 35 < sizes["it"] < 65 and 18 < sizes["de"] < 42
    shared = tsv(tmp_path / "z-en-de.tsv", [(en, f"Satz Nummer {i}.") for i, (en, _) in enumerate(first[:60])])
    sizes = build(tmp_path, [corpora[0], shared], "--dev_size", 50, languages=("it", "de"))["report"]["splits"]["dev"]
    assert sizes["pairs"]["it"] > sizes["pairs"]["de"] > 18


# ---------------------------------------------------------------- scale: parts, runs, workers


def cut_small(monkeypatch, memory: int = 1 << 28, part: int = 1 << 26, pairs: int = 1 << 20, block: int = 1 << 23):
    """Bytes of a run, of a part of a file and of a block read; pairs of a part of the result."""
    monkeypatch.setattr(hash_order, "MEMORY", memory)
    monkeypatch.setattr(hash_order, "PAIRS", pairs)
    monkeypatch.setattr(text_files, "BLOCK", block)
    for module in (text_files, tables):
        monkeypatch.setattr(module, "PART", part)


def test_small_runs_and_parts_of_files_give_the_same_bytes(tmp_path, monkeypatch):
    """Duplicates across runs, parts and ranges of the hash included; a limit that falls into the middle of them."""
    paths = [many(tmp_path, 300), many(tmp_path, 400, "y-en-it.tsv")]
    options = ("--dev_fraction", 0.1, "--max_sentences_per_language", 350, "--export_tsv", "--export_pairs")
    cut_small(monkeypatch, pairs=100)
    whole = build(tmp_path, paths, *options)
    expected = content(whole["folder"])
    assert "train/data-00007-of-00008.arrow" in expected
    drops = [dropped(whole, corpus) for corpus in (0, 1)]
    assert drops[1]["duplicate"] == 300 and sum(drop["over_limit"] for drop in drops) == 50
    assert whole["report"]["splits"]["train"]["rows"] + whole["report"]["splits"]["dev"]["rows"] == 350
    cut_small(monkeypatch, memory=2000, part=4000, pairs=100, block=1000)
    assert content(build(tmp_path, paths, *options)["folder"]) == expected
    runs = []
    monkeypatch.setattr(build_pairs, "read_part", lambda paths, *part: runs.append(paths) or read_part(paths, *part))
    assert content(build(tmp_path, paths, *options)["folder"]) == expected
    assert len(runs) == 8 and len(runs[0]) > 8, "a run for each part of a file at least"


def test_a_half_translation_is_unusual_where_a_language_has_many_pairs(tmp_path):
    pairs = [(f"Sentence number {i} of many.", f"Frase numero {i} di molte.") for i in range(3500)]
    pairs[700] = (pairs[700][0], "Frase")
    path = tsv(tmp_path / "x-en-it.tsv", pairs)
    assert dropped(build(tmp_path, path)) == {"unusual_length": 1}
    assert dropped(build(tmp_path, path, "--skip", "unusual_length")) == {}
    assert dropped(build(tmp_path, tsv(path, pairs[:2900]))) == {}


def test_a_range_without_pairs(tmp_path, monkeypatch):
    cut_small(monkeypatch, pairs=1)
    path = tsv(tmp_path / "x-en-it.tsv", [(f"Sentence number {i}.", f"Frase numero {i}.") for i in range(9)])
    assert len(build(tmp_path, path, "--export_pairs", "--export_tsv")["rows"]) == 9


def test_record_batches_have_as_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.pairs.pairs_folder.BATCH", 7)
    split = build(tmp_path, many(tmp_path))["splits"]["train"]
    assert [len(chunk) for chunk in split.data.column("source").chunks] == [7] * 57 + [1]


@pytest.mark.parametrize("size", [1, 50, 64, 1000])
@pytest.mark.parametrize("name", ["x-en-it.tsv", "header.tsv", "x.jsonl", "x.parquet"])
def test_the_parts_of_a_file_are_the_file(tmp_path, monkeypatch, name, size):
    path = tmp_path / name
    pairs = [(f"Sentence {'long ' * (i % 5)}{i}.", f"Frase {i}.") for i in range(20)]
    if name == "x.parquet":
        columns = dict(zip(("en", "it"), zip(*pairs, strict=True), strict=True))
        pl.DataFrame(columns, schema={"en": pl.String, "it": pl.String}).write_parquet(path, row_group_size=7)
    elif name == "x.jsonl":
        write(path, *(json.dumps({"translation": {"en": en, "it": it}}) for en, it in pairs))
    else:
        lines = ["\t".join(pair) for pair in [("en", "it")] * (name == "header.tsv") + pairs]
        path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())  # the last line has no end
    cut_small(monkeypatch, part=size)
    parts = parts_of(str(path), None)
    assert len(parts) > 1 or size == 1000
    read = [pl.concat([pl.DataFrame(schema=PAIR), *read_corpus(str(path), "en", part=part)]) for part in parts]
    assert [(row[0], row[2]) for row in pl.concat(read).iter_rows()] == pairs


def test_compressed_files_are_one_part(tmp_path):
    with gzip.open(tmp_path / "x-en-it.tsv.gz", "wt") as file:
        file.write("A dog.\tUn cane.\n")
    assert parts_of(f"{tmp_path}/x-en-it.tsv.gz", None) == [None]


def test_a_fault_in_a_later_part_is_told_by_its_line(tmp_path, monkeypatch):
    cut_small(monkeypatch, part=1000)
    path = many(tmp_path)
    path.write_text(path.read_text().replace("Frase numero 321.", "Frase\tnumero 321."))
    with pytest.raises(UserError, match="line 322: expected 2 columns between tabs, found 3"):
        build(tmp_path, path)


def test_what_was_done_before_a_kill_is_found_again(tmp_path, monkeypatch):
    """A call is stopped at its end; given again, it cleans nothing anew, but where a file has changed since."""
    path = many(tmp_path)
    expected = content(build(tmp_path, path, "--dev_fraction", 0.1)["folder"])
    shutil.rmtree(tmp_path / "pairs")
    cleaned = []
    clean, gather = build_pairs.clean, build_pairs.gather
    monkeypatch.setattr(build_pairs, "clean", lambda *given, **named: cleaned.append(1) or clean(*given, **named))
    monkeypatch.setattr(build_pairs, "gather", lambda *given: sys.exit(gather(*given) or 143))
    with pytest.raises(SystemExit):
        build(tmp_path, path, "--dev_fraction", 0.1)
    assert not (tmp_path / "pairs").exists()
    monkeypatch.setattr(build_pairs, "gather", gather)
    assert content(build(tmp_path, path, "--dev_fraction", 0.1)["folder"]) == expected
    assert len(cleaned) == 1 and not (tmp_path / ".pairs.parts").exists()
    monkeypatch.setattr(build_pairs, "gather", lambda *given: sys.exit(143))
    with pytest.raises(SystemExit):
        build(tmp_path, path, "--dev_fraction", 0.1)
    monkeypatch.setattr(build_pairs, "gather", gather)
    assert len(build(tmp_path, many(tmp_path, 200), "--dev_fraction", 0.1)["rows"]) == 200
    assert len(cleaned) == 3


def test_what_a_user_keeps_where_work_would_lie_stays(tmp_path):
    (tmp_path / ".pairs.parts").mkdir()
    path = many(tmp_path / ".pairs.parts")
    with pytest.raises(UserError, match=r".pairs.parts holds x-en-it.tsv, which no script wrote: move it"):
        build(tmp_path, path)
    assert path.is_file() and not (tmp_path / "pairs").exists()


def test_a_sentence_without_a_similar_translation_stands_by_itself(tmp_path, teacher):
    path = tsv(tmp_path / "x-en-it.tsv", EN_IT_LIST)
    options = ("--keep_untranslated", "--score_model", teacher, "--min_similarity", 1)
    result = build(tmp_path, path, *options)
    assert [row["targets"] for row in result["rows"]] == [[]] * 3 and dropped(result) == {"dissimilar": 3}


def test_workers_give_the_bytes_of_one_process_though_one_is_killed(tmp_path):
    corpora = [many(tmp_path, 2000 + i, f"{i}-en-it.tsv") for i in range(12)]
    write(tmp_path / "excluded.txt", "Sentence number 7.")
    given = ("--dev_fraction", 0.1, "--export_tsv", "--exclude", tmp_path / "excluded.txt")
    expected = content(build(tmp_path, corpora, *given)["folder"])
    call = [
        "--corpus",
        *corpora,
        "--target_languages",
        "it",
        *given,
        "--workers",
        2,
        "--output_dir",
        tmp_path / "pairs",
    ]
    words = [sys.executable, ROOT / "build_pairs.py", *call]
    with subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".pairs.parts/*/cleaning-1.done")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        workers = [
            child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        workers[0].kill()
        assert process.wait(100) == 0, process.stderr.read()
    assert len(workers) == 2
    found = content(tmp_path / "pairs")
    assert {name: found[name] for name in expected if name != "args.json"} == {
        name: expected[name] for name in found if name != "args.json"
    }


def test_a_corpus_of_another_source_language_is_refused(tmp_path):
    (tmp_path / "first").mkdir()
    first = build(tmp_path / "first", many(tmp_path))["folder"]
    with pytest.raises(UserError, match="has the source language en, not it"):
        build(tmp_path, first, "--source_language", "it", languages=("en",))


def test_no_pair_is_left(tmp_path):
    tsv(tmp_path / "y-en-it.tsv", [("A sentence.", "Предложение."), ("Another one.", "Другое.")])
    with pytest.raises(UserError, match="no pair is left: 2 read, dropped wrong_script 2, 0 of other"):
        build(tmp_path, tmp_path / "y-en-it.tsv", "--dev_fraction", 0)


# ---------------------------------------------------------------- a model's judgement


def test_a_model_judges_pairs_by_their_cosine(tmp_path, teacher):
    """The view has each pair's cosine, as sentence-transformers computes it; what lies below the lowest is dropped."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    path = tsv(tmp_path / "x-en-it.tsv", zip(ENGLISH, ITALIAN, strict=True))
    scored = build(tmp_path, path, "--score_model", teacher, "--export_pairs")
    view = datasets.load_from_disk(scored["folder"] / "pairs_view")["train"].to_polars()
    model = sentence_transformers.SentenceTransformer(str(teacher), device="cpu")
    one, other = (model.encode(view[side].to_list(), normalize_embeddings=True) for side in ("source", "target"))
    assert view["similarity"].to_list() == pytest.approx((one * other).sum(1).tolist(), abs=1e-5)
    options = ("--score_model", teacher, "--min_similarity", sorted(view["similarity"])[1] - 1e-6)
    result = build(tmp_path, path, *options)
    assert len(result["rows"]) == 2 and dropped(result) == {"dissimilar": 1}
    alone = [path, f"en={write(tmp_path / 'news.txt', 'Nothing else.')}"]
    assert len(build(tmp_path, alone, *options, "--keep_untranslated")["rows"]) == 4
    with pytest.raises(UserError, match="is that of a --score_model"):
        build(tmp_path, path, "--min_similarity", 0.5)


# ---------------------------------------------------------------- views


def unpacked(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def test_export_tsv(tmp_path):
    result = build(tmp_path, many(tmp_path), "--export_tsv", "--dev_fraction", 0.1)
    for split in ("train", "dev"):
        lines = unpacked(result["folder"] / f"tsv/en-it-{split}.tsv.gz").splitlines()
        pairs = [(row["source"], row["targets"][0]["sentence"]) for row in result["splits"][split]]
        assert [tuple(line.split("\t")) for line in lines] == pairs
    # What this writes, it reads.
    folder = tmp_path / "again"
    folder.mkdir()
    again = build(folder, [result["folder"] / f"tsv/en-it-{split}.tsv.gz" for split in ("train", "dev")])
    assert set(again["pairs"]) == set(result["pairs"])


def test_export_tsv_of_unmended_text_stays_two_columns(tmp_path):
    row = {"translation": {"en": "A\tdog\nruns.", "it": "Un cane\r\ncorre."}}
    result = build(tmp_path, write(tmp_path / "x.jsonl", json.dumps(row)), "--export_tsv", "--skip", "white_space")
    assert unpacked(result["folder"] / "tsv/en-it-train.tsv.gz") == "A dog runs.\tUn cane  corre.\n"
    assert result["pairs"] == [("A\tdog\nruns.", "it", "Un cane\r\ncorre.")]


def test_export_pairs_goes_into_sentence_transformers(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    result = build(tmp_path, many(tmp_path), "--export_pairs", "--dev_fraction", 0.1)
    view = datasets.load_from_disk(result["folder"] / "pairs_view")
    assert view["train"].column_names == ["source", "target", "language"]
    assert [(row["source"], row["language"], row["target"]) for split in view.values() for row in split] == result[
        "pairs"
    ]
    examples = [sentence_transformers.InputExample(texts=[row["source"], row["target"]]) for row in view["dev"]]
    assert examples[0].texts == [view["dev"][0]["source"], view["dev"][0]["target"]]


# ---------------------------------------------------------------- the command


def command(*arguments, **options) -> subprocess.CompletedProcess:
    call = [sys.executable, ROOT / "build_pairs.py", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, timeout=100, **options)


def test_command_line_and_narrow_terminal(tmp_path):
    path = tsv(tmp_path / "x-en-it.tsv", [*zip(ENGLISH, ITALIAN, strict=True), *BAD.values()])
    call = ["--corpus", path, "--target_languages", "it", "--dev_fraction", 0.3, "--output_dir", tmp_path / "pairs"]
    done = command(*call, env=os.environ | {"COLUMNS": "50"})
    assert done.returncode == 0, done.stderr
    assert "length_ratio 1" in done.stdout and "14" in done.stdout and done.stderr == ""
    table = [line for line in done.stdout.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= 50


def test_command_line_mistake(tmp_path):
    done = command("--corpus", tmp_path / "no.tsv", "--target_languages", "it", "--output_dir", tmp_path / "pairs")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"build_pairs.py: error: {tmp_path}/no.tsv does not exist: check the path\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (("--workers", 2, "--scheduler", "tcp://localhost:1"), "give one of them"),
        (("--scheduler", "nothing"), "--scheduler nothing is no address, as tcp://host:8786, and no file that"),
        (("--dev_size", "3", "--test_fraction", "0.5"), "--test_fraction must be below 0.5"),
        (("--score_model", "nowhere/at-all"), "nowhere/at-all"),
        (("--dev_fraction", "0.5", "--test_fraction", "0.5"), "--dev_fraction and --test_fraction"),
        (("--source_column", "a"), "give both"),
        (("--source_language", "englsh"), "did you mean en"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build(tmp_path, many(tmp_path), *options)
    assert not (tmp_path / "pairs").exists()


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs/thesis.txt", "precious")
    with pytest.raises(UserError, match=r"pairs holds thesis.txt, which no script wrote"):
        build(tmp_path, many(tmp_path))
    assert [path.name for path in (tmp_path / "pairs").iterdir()] == ["thesis.txt"]


def test_linked_output_folder_stays_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "pairs").symlink_to(tmp_path / "scratch")
    for n in (400, 100):
        assert len(build(tmp_path, many(tmp_path, n))["rows"]) == n
    assert (tmp_path / "pairs").is_symlink() and (tmp_path / "scratch/report.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "scratch", "x-en-it.tsv"]


def test_fallback_renames_recover_from_a_kill(tmp_path, monkeypatch):
    """Without RENAME_EXCHANGE, a kill between the two renames leaves the old folder aside; the next run restores it."""
    monkeypatch.setattr("distill.folders.exchange", lambda one, other: False)
    build(tmp_path, many(tmp_path))
    old = content(tmp_path / "pairs")
    (tmp_path / "pairs").rename(tmp_path / ".pairs.replaced")
    with pytest.raises(UserError):
        build(tmp_path, tmp_path / "no.tsv")
    assert content(tmp_path / "pairs") == old and not (tmp_path / ".pairs.replaced").exists()
    build(tmp_path, many(tmp_path, 100))
    assert len(datasets.load_from_disk(tmp_path / "pairs")["train"]) == 100


KILLED = """
import os, sys; sys.path.insert(0, {root!r})
from types import SimpleNamespace
from distill.folders import replaced_folder
print("ready", flush=True)
n = 0
while True:
    n += 1
    with replaced_folder({path!r}, SimpleNamespace(command_line=""), "pairs") as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text(f"{{os.getpid()}} {{n}}")
"""


def test_kill_at_any_moment_leaves_a_whole_folder(tmp_path):
    """A process that replaces a folder without end is killed forty times; the folder is there and of one piece."""
    path = tmp_path / "pairs"
    with replaced_folder(path, SimpleNamespace(command_line=""), "pairs") as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text("0")
    seen = set()
    chance = random.Random(0)
    for _ in range(40):
        code = KILLED.format(root=str(ROOT), path=str(path))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        process.stdout.readline()
        before = (path / "a").read_text()
        while (path / "a").read_text() == before:
            assert process.poll() is None
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        texts = {name: (path / name).read_text() for name in ("a", "b", "c")}
        assert len(set(texts.values())) == 1 and {item.name for item in path.iterdir()} == {*texts, "args.json"}
        seen.add(texts["a"])
    assert len(seen) == 40, "each of them had written"


def test_kill_the_script_leaves_old_or_new(tmp_path):
    call = ["--target_languages", "it", "--dev_fraction", "0.1", "--output_dir", tmp_path / "pairs"]
    build_pairs.main(parse("--corpus", many(tmp_path), *call))
    old = content(tmp_path / "pairs")
    new_call = ["--corpus", many(tmp_path, 3000, "y-en-it.tsv"), *call]
    start = time.monotonic()
    assert command(*new_call).returncode == 0
    seconds = time.monotonic() - start
    new = content(tmp_path / "pairs")
    outcomes = []
    for share in (0.5, 0.8, 0.9, 0.95, 1.0):
        build_pairs.main(parse("--corpus", tmp_path / "x-en-it.tsv", *call))
        process = subprocess.Popen(
            [sys.executable, ROOT / "build_pairs.py", *map(str, new_call)], stdout=subprocess.DEVNULL
        )
        time.sleep(seconds * share)
        process.kill()
        process.wait()
        left = content(tmp_path / "pairs")
        assert left in (old, new)
        outcomes.append(left == new)
    assert command(*new_call).returncode == 0 and content(tmp_path / "pairs") == new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "x-en-it.tsv", "y-en-it.tsv"]


# ---------------------------------------------------------------- SLURM


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_slurm_script_is_sound():
    done = subprocess.run(["shellcheck", ROOT / "slurm/build_pairs.slurm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_job_equals_one_call(tmp_path):
    """The batch file as it stands but for its edit-me block, with an srun that only runs its command."""
    script = (ROOT / "slurm/build_pairs.slurm").read_text(encoding="utf-8")
    head, rest = script.split("corpora=", 1)
    rest = rest.split("# ---- end of edit me", 1)[1]
    edited = "corpora=(x-en-it.tsv)\nlanguages=(it)\npairs=pairs\n"
    (tmp_path / "job.sh").write_text(head + edited + rest, encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "bin/srun").chmod(0o755)
    for name in (".venv", "distill", "build_pairs.py"):
        (tmp_path / name).symlink_to(sys.prefix if name == ".venv" else ROOT / name)
    many(tmp_path)
    options = ["--dev_fraction", "0.1", "--max_sentences_per_language", "150"]
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    subprocess.run(["bash", tmp_path / "job.sh", *options], env=environment, check=True, cwd=tmp_path, timeout=200)
    assert not list(tmp_path.glob("pairs.scheduler*"))
    folder = tmp_path / "whole"
    folder.mkdir()
    whole, found = content(build(folder, tmp_path / "x-en-it.tsv", *options)["folder"]), content(tmp_path / "pairs")
    for split in ("train", "dev"):
        assert found[f"{split}/data-00000-of-00001.arrow"] == whole[f"{split}/data-00000-of-00001.arrow"]


def test_a_brace_says_what_a_part_of_a_name_stands_for():
    assert expand_languages("x.{en,pt-BR=ptbr}.gz") == {"en": "x.en.gz", "pt-BR": "x.ptbr.gz"}
    with pytest.raises(UserError, match="names en twice"):
        expand_languages("x.{en,en=english}")


@pytest.mark.parametrize(
    ("language", "word", "region"),
    [("pt", "br", True), ("en", "us", True), ("zh", "hans", True), ("it", "mt", False), ("fr", "ca", False)],
)
def test_a_word_after_a_language_is_its_region_only_where_that_is_sure(language, word, region):
    assert is_region(language, word) is region
