"""Quality of a pair: markup, repetition, numbers and lengths, by hand."""

from collections import Counter

import polars as pl
import pytest

from distill.pairs.quality import (
    length_steps,
    of_unusual_length,
    repeating,
    unlike_markup,
    unlike_numbers,
    usual_lengths,
)


def pairs(source: str | None, target: str | None) -> pl.DataFrame:
    return pl.DataFrame({"source": [source], "target": [target]}, schema={"source": pl.String, "target": pl.String})


@pytest.mark.parametrize(
    "source, target, unlike",
    [
        ("a <b>bold</b> word", "una parola <b>in grassetto</b>", False),
        ("a <b>bold</b> word", "una parola in grassetto", True),
        ("see https://example.org", "vedi www.example.org", False),
        ("see https://www.example.org", "vedi www.example.org", False),
        ("see https://example.org", "vedi qui", True),
        (r"{\an8}Hello", "Ciao", True),
        ("1 < 2 and 3 > 2", "1 è meno di 2", False),
        ("I <3 you", "Ti voglio bene", False),
    ],
)
def test_markup(source, target, unlike):
    assert unlike_markup(pairs(source, target)).to_list() == [unlike]


@pytest.mark.parametrize(
    "sentence, repeats",
    [
        ("ha ha ha ha ha ha", True),
        ("no no no no no", False),  # five words
        ("on and on and on and", True),
        ("the dog and the cat and the bird", False),
        (None, None),
    ],
)
def test_repetition(sentence, repeats):
    assert repeating(pl.Series([sentence], dtype=pl.String)).to_list() == [repeats]


@pytest.mark.parametrize(
    "source, target, unlike",
    [
        ("In 1984 he was 23.", "Nel 1984 aveva 23 anni.", False),
        ("on 9/28/2004", "il 28.9.2004", False),  # in another order
        ("$26,750", "26.750 dollari", False),
        ("10,000 people", "100 persone", False),  # zeros are not compared
        ("in 2004", "in ٢٠٠٤", False),
        ("five dogs", "5 cani", False),
        ("at 5 p.m.", "alle 17:00", False),
        ("he has 12 apples", "ha 12 mele \U00010d41", False),  # a digit of Garay, which Python may not know
        ("twelve dogs", "12 cani", False),
        ("in that year", "nel 1984", True),
        ("In 1984 he was 23.", "Nel 1984 ne aveva ventitré.", False),  # 4 of 6 and of 4 digits: 8 / 10
        ("In 1984 he was 23.", "Aveva 23 anni.", False),  # 4 / 8
        ("In 1984 he was 23.", "Aveva 26 anni.", True),  # 2 / 8
        ("No numbers.", "Nessun numero.", False),
        (None, "nel 1984", False),
    ],
)
def test_numbers(source, target, unlike):
    assert unlike_numbers(pairs(source, target)).to_list() == [unlike]


def test_lengths():
    """With 10 characters more on each side: twice as long is a step of 32, half as long one of -32."""
    lengths = [(10, 30), (30, 10), (10, 10), (10, 18)]  # 40 / 20, 20 / 40, 1, 28 / 20 is 2 to the power of 15.53 / 32
    frame = pl.DataFrame([{"source": "a" * source, "target": "b" * target} for source, target in lengths])
    assert frame.select(length_steps()).to_series().to_list() == [32, -32, 0, 16]
    assert pairs("A dog.", None).select(length_steps()).item() == 0


def test_what_is_usual_is_four_deviations_around_the_median():
    """The middle half of 3,000 pairs spans 14 steps: the deviation is 10.4; of a narrow language it would be none."""
    counts = {
        "it": Counter({-8: 900, 0: 900, 6: 780, 90: 420}),
        "de": Counter({5: 2999, 6: 1}),
        "fr": Counter({0: 2999}),
    }
    assert usual_lengths(counts) == {"it": (-41, 41), "de": (-15, 25)}
    usual = of_unusual_length({"it": (-16, 32), "de": (1, 9)})
    rows = [("it", 30), ("it", 32), ("de", 30), ("fr", 99)]
    frame = pl.DataFrame([{"source": "a" * 10, "language": tag, "target": "b" * n} for tag, n in rows])
    assert frame.select(usual).to_series().to_list() == [False, True, True, False]
