"""STS sets: formats, languages, score ranges, alignment, bad files."""

import json

import datasets
import numpy as np
import polars as pl
import pytest
from conftest import SAMPLES

from distill.command import UserError
from distill.scoring.sts import read_sts, split_pairs

GOOD = "a,b,1.0\nc,d,2.5\ne,f,4\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_aligned_files_give_every_ordered_pair_of_languages():
    sets = read_sts(str(SAMPLES / "sts-{en,it,es}.csv"))
    assert [one.name for one in sets] == ["en", "en-it", "en-es", "it-en", "it", "it-es", "es-en", "es-it", "es"]
    by_name = {one.name: one for one in sets}
    assert by_name["en-it"].languages == ("en", "it")
    assert by_name["en-it"].sentence1 == by_name["en"].sentence1
    assert by_name["en-it"].sentence2 == by_name["it"].sentence2
    assert len({id(one.scores) for one in sets}) == 1
    assert by_name["en"].scores.min() >= 0 and by_name["en"].scores.max() == 1


def test_sets_that_are_cross_lingual_by_themselves(tmp_path):
    write(tmp_path / "sts17-en-de.csv", GOOD)
    write(tmp_path / "sts17-es-es.csv", "g,h,0\ni,j,5\n")
    write(tmp_path / "sts17-pt-BR.csv", "k,l,0\nm,n,5\n")
    sets = read_sts(str(tmp_path / "sts17-{en-de,es-es,pt-BR}.csv"), name="sts17")
    assert [(one.name, one.languages, len(one.scores)) for one in sets] == [
        ("sts17/en-de", ("en", "de"), 3),
        ("sts17/es", ("es", "es"), 2),
        ("sts17/pt-BR", ("pt-BR", "pt-BR"), 2),
    ]
    assert sets[0].sentence1 == ["a", "c", "e"] and sets[0].scores.tolist() == [0.2, 0.5, 0.8]


@pytest.mark.parametrize(
    "tags, languages",
    [
        ("en", [("en",)]),
        ("en-de EN-DE en_de ita-eng", [("en", "de"), ("en", "de"), ("en", "de"), ("it", "en")]),
        ("en+de pt+br en+pt-BR", [("en", "de"), ("pt", "br"), ("en", "pt-BR")]),
        ("pt-BR es-419 sr-cyrl zh-hans-cn", [("pt-BR",), ("es-419",), ("sr-Cyrl",), ("zh-Hans-CN",)]),
        ("zh-Hans-pt-BR en-zh-hans", [("zh-Hans", "pt-BR"), ("en", "zh-Hans")]),
        ("en-us zh-cn", [("en-US",), ("zh-CN",)]),  # no language has the code us or cn
        ("es-es it-mt", [("es", "es"), ("it", "mt")]),
    ],
)
def test_pairs_of_languages_and_regions(tags, languages):
    assert list(split_pairs(tags.split(), "x").values()) == languages


@pytest.mark.parametrize(
    "tag, one, two", [("pt-br", "pt-BR", "pt+br"), ("sv-se", "sv-SE", "sv+se"), ("PT-BR", "pt-BR", "pt+br")]
)
def test_a_tag_that_may_be_one_language_or_two_is_refused(tag, one, two):
    """Brazil's Portuguese or Portuguese to Breton, Sweden's Swedish or Swedish to Northern Sami."""
    ways = f"write {{{one}={tag}}} for one, {{{two}={tag}}} for two"
    with pytest.raises(UserError) as error:
        split_pairs(["en", tag], f"x-{{en,{tag}}}")
    assert f"{tag} may be one language or two: {ways}" in str(error.value)
    assert split_pairs([one, two], "x") == {one: (one,), two: tuple(two.split("+"))}


def test_a_tag_of_more_than_two_languages_is_refused():
    with pytest.raises(UserError, match=r"en-pt-br names more than two languages: .* {en\+pt-br=en-pt-br}"):
        split_pairs(["en-pt-br"], "x")


def test_regions_in_small_letters_are_named_in_the_braces(tmp_path):
    for tag in ("en", "pt-br"):
        write(tmp_path / f"t-{tag}.csv", GOOD)
    sets = read_sts(str(tmp_path / "t-{en,pt-BR=pt-br}.csv"))
    assert [one.name for one in sets] == ["en", "en-pt-BR", "pt-BR-en", "pt-BR"]
    (one,) = read_sts(str(tmp_path / "t-{pt+br=pt-br}.csv"))
    assert one.name == "pt-br" and one.languages == ("pt", "br")


