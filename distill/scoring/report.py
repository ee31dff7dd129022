"""Scores for people: tables for the terminal, Markdown and CSV, heatmaps. All values x 100."""

import csv
import itertools
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from tabulate import tabulate

from distill.scoring.bitext import Bitext
from distill.scoring.sts import StsSet

matplotlib.use("Agg")
from matplotlib import pyplot as plt

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is no formula

WIDTH = 80  # columns of a terminal
BITEXT_COLUMNS = {
    "src2trg_accuracy": "src2trg",
    "trg2src_accuracy": "trg2src",
    "mean_accuracy": "mean",
    "margin_mean_accuracy": "mean, by margin",
    "negative_mse": "negative MSE",
}


class Table(NamedTuple):
    """Rows of cells under headers; the first column names the row."""

    headers: list[str]
    rows: list[list[str]]


class Grid(NamedTuple):
    """The sets of one name, by the languages of sentence1 and sentence2."""

    title: str
    languages: list[str]
    names: dict[tuple[str, str], str]

    @property
    def full(self) -> bool:
        """Whether there is a set for every ordered pair of languages."""
        return len(self.names) == len(self.languages) ** 2

    def matrix(self, values: dict[str, float]) -> np.ndarray:
        """Values by set name as (languages of sentence1, languages of sentence2); nan where there is none."""
        return np.array(
            [[values.get(self.names.get((one, other)), np.nan) for other in self.languages] for one in self.languages]
        )


def grids(sets: list[StsSet]) -> list[Grid]:
    """The sets by the name that their spec was given."""
    found = {}
    for pairs in sets:
        grid = found.setdefault(pairs.name.rpartition("/")[0], Grid(pairs.name.rpartition("/")[0], [], {}))
        grid.languages.extend(language for language in pairs.languages if language not in grid.languages)
        grid.names[pairs.languages] = pairs.name
    return list(found.values())


def percent(value: float | None) -> float:
    """x 100; nan for what is undefined."""
    return np.nan if value is None else 100 * value


def spearman(entry: dict) -> dict[str, float]:
    """Spearman x 100 of cosine by set name."""
    return {name: percent(scores["spearman_cosine"]) for name, scores in entry["sts"].items()}


# ---------------------------------------------------------------- tables


def number(value: float | None, sign: str = "", digits: int = 1) -> str:
    """x 100; '-' for what is undefined."""
    # Adding 0 makes -0.0 a 0.0.
    return "-" if value is None else f"{round(100 * value, digits) + 0.0:{sign}.{digits}f}"


def with_interval(value: float | None, ci: list[float] | None, sign: str = "") -> str:
    """'79.8 [77.9, 81.5]'."""
    return number(value) if ci is None else f"{number(value, sign)} [{number(ci[0], sign)}, {number(ci[1], sign)}]"


def significant(test: dict) -> bool:
    """Whether a difference is unlikely to be chance."""
    return test["difference"] is not None and test["p_value"] < 0.05


def starred(test: dict) -> str:
    """A difference, with a star where it is significant."""
    return number(test["difference"], "+") + "*" * significant(test)


def matrix_table(grid: Grid, corner: str, cells: dict[str, str]) -> Table:
    """Cells by set name; row: language of sentence1, column: language of sentence2."""
    rows = [[one, *(cells.get(grid.names.get((one, other)), "") for other in grid.languages)] for one in grid.languages]
    return Table([corner, *grid.languages], rows)


def list_table(grid: Grid, columns: dict[str, dict[str, str]]) -> Table:
    """A row for each set of a grid that is not full; `columns`: cells by set name, by header."""
    names = list(grid.names.values())
    return Table(["", *columns], [[name, *(cells.get(name, "-") for cells in columns.values())] for name in names])


def sts_tables(entries: list[dict], sets: list[StsSet]) -> list[Table]:
    """Each model's matrix; where not every pair of languages is there, one list for all models."""
    cells = {
        entry["name"]: {name: number(scores["spearman_cosine"]) for name, scores in entry["sts"].items()}
        for entry in entries
    }
    tables = []
    for grid in grids(sets):
        if grid.full:
            corners = {name: f"{grid.title} {name}".strip() for name in cells}
            tables += [matrix_table(grid, corners[name], values) for name, values in cells.items()]
        else:
            tables.append(list_table(grid, cells))
    return tables


