"""Language identification: what is surely in another language, and what is left alone."""

import polars as pl
import pytest
from conftest import DATA, needs_data

from distill.pairs.identification import in_other_language, known, language_of


def judged(sentences: list[str | None], *tags: str) -> list[bool]:
    return in_other_language(pl.Series(sentences, dtype=pl.String), pl.Series(tags)).tolist()


def test_each_sentence_is_judged_by_its_own_language():
    sentences = ["Wir essen heute Brot im Garten.", "Mangiamo il pane in giardino.", "Heute ist das Wetter sehr schön."]
    assert judged(sentences, "de", "it", "it") == [False, False, True]
    assert judged(sentences, "it", "de", "de-CH") == [True, True, False]


def test_what_tells_no_language_is_left_alone():
    for sentence in (None, "", "Microsoft Windows", "Barack Obama", "12:30 - 14:00", "OK!"):
        assert judged([sentence], "it") == [False]
    assert judged(["The weather is fine\nand the sun is hot today."], "it") == [True]
    assert judged(["\ufdd0 the weather is fine today"], "en") == [False], "CLD2 knows no such character"


@pytest.mark.parametrize("tag", ["mi", "haw", "source alone", "column id"])
def test_a_language_that_is_not_known_is_not_judged(tag):
    assert language_of(tag) not in known()
    assert judged(["The weather is fine today."], tag) == [False]


@pytest.mark.parametrize(
    "sentence, tags",
    [
        ("Danas je lijepo vrijeme i djeca se igraju u parku.", ["hr", "bs", "sr-Latn"]),
        ("Vejret er godt i dag, og børnene leger i parken.", ["da", "no", "nb"]),
        ("Cuaca hari ini cerah dan anak-anak bermain di taman.", ["id", "ms"]),
        ("Es isch hüt schön Wätter und d Chind spile im Park.", ["de", "gsw"]),
        ("O tempo está bom hoje e as crianças brincam no parque.", ["pt", "pt-BR", "pt-PT"]),
        ("今天天气很好，孩子们在公园里玩耍，大人们在树下聊天喝茶。", ["zh", "zh-CN", "zh-TW", "yue"]),
    ],
)
def test_close_relatives_are_one_language(sentence, tags):
    for tag in tags:
        assert judged([sentence], tag) == [False], tag
    assert judged([sentence], "fr") == [True]


@needs_data
@pytest.mark.parametrize("language, tag", [("deu", "de"), ("fra", "fr"), ("ita", "it"), ("spa", "es"), ("ara", "ar")])
def test_short_sentences(language, tag):
    """Of Tatoeba, which are short: hardly one is lost, and English in their place is mostly found."""
    right, wrong = (
        (DATA / f"tatoeba/tatoeba.{language}-eng.{side}").read_text(encoding="utf-8").splitlines()
        for side in (language, "eng")
    )
    assert sum(judged(right, *[tag] * len(right))) <= 5
    assert sum(judged(wrong, *[tag] * len(wrong))) >= 850