def test_tables_of_every_kind_are_the_same_set(tmp_path):
    rows = {"sentence1": ["a, b", "c", "e"], "sentence2": ["b", 'd "x"', "f"], "score": [1.0, 2.5, 4.0]}
    table = pl.DataFrame(rows)
    table.write_csv(tmp_path / "x-en.csv")
    table.select("score", "sentence2", "sentence1").write_csv(tmp_path / "y-en.csv")
    table.write_csv(tmp_path / "z-en.csv", include_header=False)
    table.rename({"score": "similarity_score"}).write_parquet(tmp_path / "x-en.parquet")
    table.write_ndjson(tmp_path / "x-en.jsonl")
    text = "".join(f"{row[0]}\t{row[1]}\t{row[2]}\n" for row in table.iter_rows())
    write(tmp_path / "x-en.tsv", text)
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved-en")
    (tmp_path / "hub/sts").mkdir(parents=True)
    for split in ("train", "test"):
        table.with_columns(score=pl.col("score") * (split == "test")).write_csv(tmp_path / f"hub/sts/{split}.csv")
    write(tmp_path / "hub/README.md", "---\nconfigs:\n- config_name: en\n  data_dir: sts\n---\n")
    names = ["x-{en}.csv", "y-{en}.csv", "z-{en}.csv", "x-{en}.parquet", "x-{en}.jsonl", "x-{en}.tsv", "saved-{en}"]
    for name in [*names, "hub:{en}", "hub:{en}:test"]:
        (one,) = read_sts(str(tmp_path / name))
        assert (one.sentence1, one.sentence2) == (rows["sentence1"], rows["sentence2"]), name
        np.testing.assert_allclose(one.scores, [0.2, 0.5, 0.8]), name


def test_score_ranges(tmp_path):
    write(tmp_path / "a-en.csv", "a,b,0\nc,d,0.5\ne,f,1\n")
    write(tmp_path / "b-en.csv", "a,b,1\nc,d,2.5\ne,f,4\n")
    assert read_sts(str(tmp_path / "a-{en}.csv"))[0].scores.tolist() == [0, 0.5, 1]
    assert read_sts(str(tmp_path / "b-{en}.csv"))[0].scores.tolist() == [0.2, 0.5, 0.8]
    assert read_sts(str(tmp_path / "b-{en}.csv"), (1, 4))[0].scores.tolist() == [0, 0.5, 1]
    with pytest.raises(UserError, match=r"row 2: the score 2.5 is not between 0 and 2: .* --score_range"):
        read_sts(str(tmp_path / "b-{en}.csv"), (0, 2))


def test_quoted_cells_may_hold_line_ends(tmp_path):
    write(tmp_path / "sts-en.csv", '"one\ntwo",b,1.0\nc,"d ""e""",2.5\n')
    (one,) = read_sts(str(tmp_path / "sts-{en}.csv"))
    assert (one.sentence1, one.sentence2) == (["one\ntwo", "c"], ["b", 'd "e"'])


def test_rows_that_stand_twice_count_twice(tmp_path):
    write(tmp_path / "sts-en.csv", GOOD + GOOD)
    assert len(read_sts(str(tmp_path / "sts-{en}.csv"))[0].scores) == 6