def difference_tables(entry: dict, other: str, sets: list[StsSet]) -> list[Table]:
    """What a model gained on another in each set."""
    title = f"{entry['name']} minus {other}"
    cells = {name: starred(test) for name, test in entry["compared_with"][other]["sts"].items()}
    return [
        matrix_table(grid, f"{grid.title} {title}".strip(), cells) if grid.full else list_table(grid, {title: cells})
        for grid in grids(sets)
    ]


def summary_table(entries: list[dict]) -> Table:
    """A model in one line: its means with 95% intervals."""
    names = list(entries[0]["summary"])
    rows = [[entry["name"], *(with_interval(**entry["summary"][name]) for name in names)] for entry in entries]
    return Table(["mean", *names], rows)


def gain_table(entry: dict) -> Table:
    """What a model gained on each other in the means, with 95% intervals and p-values."""
    rows = []
    for other, compared in entry["compared_with"].items():
        for name, test in compared["summary"].items():
            gain = with_interval(test["difference"], test["ci"], "+")
            rows.append([f"{name} on {other}", gain, f"{test['p_value']:.3f}"])
    return Table([f"gain of {entry['name']}", "95% interval", "p"], rows)


def bitext_table(entries: list[dict]) -> Table:
    """Number of pairs, translation accuracies x 100 and negative MSE, a row for each bitext and model."""
    columns = [key for key in BITEXT_COLUMNS if key in next(iter(entries[0]["bitext"].values()))]
    rows = []
    for name in entries[0]["bitext"]:
        for entry in entries:
            scores = entry["bitext"][name]
            cells = [str(scores["n"]), *(number(scores[key]) for key in columns if key != "negative_mse")]
            if "negative_mse" in columns:  # x 100 already
                cells.append("-" if scores["negative_mse"] is None else f"{scores['negative_mse']:.2f}")
            rows.append([f"{name} {entry['name']}", *cells])
    return Table(["", "n", *(BITEXT_COLUMNS[key] for key in columns)], rows)


def cuts_table(entry: dict) -> Table:
    """What is left of a model's means where less of its vectors is kept, x 100 and in per cent of the whole ones'."""
    names, rows = [*entry["summary"]], []
    for one in entry["cuts"]:
        cells = [f"{number(one['summary'][name])} ({number(one['kept'][name])}%)" for name in names]
        rows.append([f"{one['dimensions']} in {one['precision']}", str(one["bytes"]), *cells])
    return Table([f"{entry['name']} cut to", "bytes", *names], rows)


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


def detail_table(entry: dict) -> Table:
    """Every STS set of a model: Spearman and Pearson of cosine with 95% intervals."""
    rows = []
    for name, scores in entry["sts"].items():
        kinds = ("spearman_cosine", "pearson_cosine")
        rows.append([name, str(scores["n"]), *(with_interval(scores[kind], scores[f"{kind}_ci"]) for kind in kinds)])
    return Table([entry["name"], "n", "Spearman", "Pearson"], rows)


def markdown(table: Table) -> str:
    """A table as GitHub shows it."""
    align = ("left", *["right"] * (len(table.headers) - 1))
    headers, *rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.headers, *table.rows)]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)


def terminal(table: Table, width: int = WIDTH) -> str:
    """A table of at most `width` columns; one that is wider goes on below, under its first column again."""
    parts, start = [], 1
    while start < len(table.headers):
        for stop in range(len(table.headers), start, -1):
            keep = [0, *range(start, stop)]
            headers, rows = ([[row[i] for i in keep] for row in part] for part in ([table.headers], table.rows))
            align = ("left", *["right"] * (len(keep) - 1))
            text = tabulate(rows, headers[0], disable_numparse=True, colalign=align)
            if max(map(len, text.splitlines())) <= width:
                break
        parts.append(text)
        start = stop
    return "\n\n".join(parts)


