"""Pictures of scores: heatmaps over languages, gains, what cutting costs. All values x 100."""

import itertools
from pathlib import Path

import matplotlib
import numpy as np

from distill.scoring.report import grids, percent, significant, spearman
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
        panel.set(title=f"{grid.title} {title}".strip(), xlabel="sentence2", ylabel="sentence1")
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


def draw_scores(folder: Path, entries: list[dict], sets: list[StsSet]) -> None:
    """heatmaps.png of all models, and gains.png of what the last gained on each other."""
    draw_heatmaps(folder / "heatmaps.png", sets, {entry["name"]: spearman(entry) for entry in entries}, None)
    if compared := entries[-1].get("compared_with"):
        tests = {f"{entries[-1]['name']} minus {other}": scores["sts"] for other, scores in compared.items()}
        gains = {title: {name: percent(test["difference"]) for name, test in of.items()} for title, of in tests.items()}
        marks = {title: {name: "*" * significant(test) for name, test in of.items()} for title, of in tests.items()}
        draw_heatmaps(folder / "gains.png", sets, gains, marks)