@pytest.mark.parametrize(
    "file, message",
    [
        (None, "sts-it.csv does not exist"),
        ("a,b,1.0\nc,d,2.5\n", "the files have different row counts, {'en': 3, 'it': 2}"),
        ("a,b,1.0\nc,d,2.5\ne,f,3\n", "the en and it files are not aligned, row 3 has the scores 4 and 3"),
        ("a,b,1.0\nc,d\ne,f,3\n", "sts-it.csv, line 2: expected 3 columns (sentence1,sentence2,score), found 2"),
        ("a,b,1.0\n\ne,f,3\n", "sts-it.csv, row 2: the score '' is no number"),
        ("a,b,1.0\nc,d,high\ne,f,3\n", "sts-it.csv, row 2: the score 'high' is no number"),
        ("a,b,1.0\nc,d,\ne,f,3\n", "sts-it.csv, row 2: the score '' is no number"),
        ("a,b,1.0\nc,d,7\ne,f,3\n", "sts-it.csv, row 2: the score 7 is not between 0 and 5"),
        ("a,b,1.0\nc,d,-1\ne,f,3\n", "sts-it.csv, row 2: the score -1 is not between 0 and 5"),
        ("a,b,1.0\nc,d,nan\ne,f,3\n", "sts-it.csv, row 2: the score nan is not between 0 and 5"),
        ("a,b,1.0\nc, ,2\ne,f,3\n", "sts-it.csv, row 2: sentence2 is empty"),
        ("a,b,2\nc,d,2\ne,f,2\n", "sts-it.csv: every score is 2, with which nothing can correlate"),
        ("a,b,1\n", "sts-it.csv holds 1 rows: a correlation needs at least two"),
        ("", "sts-it.csv holds 0 rows"),
        ("sentence1,sentence2,grade\na,b,1\n", "sts-it.csv has the columns sentence1, sentence2, grade: expected"),
        (b"a,b,1\nc\xff,d,2\n", "sts-it.csv, line 2 is not UTF-8"),
    ],
)
def test_bad_files(tmp_path, file, message):
    write(tmp_path / "sts-en.csv", GOOD)
    if file is not None:
        (tmp_path / "sts-it.csv").write_bytes(file if isinstance(file, bytes) else file.encode())
    with pytest.raises(UserError) as error:
        read_sts(str(tmp_path / "sts-{en,it}.csv"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("sts-en.csv", "sts-en.csv names no languages"),
        ("sts-{en,xx}.csv", "'xx' is no known language tag"),
        ("sts-{en,italian}.csv", "did you mean it (Italian)"),
        ("sts-{en,eng}.csv", "names the same language twice, as en and eng"),
        ("sts-{en,en-en}.csv", "names the same language twice, as en and en-en"),
        ("org/name-within-no-reach:{en}:test", "cannot be loaded"),
        ("./nowhere-{en}", "nowhere-en does not exist"),
    ],
)
def test_bad_specs(monkeypatch, spec, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        read_sts(spec)
    assert message in str(error.value)


def test_json_lines_whose_first_block_has_whole_scores(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.text_files.BLOCK", 100)
    rows = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "score": i if i < 4 else i / 2} for i in range(9)]
    write(tmp_path / "sts-en.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    [one] = read_sts(f"{tmp_path}/sts-{{en}}.jsonl")
    assert one.scores.tolist() == [row["score"] / 5 for row in rows]


@pytest.mark.parametrize(
    "header, row, message",
    [
        ("sentence1,sentence2,score,,", "a{0},b{0},{0},,", None),
        ("Sentence1,Sentence2,Score", "a{0},b{0},{0}", None),
        ("sentence1,sentence2,score,score", "a{0},b{0},{0},1", "the header names 'score' more than once"),
    ],
)
def test_headers(tmp_path, header, row, message):
    write(tmp_path / "sts-en.csv", "\n".join([header, *(row.format(i) for i in range(3))]) + "\n")
    if message is None:
        assert read_sts(f"{tmp_path}/sts-{{en}}.csv")[0].sentence1 == ["a0", "a1", "a2"]
    else:
        with pytest.raises(UserError, match=message):
            read_sts(f"{tmp_path}/sts-{{en}}.csv")


def test_a_quote_left_open_swallows_no_rows(tmp_path):
    write(tmp_path / "sts-en.csv", '"a,b,1\nc,d,2\n"e",f,3\ng,h,4\n')
    with pytest.raises(UserError, match=r"sts-en.csv, line 1 begins a row with unsound quotes"):
        read_sts(f"{tmp_path}/sts-{{en}}.csv")


@pytest.mark.parametrize(
    "name, value, held",
    [
        ("sentence1", ["a"], "List(String), not text"),
        ("sentence2", {"x": "a"}, "not text"),
        ("score", [1], "not numbers"),
    ],
)
def test_columns_of_another_kind(tmp_path, name, value, held):
    row = {"sentence1": "a", "sentence2": "b", "score": 1}
    write(tmp_path / "sts-en.jsonl", json.dumps(row | {name: value}) + "\n")
    with pytest.raises(UserError) as error:
        read_sts(f"{tmp_path}/sts-{{en}}.jsonl")
    assert f"sts-en.jsonl: the column {name} holds " in str(error.value) and held in str(error.value)
