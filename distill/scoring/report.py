"""Scores for people: tables for the terminal, Markdown and CSV. All values x 100."""

import csv
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from distill.scoring.data import Data
from distill.scoring.sts import StsSet, set_title

WIDTH = 80  # columns of a terminal
BITEXT_COLUMNS = {
    "src2trg_accuracy": "src2trg",
    "trg2src_accuracy": "trg2src",
    "mean_accuracy": "mean",
    "margin_mean_accuracy": "mean, by margin",
    "negative_mse": "negative MSE",
}
SEARCH_COLUMNS = {
    "mixed": {
        "n": "n",
        "sentences": "pool",
        "accuracy@1": "accuracy@1",
        "mrr@10": "MRR@10",
        "ndcg@10": "nDCG@10",
        "language_bias": "language bias",
    },
    "retrieval": {
        "n": "n",
        "documents": "documents",
        "ndcg@10": "nDCG@10",
        "mrr@10": "MRR@10",
        "accuracy@1": "accuracy@1",
        "recall@100": "recall@100",
    },
}


class Table(NamedTuple):
    """Rows of cells under headers; the first column names the row."""

    headers: list[str]
    rows: list[list[str]]


class Grid(NamedTuple):
    """The sets of one name, by the languages of sentence1 and sentence2."""

    title: str
    data: str  # 'stsb-test, n = 1379'
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
        title = pairs.name.rpartition("/")[0]
        data = f"{set_title(pairs.spec)}, n = {len(pairs.scores):,}"
        grid = found.setdefault(title, Grid(title, data, [], {}))
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


def size(mean: dict) -> str:
    """Of how many sets a mean is, and of how much in each: '5 x 1379', '3 x 103-1000'."""
    counts = sorted(set(mean["n"]))
    return f"{len(mean['n'])} x {'-'.join(map(str, counts[:: max(1, len(counts) - 1)]))}"


def sizes(entry: dict) -> list[str]:
    """The first row of a table of means: the size of each."""
    return ["sets x n", *map(size, entry["summary"].values())]


def summary_table(entries: list[dict]) -> Table:
    """A model in one line: its means with 95% intervals."""
    rows = [
        [entry["name"], *(with_interval(mean["value"], mean["ci"]) for mean in entry["summary"].values())]
        for entry in entries
    ]
    return Table(["mean", *entries[0]["summary"]], [sizes(entries[0]), *rows])


def gain_table(entry: dict) -> Table:
    """What a model gained on each other in the means, with 95% intervals and p-values."""
    rows = []
    for other, compared in entry["compared_with"].items():
        for name, test in compared["summary"].items():
            gain = with_interval(test["difference"], test["ci"], "+")
            rows.append([f"{name} on {other}", size(entry["summary"][name]), gain, p_value(test)])
    return Table([f"gain of {entry['name']}", "sets x n", "95% interval", "p"], rows)


def p_value(test: dict) -> str:
    """'0.034'; '< 0.002' where so many resamples cannot show less."""
    if test["difference"] is None:
        return "-"
    if test["p_value"] > test["least_p"]:
        return f"{test['p_value']:.3f}"
    digits = -math.floor(math.log10(test["least_p"]))
    return f"< {math.ceil(test['least_p'] * 10**digits) / 10**digits:.{digits}f}"


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


def search_table(entries: list[dict], task: str) -> Table:
    """Retrieval in one pool of all languages, or from files: x 100, a row for each set and model; n: queries."""
    columns, rows = SEARCH_COLUMNS[task], []
    for name in entries[0][task]:
        for entry in entries:
            values = [entry[task][name][key] for key in columns]
            cells = (str(value) if isinstance(value, int) else number(value) for value in values)
            rows.append([f"{name} {entry['name']}", *cells])
    return Table(["", *columns.values()], rows)


