"""Pictures: scores x 100 over languages, gains, search, what cutting costs; sentences of all languages as a map."""

import itertools
from pathlib import Path

import matplotlib
import numpy as np

from distill.scoring.metrics import unit
from distill.scoring.report import grids, percent, significant, spearman
from distill.scoring.retrieval import Pool
from distill.scoring.sts import StsSet

matplotlib.use("Agg")
from matplotlib import pyplot as plt

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is no formula


def draw_cuts(path: Path, entry: dict) -> None:
    """The means x 100 over the bytes of a vector: a panel for each mean, a line for each precision."""
    names = [*entry["summary"]]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.5), squeeze=False, layout="constrained")
    for panel, name in zip(axes.flat, names, strict=True):
        for precision in dict.fromkeys(one["precision"] for one in entry["cuts"]):
            cuts = sorted((one for one in entry["cuts"] if one["precision"] == precision), key=lambda one: one["bytes"])
            values = [percent(one["summary"][name]) for one in cuts]
            panel.plot([one["bytes"] for one in cuts], values, marker="o", label=precision)
        panel.set(title=name, xlabel="bytes of a vector", ylabel="score x 100")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_heatmaps(path: Path, sets: list[StsSet], columns: dict[str, dict[str, float]], marks: dict | None) -> None:
    """Values x 100 by the languages of both sentences, by title and set: a column for each title, a row for each grid.

    With `marks`, of the same shape, which stand after them, as differences.
    """
    panels, known = grids(sets), [v for values in columns.values() for v in values.values() if not np.isnan(v)]
    sizes = [0.9 + 0.45 * max(len(grid.languages), 4) for grid in panels]
    shape, inches = (len(panels), len(columns)), (max(sizes) * len(columns) + 1, sum(sizes) + 0.4)
    figure, axes = plt.subplots(*shape, figsize=inches, height_ratios=sizes, squeeze=False, layout="constrained")
    most = max([1, *map(abs, known)])
    low, high, colours, form = (min([0, *known]), 100, "viridis", ".0f") if not marks else (-most, most, "RdBu", "+.0f")
    cells = itertools.product(panels, columns.items())
    for panel, (grid, (title, values)) in zip(axes.flat, cells, strict=True):
        image = panel.imshow(grid.matrix(values), vmin=low, vmax=high, cmap=colours)
        panel.set_xticks(range(len(grid.languages)), grid.languages)
        panel.set_yticks(range(len(grid.languages)), grid.languages)
        panel.set(title=f"{grid.title} {title}".strip() + f"\n{grid.data}", xlabel="sentence2", ylabel="sentence1")
        for (one, other), name in grid.names.items():
            red, green, blue, _ = image.cmap(image.norm(values[name]))
            colour = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
            mark = marks[title][name] if marks else ""
            text = "-" if np.isnan(values[name]) else f"{round(values[name]) + 0.0:{form}}{mark}"  # no -0
            place = grid.languages.index(other), grid.languages.index(one)
            panel.text(*place, text, ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="difference x 100 (* p < 0.05)" if marks else "Spearman x 100")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_search(path: Path, entries: list[dict]) -> None:
    """All that is found by a search as bars with 95% intervals, models side by side: accuracies and nDCG@10, x 100."""
    keys = {"bitext": "mean_accuracy", "mixed": "accuracy@1", "retrieval": "ndcg@10"}
    said = {"bitext": "accuracy", "mixed": "accuracy", "retrieval": "nDCG@10"}
    rows = [(task, name) for task in keys for name in entries[-1][task]]
    height = 0.8 / len(entries)
    figure, panel = plt.subplots(figsize=(8, 1.4 + 0.28 * len(rows) * (1 + len(entries))), layout="constrained")
    for number, entry in enumerate(entries):
        scores = [(entry[task][name], keys[task]) for task, name in rows]
        values = np.array([percent(one[key]) for one, key in scores])
        ends = np.array([[percent(end) for end in one[f"{key}_ci"] or (None, None)] for one, key in scores])
        at = np.arange(len(rows)) + (number - (len(entries) - 1) / 2) * height
        spans = np.abs(ends - values[:, None]).T
        panel.barh(at, values, height, xerr=spans, label=entry["name"], error_kw={"elinewidth": 1, "alpha": 0.6})
        for place, value, end in zip(at, values, ends[:, 1], strict=True):
            panel.text(max(value, end) + 1, place, f"{value:.0f}", va="center", fontsize=8)
    labels = [f"{name}, {said[task]}\nn = {entries[-1][task][name]['n']:,}" for task, name in rows]
    panel.set_yticks(range(len(rows)), labels)
    panel.invert_yaxis()
    panel.set(xlim=(0, 108), xlabel="x 100, with 95% intervals", title="The right sentence is found first")
    panel.set_axisbelow(True)
    panel.grid(axis="x", alpha=0.3)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.9 / figure.get_figheight()), ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_map(path: Path, pool: Pool, vectors: dict[str, np.ndarray]) -> None:
    """Sentences of all languages in two dimensions, a panel for each model: translations are joined by a line.

    vectors: (n, dimension) of the pool's sentences by model; the dimensions are the first two principal components of
    their directions.
    """
    figure, axes = plt.subplots(1, len(vectors), figsize=(5.2 * len(vectors), 5.4), squeeze=False, layout="constrained")
    for panel, (name, of_model) in zip(axes.flat, vectors.items(), strict=True):
        directions = np.pad(unit(of_model), ((0, 0), (0, 1)))  # of one dimension two can be drawn
        left, lengths, _ = np.linalg.svd(directions - directions.mean(0), full_matrices=False)
        places, share = (left * lengths)[:, :2], (lengths[:2] ** 2).sum() / (lengths**2).sum()
        for meaning in np.unique(pool.meanings):
            panel.plot(*places[pool.meanings == meaning].T, color="grey", linewidth=0.6, alpha=0.6, zorder=1)
        for language, tag in enumerate(pool.tags):
            panel.scatter(*places[pool.languages == language].T, s=18, label=tag, zorder=2)
        panel.set(title=f"{name}\n{share:.0%} of the variance", xticks=[], yticks=[])
        panel.set_aspect("equal", adjustable="datalim")
    axes[0, 0].legend(fontsize="small")
    meanings = len(np.unique(pool.meanings))
    figure.suptitle(f"{meanings} sentences and their translations, principal components; lines join translations")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_scores(folder: Path, entries: list[dict], sets: list[StsSet]) -> None:
    """heatmaps.png of all models, gains.png of what the last gained on each other, search.png, cuts.png."""
    if "cuts" in entries[-1]:
        draw_cuts(folder / "cuts.png", entries[-1])
    if entries[-1]["bitext"] or entries[-1]["retrieval"]:
        draw_search(folder / "search.png", entries)
    if not sets:
        return
    draw_heatmaps(folder / "heatmaps.png", sets, {entry["name"]: spearman(entry) for entry in entries}, None)
    if compared := entries[-1].get("compared_with"):
        tests = {f"{entries[-1]['name']} minus {other}": scores["sts"] for other, scores in compared.items()}
        gains = {title: {name: percent(test["difference"]) for name, test in of.items()} for title, of in tests.items()}
        marks = {title: {name: "*" * significant(test) for name, test in of.items()} for title, of in tests.items()}
        draw_heatmaps(folder / "gains.png", sets, gains, marks)
