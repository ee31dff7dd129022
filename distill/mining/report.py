"""What mining found: a table of counts, a histogram of margins, pairs that only just count."""

from pathlib import Path

import matplotlib
import numpy as np
from tabulate import tabulate

from distill.mining.text import FAULTS, Text

matplotlib.use("Agg")
from matplotlib import pyplot as plt

EDGES = np.round(np.arange(0.8, 1.501, 0.02), 2)  # of the histogram; what lies beyond is counted in its ends
SHOWN = 3  # pairs nearest to the threshold that are shown


def histogram(margins: np.ndarray) -> dict[str, list]:
    """How many margins (n,) lie between two `edges`."""
    counts, _ = np.histogram(margins.clip(EDGES[0], EDGES[-1]), EDGES)
    return {"edges": EDGES.tolist(), "counts": counts.tolist()}


def draw_margins(path: Path, found: dict[str, dict], source_language: str) -> None:
    """The best margin of every source sentence, a panel for each language, with the lowest that counted."""
    figure, axes = plt.subplots(len(found), 1, figsize=(6, 2.6 * len(found)), squeeze=False, layout="constrained")
    for panel, (language, about) in zip(axes[:, 0], found.items(), strict=True):
        counts, edges = (about["margins"][name] for name in ("counts", "edges"))
        panel.stairs(counts, edges, fill=True, alpha=0.7)
        if about["pairs"]:
            panel.axvline(about["lowest_margin"], color="black", linestyle="--", label="the lowest that counts")
            panel.legend()
        panel.set(title=f"{source_language}-{language}", xlabel="margin", ylabel=f"sentences in {source_language}")
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def counts_table(texts: list[Text]) -> str:
    """What was read of each language, and what was left out."""
    dropped = [name for name in (*FAULTS, "duplicate") if any(text.counts[name] for text in texts)]
    shown = ["lines", *dropped, "sentences"]
    rows = [[text.language, *(f"{text.counts[name]:,}" for name in shown)] for text in texts]
    return tabulate(rows, headers=["text", *shown], disable_numparse=True, colalign=["left", *["right"] * len(shown)])


def pairs_table(found: dict[str, dict], source_language: str) -> str:
    """How many pairs of each language count, and the margins of the last ones."""
    rows = [
        [
            f"{source_language}-{language}",
            f"{about['pairs']:,}",
            f"{about['lowest_margin']:.3f}" if about["pairs"] else "",
        ]
        for language, about in found.items()
    ]
    return tabulate(
        rows, headers=["mined", "pairs", "lowest margin"], disable_numparse=True, colalign=["left", *["right"] * 2]
    )


def last_pairs(found: dict[str, dict]) -> str:
    """The pairs of each language that only just counted, for the eye to judge the threshold by."""
    lines = ["the last pairs that count, by which to judge --min_margin:"]
    for about in found.values():
        for pair in about["last"]:
            lines += [f"{pair['margin']:.3f}  {pair['source']}", f"       {pair['target']}"]
    return "\n".join(lines)