# ---------------------------------------------------------------- the terminal and the files


def print_scores(entries: list[dict], sets: list[StsSet], notes: list[str]) -> None:
    """Each model's sets, what the last model gained on the one before, the means, what was gained in them, notes."""
    last = entries[-1]
    tables = [bitext_table(entries)] if last["bitext"] else []
    if sets:
        sizes = sorted({scores["n"] for scores in last["sts"].values()})
        pairs = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        print(f"\nSTS, {pairs} pairs: Spearman x 100 of cosine similarity")
        print("row: language of sentence1, column: language of sentence2")
        differences = difference_tables(last, entries[-2]["name"], sets) if len(entries) > 1 else []
        tables = [*sts_tables(entries, sets), *differences, *tables]
    tables.append(summary_table(entries))
    if len(entries) > 1:
        tables.append(gain_table(last))
    if "cuts" in last:
        tables.append(cuts_table(last))
    print("".join(f"\n{terminal(table)}\n" for table in tables), end="")
    print("\n".join([*LEGEND[: len(entries)], *notes]))


LEGEND = [
    "[ ]: 95% interval by bootstrap over the pairs",
    "p: paired bootstrap test of the difference; *: p < 0.05, each set by itself",
]


def size_notes(bitexts: list[Bitext], alone: list[str]) -> list[str]:
    """What a mean accuracy does not show: languages of one pair, which are left out, and of few beside many."""
    notes, sizes = [], {}
    if alone:
        notes.append(f"left out, since one pair is no retrieval: {', '.join(alone)}")
    for one in bitexts:
        sizes.setdefault(f"{one.name.rpartition('/')[0]} accuracy".strip(), []).append(len(one.sources))
    for mean, counts in sizes.items():
        if 2 * min(counts) < max(counts):
            notes.append(f"{mean}: the mean of sets of {min(counts)} to {max(counts)} pairs, which count the same")
    return notes


def write_report(path: Path, scores: dict, sets: list[StsSet], command: str) -> None:
    """Everything as Markdown."""
    entries = [entry for entry in scores["models"] if "error" not in entry]
    last = entries[-1]
    lines = ["# Scores", "", command, ""]
    for entry in scores["models"]:
        failure = f", not scored: {entry['error']}" if "error" in entry else ""
        lines.append(f"- {entry['name']}: `{entry['path']}`{failure}")
    blocks = ["\n".join(lines), "## Means", markdown(summary_table(entries))]
    if len(entries) > 1:
        blocks += [f"## What {last['name']} gained", markdown(gain_table(last))]
    if "cuts" in last:
        blocks += [f"## What is left of {last['name']}", markdown(cuts_table(last))]
    blocks.append("\n".join(f"    {line}" for line in [*LEGEND, *scores["notes"]]))
    if sets:
        blocks += [
            "## Semantic textual similarity",
            "Spearman x 100 of cosine; row: language of sentence1, column: of sentence2.",
        ]
        blocks += map(markdown, sts_tables(entries, sets))
        for entry in entries[:-1]:
            blocks += map(markdown, difference_tables(last, entry["name"], sets))
        blocks.append("## Every set")
        blocks += map(markdown, map(detail_table, entries))
    if last["bitext"]:
        blocks += ["## Translation accuracy", markdown(bitext_table(entries))]
    versions = ", ".join(f"{name} {version}" for name, version in scores["versions"].items())
    path.write_text("\n\n".join([*blocks, f"Made with {versions}."]) + "\n", encoding="utf-8")


def write_csv(path: Path, entries: list[dict]) -> None:
    """A row for each number: model, task, set, metric, value, its 95% interval, n."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "task", "set", "metric", "value", "ci_low", "ci_high", "n"])
        for entry in entries:
            for task in ("sts", "bitext"):
                for name, scores in entry[task].items():
                    for metric, value in scores.items():
                        if metric != "n" and not metric.endswith("_ci"):
                            low, high = scores.get(f"{metric}_ci") or (None, None)
                            writer.writerow([entry["name"], task, name, metric, value, low, high, scores["n"]])


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
