"""Resampling against scipy on the rows themselves, intervals and tests against what is known of them."""

import numpy as np
import pytest
from scipy import stats

from distill.scoring.bootstrap import (
    Score,
    interval,
    mean,
    paired_test,
    resampled_correlations,
    resampled_means,
    row_counts,
)
from distill.scoring.report import p_value


def rows_of(rows: int, samples: int, seed) -> list[np.ndarray]:
    """The rows of each resample."""
    counts = np.concatenate(list(row_counts(rows, samples, seed)), axis=1).astype(int)
    return [np.repeat(np.arange(rows), one) for one in counts.T]


@pytest.mark.parametrize("rows", [60, 3000])
def test_correlations_in_resamples_are_those_of_their_rows(rows):
    random = np.random.default_rng(0)
    gold = random.integers(0, 26, rows) / 5
    noisy = gold + random.normal(size=rows)
    predictions = np.stack([noisy, np.round(noisy), -noisy])  # the second with many ties
    found = resampled_correlations(predictions, gold, 40, seed=5)
    taken = rows_of(rows, 40, seed=5)
    assert len(taken) == 40 and all(len(one) == rows for one in taken)
    for sample, one in enumerate(taken):
        for number, prediction in enumerate(predictions):
            spearman = stats.spearmanr(prediction[one], gold[one]).statistic
            pearson = stats.pearsonr(prediction[one], gold[one]).statistic
            np.testing.assert_allclose(found[:, number, sample], [spearman, pearson], atol=1e-10)


def test_a_resample_without_variation_is_undefined_and_left_out():
    found = resampled_correlations(np.array([[0.1, 0.2, 0.3]]), np.array([0.0, 0.5, 1.0]), 200, seed=0)
    alike = [len(set(one)) == 1 for one in rows_of(3, 200, seed=0)]
    assert 0 < sum(alike) < 60
    assert np.array_equal(np.isnan(found[0, 0]), alike) and np.array_equal(np.isnan(found[1, 0]), alike)
    assert interval(found[0, 0]) == [pytest.approx(1), pytest.approx(1)]
    assert interval(np.full(5, np.nan)) is None


def test_means_of_clusters():
    """Three sources; the second has two translations into one language, the third has none into the other."""
    tables = [np.array([[0.0, 1.0, 0.5, 0.5], [4.0, 3.0, 2.0, 1.0]]), np.array([[1.0, 0.0]])]
    clusters = [np.array([0, 1, 1, 2]), np.array([1, 0])]
    first, second = resampled_means(tables, clusters, 200, seed=1)
    for sample, taken in enumerate(rows_of(3, 200, seed=1)):
        rows = [[row for one in taken for row in np.flatnonzero(table == one)] for table in clusters]
        np.testing.assert_allclose(first[:, sample], tables[0][:, rows[0]].mean(1))
        assert np.isnan(second[0, sample]) if not rows[1] else second[0, sample] == tables[1][0, rows[1]].mean()


def test_the_seed_decides():
    gold, prediction = np.random.default_rng(0).random((2, 100))
    one, same, other = (resampled_correlations(prediction[None], gold, 50, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_interval_holds_95_percent():
    assert interval(np.arange(1001.0)) == [25, 975]
    # Of a mean of 400 coin tosses the 95% interval is about 0.5 +- 1.96 * 0.025.
    tosses = np.tile([0.0, 1.0], 200)
    low, high = interval(resampled_means([tosses[None]], [np.arange(400)], 4000, seed=0)[0][0])
    assert (low, high) == (pytest.approx(0.451, abs=0.005), pytest.approx(0.549, abs=0.005))


def test_paired_test_by_hand():
    # 2 of 9 resamples are on the other side of 0, and the whole set is counted among them: 2 * 3 / 10.
    difference = np.array([-0.2, -0.1, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4])
    old, new = (Score(value, resamples) for value, resamples in ((0.5, np.full(9, 0.5)), (0.6, 0.5 + difference)))
    assert paired_test(new, old)["p_value"] == pytest.approx(0.6) and p_value(paired_test(new, old)) == "0.600"
    assert paired_test(old, new)["p_value"] == pytest.approx(0.6)
    assert paired_test(old, new)["difference"] == pytest.approx(-0.1)
    same = Score(0.5, np.full(999, 0.5))
    assert paired_test(same, same) == {"difference": 0.0, "ci": [0, 0], "p_value": 1.0, "least_p": 0.002}


@pytest.mark.parametrize("samples, least", [(999, "< 0.002"), (1000, "< 0.002"), (99, "< 0.02"), (800, "< 0.003")])
def test_a_p_value_is_no_number_where_more_resamples_would_show_less(samples, least):
    test = paired_test(Score(0.6, np.full(samples, 0.6)), Score(0.5, np.full(samples, 0.5)))
    assert test["p_value"] == test["least_p"] == pytest.approx(2 / (samples + 1)) and p_value(test) == least


def test_intervals_of_nothing_but_hits():
    """As scipy has it: of 50 hits in 50 the share is at least 92.9%; where rows differ the bootstrap says it."""
    from scipy.stats import binomtest

    exact = binomtest(50, 50).proportion_ci(method="exact")
    hits, misses = Score(1.0, np.ones(20), trials=50), Score(0.0, np.zeros(20), trials=50)
    assert hits.interval == pytest.approx([exact.low, exact.high]) and exact.high == 1
    assert misses.interval == pytest.approx([0, 1 - exact.low])
    assert paired_test(hits, hits)["ci"] == pytest.approx([exact.low - 1, 1 - exact.low])
    assert paired_test(hits, misses)["ci"] == pytest.approx([exact.low, 1])
    few = Score(1.0, np.ones(20), trials=10)
    assert mean([hits, few]).interval == few.interval, "no narrower than that of its smallest set"
    nearly = Score(1.0, np.repeat([1.0, 1 - 1e-16], 10), trials=50)
    assert nearly.interval == pytest.approx(hits.interval), "sums differ by rounding"
    assert Score(0.5, np.linspace(0, 1, 41), trials=50).interval == pytest.approx([0.025, 0.975])
    assert interval(np.ones(20)) == [1, 1], "a correlation"


def test_a_difference_that_is_chance_is_rarely_significant():
    """Of two equally good predictions on many test sets, about 5% should differ with p < 0.05."""
    significant = 0
    for trial in range(300):
        random = np.random.default_rng(trial)
        gold = random.normal(size=80)
        both = gold + random.normal(size=(2, 80))
        values = [stats.spearmanr(one, gold).statistic for one in both]
        resamples = resampled_correlations(both, gold, 200, seed=trial)[0]
        scores = (Score(*both) for both in zip(values, resamples, strict=True))
        significant += paired_test(*scores)["p_value"] < 0.05
    assert 4 <= significant <= 30
