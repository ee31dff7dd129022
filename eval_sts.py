"""Score sentence-embedding models on semantic textual similarity within and across languages; export the best.

    python eval_sts.py --model_name_or_path before=student/ after=run/student/ --output_dir scores/ \\
        --sts 'stsb-{en,it}-test.csv' --bitext 'tatoeba.ita-eng.{eng,ita}' --export_dir export/

`scores/` gets scores.json and heatmap.png; `export/` the last model as a sentence-transformers folder with its
scores in the model card.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from accelerate import Accelerator
from tabulate import tabulate

from distill_utils import HelpFormatter, UserError, replaced_folder, run, write_json
from encoder import SentenceEncoder, encode_on_all_ranks, set_matmul_precision
from metrics import cosine, read_sts, sts_scores, translation_accuracy
from textfiles import read_aligned_lines

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    # fmt: off
    parser.add_argument("--model_name_or_path", nargs="+", required=True, metavar="[NAME=]M", help="folders or hub ids")
    parser.add_argument("--sts", required=True, metavar="SPEC", help="aligned STS files, 'stsb-{en,it}-test.csv'")
    parser.add_argument("--bitext", nargs="+", default=[], metavar="SPEC", help="line-aligned files, 'tatoeba.{en,it}'")
    parser.add_argument("--sentences", nargs="+", metavar="S", help="print the cosine of the first to the others")
    parser.add_argument("--output_dir", required=True, help="folder for the scores, replaced when whole")
    parser.add_argument("--export_dir", help="folder to export the last model to, replaced when whole")
    # fmt: on
    return parser


def named_models(specs: list[str]) -> dict[str, str]:
    """Name -> folder or hub id; the name is given as NAME=M, or is the last part of the path."""
    models = {}
    for spec in specs:
        given, _, path = spec.rpartition("=")
        name = given or Path(path).name
        if name in models:
            raise UserError(f"two models are called {name}: tell them apart, as in {name}2={path}")
        models[name] = path
    return models


def score_model(name: str, encoder: SentenceEncoder, sts, bitext: dict, accelerator: Accelerator) -> dict:
    """A model's entry in scores.json; every distinct sentence is encoded once."""
    columns = [column for columns in sts[0].values() for column in columns]
    columns += [column for both in bitext.values() for column in both]
    sentences = [sentence for column in columns for sentence in column]
    vector = encode_on_all_ranks(encoder, sentences, accelerator, progress=name)
    entry = {"name": name, "sts": sts_scores(*sts, vector), "bitext": {}}
    for pair, both in bitext.items():
        source, target = (np.stack([vector[sentence] for sentence in column]) for column in both)
        entry["bitext"][pair] = translation_accuracy(source, target) | {"n": len(source)}
    return entry


def matrix(entry: dict, languages: list[str]) -> np.ndarray:
    """Spearman x 100 of an entry: row = language of sentence1, column = language of sentence2."""
    names = [[a if a == b else f"{a}-{b}" for b in languages] for a in languages]
    return np.array([[100 * entry["sts"][name]["spearman_cosine"] for name in row] for row in names])


def summary(entry: dict, languages: list[str]) -> dict[str, float]:
    """A model in one line: mean Spearman within and across languages, mean translation accuracy, each x 100."""
    values, same = matrix(entry, languages), np.eye(len(languages), dtype=bool)
    row = {"within": values[same].mean()}
    if len(languages) > 1:
        row["across"] = values[~same].mean()
    for pair, scores in entry["bitext"].items():
        row[pair] = 100 * scores["mean_accuracy"]
    return row


def print_scores(entries: list[dict], languages: list[str], n: int) -> None:
    """Each model's languages x languages table, what the last model gained on the one before, a summary."""
    tables = {entry["name"]: matrix(entry, languages) for entry in entries}
    if len(entries) > 1:
        before, after = list(tables)[-2:]
        tables[f"{after} minus {before}"] = tables[after] - tables[before]
    print(f"\nSTS, {n} pairs: Spearman x 100 of cosine similarity")
    print("row: language of sentence1, column: language of sentence2")
    for name, values in tables.items():
        form = "+.1f" if " minus " in name else ".1f"
        rows = [[language, *row] for language, row in zip(languages, values, strict=True)]
        print("\n" + tabulate(rows, headers=[name, *languages], floatfmt=form))
    rows = [{"mean": entry["name"]} | summary(entry, languages) for entry in entries]
    print("\n" + tabulate(rows, headers="keys", floatfmt=".1f"))
    if entries[0]["bitext"]:
        print(f"{', '.join(entries[0]['bitext'])}: translation accuracy, mean of both directions")