def cuts_table(entry: dict) -> Table:
    """What is left of a model's means where less of its vectors is kept, x 100 and in per cent of the whole ones'."""
    names, rows = [*entry["summary"]], [[sizes(entry)[0], "", *sizes(entry)[1:]]]
    for one in entry["cuts"]:
        cells = [f"{number(one['summary'][name])} ({number(one['kept'][name])}%)" for name in names]
        rows.append([f"{one['dimensions']} in {one['precision']}", str(one["bytes"]), *cells])
    return Table([f"{entry['name']} cut to", "bytes", *names], rows)


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
    tables = [table for _, table in retrieval_tables(entries)]
    if sets:
        counts = sorted({scores["n"] for scores in last["sts"].values()})
        pairs = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
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
    print("\n".join([*LEGEND[: len(entries)], *legend_of(last), *notes]))


def retrieval_tables(entries: list[dict]) -> list[tuple[str, Table]]:
    """Titles and tables of all that is found by a search, as far as there is any."""
    tables = {
        "bitext": ("Translation accuracy", bitext_table),
        "mixed": ("All languages in one pool", partial(search_table, task="mixed")),
        "retrieval": ("Retrieval", partial(search_table, task="retrieval")),
    }
    return [(title, table(entries)) for task, (title, table) in tables.items() if entries[0][task]]


LEGEND = [
    "[ ]: 95% interval by bootstrap over the pairs",
    "p: paired bootstrap test of the difference; *: p < 0.05, each set by itself",
]


def legend_of(entry: dict) -> list[str]:
    """What the names of a model's means say, as far as it has them."""
    names = dict.fromkeys(name.rpartition("/")[2] for name in entry["summary"])
    sources = [name.removesuffix("-xx") for name in names if name.endswith("-xx")]
    meanings = {
        "within": f"within: STS in one language{f', {sources[0]} among them' if sources else ''}; across: in two",
        **{f"{source}-xx": f"{source}-xx: from or to {source}" for source in sources},
        "accuracy": "accuracy: a translation is nearest of all in its language; x 100, as all others",
        "mixed": "mixed: a translation is nearest of all languages",
        "retrieval": "retrieval: nDCG@10",
    }
    bias = "language bias: neighbours in the query's own language, above chance"
    return [meaning for name, meaning in meanings.items() if name in names] + [bias] * ("mixed" in names)


def size_notes(data: Data, alone: list[str]) -> list[str]:
    """What a mean does not show: sets of few beside sets of many, and what is left out."""
    notes, counts = [], {}
    if alone:
        notes.append(f"left out, since one pair is no retrieval: {', '.join(alone)}")
    counted = [("STS", one.name, len(one.scores)) for one in data.sets]
    counted += [("accuracy", one.name, len(one.sources)) for one in data.bitexts]
    for kind, name, pairs in counted:
        counts.setdefault(f"{name.rpartition('/')[0]} {kind}".strip(), []).append(pairs)
    for mean, pairs in counts.items():
        if min(pairs) < max(pairs):
            spread = f"{min(pairs)} to {max(pairs)} pairs"
            notes.append(f"{mean}: the mean of sets of {spread}, which count the same")
    for one in data.retrievals:
        if one.left_out:
            notes.append(f"{one.name}: {one.left_out} queries, to which nothing is relevant, are left out")
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
    blocks.append("\n".join(f"    {line}" for line in [*LEGEND, *legend_of(last), *scores["notes"]]))
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
    for title, table in retrieval_tables(entries):
        blocks += [f"## {title}", markdown(table)]
    versions = ", ".join(f"{name} {version}" for name, version in scores["versions"].items())
    path.write_text("\n\n".join([*blocks, f"Made with {versions}."]) + "\n", encoding="utf-8")


def write_csv(path: Path, entries: list[dict]) -> None:
    """A row for each number: model, task, set, metric, value, its 95% interval, n."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "task", "set", "metric", "value", "ci_low", "ci_high", "n"])
        for entry in entries:
            for task in ("sts", "bitext", "mixed", "retrieval"):
                for name, scores in entry[task].items():
                    for metric, value in scores.items():
                        if metric not in ("n", "documents", "sentences") and not metric.endswith("_ci"):
                            low, high = scores.get(f"{metric}_ci") or (None, None)
                            writer.writerow([entry["name"], task, name, metric, value, low, high, scores["n"]])