def print_nearness(models: dict[str, list[float]], sentences: list[str]) -> None:
    """How near the first sentence is to each of the others, by model."""
    rows = [[other, *values] for other, *values in zip(sentences[1:], *models.values(), strict=True)]
    print("\n" + tabulate(rows, headers=[f'cosine to "{sentences[0]}"', *models], floatfmt=".2f"))


def draw_heatmaps(entries: list[dict], languages: list[str], path: Path) -> None:
    """One languages x languages panel per model, on one colour scale."""
    size = 1.6 + 0.45 * len(languages)
    figure, panels = plt.subplots(
        1, len(entries), figsize=(size * len(entries) + 0.8, size), squeeze=False, layout="constrained"
    )
    for axes, entry in zip(panels[0], entries, strict=True):
        values = matrix(entry, languages)
        image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis")
        ticks = range(len(languages))
        axes.set_xticks(ticks, languages)
        axes.set_yticks(ticks, languages)
        axes.set(title=entry["name"], xlabel="sentence2", ylabel="sentence1")
        for i in ticks:
            for j in ticks:
                color = "black" if values[i, j] > 60 else "white"
                axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=panels, label="Spearman x 100")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def model_card(entry: dict, languages: list[str], sts: str, source: str) -> str:
    """README.md of an export: metadata that the hub reads, use, scores."""
    tags = "\n".join(f"- {language}" for language in languages)
    rows = [[language, *row] for language, row in zip(languages, matrix(entry, languages), strict=True)]
    table = tabulate(rows, headers=["", *languages], floatfmt=".1f", tablefmt="github")
    card = f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
language:
{tags}
tags:
- sentence-transformers
- sentence-similarity
- feature-extraction
---

# {entry["name"]}

A sentence-embedding model taught by multilingual knowledge distillation (Reimers & Gurevych 2020, arXiv 2004.09813);
exported from `{source}`.

    from sentence_transformers import SentenceTransformer
    vectors = SentenceTransformer("path/to/this/folder").encode(["I love plants", "amo le piante"])

## Scores

Semantic textual similarity, Spearman x 100 of cosine, `{Path(sts).name}`; row: language of sentence1, column: of
sentence2.

{table}
"""
    if entry["bitext"]:
        rows = [
            [pair, *(100 * scores[f"{way}_accuracy"] for way in ("src2trg", "trg2src", "mean"))]
            for pair, scores in entry["bitext"].items()
        ]
        table = tabulate(rows, headers=["", "src2trg", "trg2src", "mean"], floatfmt=".1f", tablefmt="github")
        card += f"\nTranslation accuracy, per cent:\n\n{table}\n"
    return card


def main(args: argparse.Namespace) -> None:
    accelerator = Accelerator()
    set_matmul_precision(accelerator.device)
    models = named_models(args.model_name_or_path)
    sts = read_sts(args.sts)
    languages = list(sts[0])
    bitext = {"-".join(lines): tuple(lines.values()) for lines in map(read_aligned_lines, args.bitext)}

    entries, nearness = [], {}
    for name, path in models.items():
        encoder = SentenceEncoder.from_pretrained(path).to(accelerator.device)
        entries.append(score_model(name, encoder, sts, bitext, accelerator))
        if args.sentences:
            nearness[name] = cosine(*np.split(encoder.encode(args.sentences), [1])).tolist()
    if not accelerator.is_main_process:
        return

    packages = ("torch", "transformers", "accelerate", "evaluate")
    scores = {
        "models": entries,
        "settings": vars(args),
        "versions": {package: version(package) for package in packages},
    }
    with replaced_folder(args.output_dir, args) as folder:
        write_json(folder / "scores.json", scores)
        draw_heatmaps(entries, languages, folder / "heatmap.png")
    if args.export_dir:
        with replaced_folder(args.export_dir, args) as folder:
            encoder.save(folder)
            write_json(folder / "scores.json", scores | {"models": entries[-1:]})
            card = model_card(entries[-1], languages, args.sts, path)
            (folder / "README.md").write_text(card, encoding="utf-8")

    print_scores(entries, languages, len(sts[1]))
    if args.sentences:
        print_nearness(nearness, args.sentences)
    print(f"\nscores: {args.output_dir}/scores.json\nheatmap: {args.output_dir}/heatmap.png")
    if args.export_dir:
        print(f"export: {args.export_dir}")


if __name__ == "__main__":
    run(main, build_parser().parse_args())
