"""Score sentence-embedding models within and across languages, with error bars; export the last of them.

    python eval_sts.py --model_name_or_path before=student/ after=run/student/ --output_dir scores/ \\
        --sts 'stsb-{en,it}-test.csv' --bitext 'tatoeba.ita-eng.{eng,ita}' --export_dir export/
    python eval_sts.py --model_name_or_path run/student --output_dir scores/ --bitext pairs/ --margin \\
        --sts 'PhilipMay/stsb_multi_mt:{en,it,de}:test' sts17='mteb/sts17-crosslingual-sts:{en-de,es-en}:test'

`scores/` gets scores.json, scores.csv, report.md and heatmaps. `accelerate launch --mixed_precision bf16` in place of
`python` shares the sentences between processes and sets the precision.
"""

import argparse
import os
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id

from distill.command import Parser, UserError, at_least, between, run, wrapped
from distill.encoder.model_folder import behind, find_folder
from distill.encoder.sentence_encoder import SentenceEncoder, encode_on_all_ranks, set_matmul_precision
from distill.folders import check_output, inputs_of, overlap, replaced_folder, write_json, writing
from distill.ranks import launched
from distill.scoring.bootstrap import Scores, compare
from distill.scoring.cutting import BITS, cuts_of
from distill.scoring.data import Data, named, read_all, read_data
from distill.scoring.export import (
    export_model,
    fp16_loss,
    model_card,
    public,
    public_settings,
    push,
    training_notes,
    training_of,
)
from distill.scoring.metrics import cosine, defined, unit
from distill.scoring.mteb_results import sets_of_tasks, write_mteb_results
from distill.scoring.onnx_graphs import FILES, OnnxEncoder, check_onnx, write_graphs
from distill.scoring.pictures import draw_map, draw_scores
from distill.scoring.report import Table, print_scores, size_notes, terminal, write_csv, write_report
from distill.scoring.retrieval import pools_of, sample_of
from distill.scoring.scores import Vectors, score, score_cuts
from distill.scoring.sts import StsSet, read_sts
from distill.vectors import VectorTable, is_vector_table

PACKAGES = ("torch", "transformers", "accelerate", "evaluate", "scipy")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
ON_MAP = 40  # sentences with their translations
grade = between(-1e6, 1e6)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__, script=__file__)
    # fmt: off
    what = parser.add_argument_group("models and data")
    what.add_argument("--model_name_or_path", nargs="+", required=True, metavar="[NAME=]M", help="folders, ids, tables")
    what.add_argument("--sts", nargs="+", default=[], metavar="[NAME=]SPEC", help="STS tables: 'stsb-{en,it}-test.csv'")
    what.add_argument("--score_range", nargs=2, type=grade, metavar=("LOW", "HIGH"), help="if not given: 0 to 1, or 5")
    what.add_argument("--bitext", nargs="+", default=[], metavar="[NAME=]SPEC", help="'tatoeba.{en,it}', pairs folders")
    what.add_argument("--retrieval", nargs="+", default=[], metavar="[NAME=]SPEC", help="folders in BEIR's layout")
    what.add_argument("--margin", action="store_true", help="translation accuracy by the ratio margin too (k = 4)")
    what.add_argument("--teacher_model_name_or_path", help="whose vectors the negative MSE of bitext is about")
    what.add_argument("--prompt", nargs="+", type=str, default=[], metavar="[NAME=]TEXT", help="before each sentence")
    what.add_argument("--prompt_name", nargs="+", default=[], metavar="[NAME=]PROMPT", help="one of the folder's")
    what.add_argument("--document_prompt", nargs="+", type=str, default=[], metavar="[NAME=]T", help="before documents")
    what.add_argument("--truncate_dim", nargs="+", type=at_least(1), default=[], metavar="N", help="keep the first")
    what.add_argument("--precision", nargs="+", choices=[*BITS][1:], default=[], help="fewer bits")
    what.add_argument("--sentences", nargs="+", metavar="S", help="print the cosine of the first to the others")
    what.add_argument("--bootstrap_samples", type=at_least(1, 100_000), default=1000, help="for intervals and tests")
    what.add_argument("--seed", type=at_least(0), default=42, help="of the resamples")
    what.add_argument("--max_tokens_per_batch", type=at_least(1), help="tokens of a forward (CPU 4096, GPU 16384)")
    out = parser.add_argument_group("output")
    out.add_argument("--output_dir", required=True, help="folder for the scores, replaced when whole")
    out.add_argument("--export_dir", help="folder to export the last model to, replaced when whole")
    out.add_argument("--export_dtype", choices=DTYPES, default="fp32", help="of its weights; fp16 is scored again")
    out.add_argument("--mteb_results", metavar="DIR", help="write what MTEB has too, of the last model, as it does")
    out.add_argument("--export_onnx", nargs="+", choices=FILES, default=[], help="as graphs too, in onnx/ of it")
    out.add_argument("--push_to_hub", metavar="ID", help="upload the export to this repository")
    # fmt: on
    return parser


# ---------------------------------------------------------------- the call


def named_models(specs: list[str]) -> dict[str, str]:
    """Name -> folder, hub id or table of vectors; without NAME= the last part of the path."""
    models = {}
    for spec in specs:
        name, path = named(spec)
        if not path:
            raise UserError(f"--model_name_or_path {spec!r} names no model: give a folder or a hub id")
        name = name or Path(os.path.abspath(path)).name  # of '.', that of the folder
        if name in models:
            raise UserError(f"two models are called {name}: tell them apart, as in {name}2={path}")
        models[name] = path
    return models


def prompts_of(models: dict[str, str], **options: list[str]) -> dict[str, dict[str, str]]:
    """Each model's prompt by the option that gives it, from the specs of these options.

    One without NAME= is for every model that has none of its own. `models`: name -> folder, hub id or table.
    """
    given = {}
    for option, specs in options.items():
        for spec in specs:
            name, text = named(spec)
            if name not in ("", *models):
                others = f"only {', '.join(models)}: give each its own, as in {next(iter(models))}={spec}"
                raise UserError(f"--{option} {spec!r}: no model is called {name}, {others}")
            if name in given:
                raise UserError(f"--{option} {spec!r} is a second prompt for {name or 'all models'}: give one")
            if is_vector_table(models.get(name, "")) or all(map(is_vector_table, models.values())):
                raise UserError(f"--{option} {spec!r} is for a model, a table's vectors are as they are: leave it out")
            given[name] = {option: text}
    return {n: {} if is_vector_table(path) else given.get(n, given.get("", {})) for n, path in models.items()}


def check(args: argparse.Namespace, models: dict[str, str]) -> None:
    """UserError for options that do not go together, or are out of range, and outputs that cannot be written."""
    if not (args.sts or args.bitext or args.retrieval):
        raise UserError("nothing to score on: give --sts, --bitext or --retrieval, or several")
    low, high = args.score_range or (0, 1)
    if not low < high:
        raise UserError("--score_range takes the lowest score, then the highest, as in --score_range 0 5")
    for given, option, about, needed in (
        (args.score_range, "--score_range", args.sts, "--sts"),
        (args.margin, "--margin", args.bitext, "--bitext"),
        (args.document_prompt, "--document_prompt", args.retrieval, "--retrieval"),
        (args.teacher_model_name_or_path, "--teacher_model_name_or_path", args.bitext, "--bitext"),
        (args.export_dtype != "fp32", "--export_dtype", args.export_dir, "--export_dir"),
        (args.export_onnx, "--export_onnx", args.export_dir, "--export_dir"),
        (args.push_to_hub, "--push_to_hub", args.export_dir, "--export_dir"),
    ):
        if given and not about:
            raise UserError(f"{option} does nothing without {needed}: give both, or leave it out")
    if args.teacher_model_name_or_path and models.get("teacher", "") not in ("", args.teacher_model_name_or_path):
        raise UserError(f"{models['teacher']} is called teacher, as the teacher is: name it otherwise")
    if args.sentences and len(args.sentences) < 2:
        raise UserError("--sentences compares the first with the others: give two or more")
    if args.push_to_hub:
        try:
            validate_repo_id(args.push_to_hub)
        except HFValidationError as error:
            raise UserError(f"--push_to_hub {args.push_to_hub} is no repository id: {error}") from None
    if args.export_onnx:
        check_onnx()
    check_output(args.output_dir, args, "scores")
    last = [*models.values()][-1]
    for given, option in ((args.export_dir, "--export_dir"), (args.mteb_results, "--mteb_results")):
        if given and is_vector_table(last):
            raise UserError(f"{last} is a table of vectors, not a model: leave {option} out, or name a model last")
    if args.export_dir:
        check_output(args.export_dir, args, "an export")
        find_folder(last)  # before hours of scoring the others
    if args.mteb_results:
        results = Path(args.mteb_results).resolve()
        if results.is_file() or any(overlap(results, given) for given in inputs_of(args)):
            raise UserError(f"--mteb_results {args.mteb_results} is a file, or lies with an input: name another folder")
    outputs = [Path(path).resolve() for path in (args.output_dir, args.export_dir, args.mteb_results) if path]
    for one, other in combinations(outputs, 2):
        if overlap(one, other):
            raise UserError(f"{one} and {other} lie in one another: name two folders")


# ---------------------------------------------------------------- vectors


def embed(
    encoder: SentenceEncoder | VectorTable, name: str, sentences: list[str], accelerator, max_tokens: int | None
) -> dict[str, np.ndarray]:
    """The vector of every distinct sentence; UserError where some are not finite, or are missing from a table."""
    max_tokens = max_tokens or (4096 if accelerator.device.type == "cpu" else 16384)
    if isinstance(encoder, VectorTable):
        vector = encoder.vectors_of(sentences)
    else:
        with accelerator.autocast():
            vector = encode_on_all_ranks(encoder, sentences, accelerator, name, max_tokens)
    with np.errstate(over="ignore"):
        finite = all(np.isfinite(one @ one) for one in vector.values())
    if not finite:
        raise UserError(f"{name} gives vectors that are not finite: its weights, or this precision, are at fault")
    return vector


def scored_by(graph: OnnxEncoder, data: Data, device, args: argparse.Namespace) -> Scores:
    """What an export's graph scores on STS and bitexts."""
    near = data._replace(retrievals=[])
    distinct = list(dict.fromkeys(near.sentences))
    vector = dict(zip(distinct, graph.encode(distinct), strict=True))
    return score(vector, {}, None, near, device, args.bootstrap_samples, args.seed)[1]


# ---------------------------------------------------------------- output


def print_nearness(sentences: list[str], vectors: dict[str, dict[str, np.ndarray]]) -> None:
    """How near the first sentence is to each of the others, by model."""
    first, *others = sentences
    near = [[cosine(vector[first][None], vector[other][None])[0] for vector in vectors.values()] for other in others]
    rows = [[other, *(f"{value:.2f}" for value in values)] for other, values in zip(others, near, strict=True)]
    print("\n" + terminal(Table([f'cosine to "{first}"', *vectors], rows)))


def write_scores(folder: Path, scores: dict, sets: list[StsSet], args: argparse.Namespace) -> None:
    """scores.json, scores.csv, report.md and the heatmaps."""
    entries = [entry for entry in scores["models"] if "error" not in entry]
    write_json(folder / "scores.json", scores)
    write_csv(folder / "scores.csv", entries)
    write_report(folder / "report.md", scores, sets, wrapped(args.command_line))
    draw_scores(folder, entries, sets)


def write_export(
    encoder: SentenceEncoder,
    entry: dict,
    scored: Scores,
    about: dict,
    data: Data,
    sample: list[str],
    device,
    args: argparse.Namespace,
) -> None:
    """Write a model, its graphs, its scores and its card to --export_dir, and upload it where that is asked for.

    entry and `about` are the model's and the call's as scores.json has them; `sample`: sentences whose vectors are
    compared when the folder is opened again.
    """
    path, marker = entry["path"], argparse.Namespace(**public_settings(vars(args)))
    with writing(args.export_dir), replaced_folder(args.export_dir, marker, "an export") as folder:
        export_model(folder, encoder, DTYPES[args.export_dtype], sample)
        if args.export_onnx:
            entry["onnx"], graphs = write_graphs(folder, args.export_onnx, sample)
        if "int8" in args.export_onnx:
            by_int8 = scored_by(graphs["int8"], data, device, args)
            entry["onnx"]["int8"]["compared_with"] = {"fp32": compare(by_int8, scored)}
        entry = defined(entry) | {"path": public(path)}
        write_json(folder / "scores.json", {"models": [entry]} | about)
        card = model_card(entry, data, encoder, training_of(path), about["notes"])
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"export: {args.export_dir}{fp16_loss(entry)}")
    if args.push_to_hub:
        push(args.export_dir, args.push_to_hub)
        print(f"pushed: {args.push_to_hub}")


def main(args: argparse.Namespace) -> None:
    accelerator = launched()
    set_matmul_precision(accelerator.device)
    models = named_models(args.model_name_or_path)
    check(args, models)
    teacher_path = args.teacher_model_name_or_path
    prompted = models | ({"teacher": teacher_path} if teacher_path else {})
    prompts = prompts_of(prompted, prompt=args.prompt, prompt_name=args.prompt_name)
    of_documents = prompts_of(models, document_prompt=args.document_prompt)
    of_documents = {name: text for name, given in of_documents.items() for text in given.values()}
    of_teacher = [n for n, path in models.items() if path == teacher_path and prompts[n] == prompts["teacher"]]
    sets = read_all(args.sts, lambda spec, name: read_sts(spec, args.score_range, name))
    data, alone = read_data(sets, args.bitext, args.retrieval)
    data = data._replace(pools=pools_of(data.bitexts), margin=args.margin)
    bitexts = data.bitexts
    of_mteb = sets_of_tasks(data) if args.mteb_results else []  # which names a mistake before hours of scoring
    notes = {name: training_notes(name, path, data) for name, path in models.items()}
    notes = {name: [*size_notes(data, alone), *known] for name, known in notes.items()}
    sources = [sentence for bitext in bitexts for sentence in bitext.sources]
    sentences = [
        *(args.sentences or []),
        *data.sentences,
        *([] if len(of_documents) == len(models) else data.documents),
    ]

    device = accelerator.device

    def load(path: str, name: str) -> SentenceEncoder | VectorTable:
        if is_vector_table(path):
            return VectorTable(path)
        return SentenceEncoder.from_pretrained(path, **prompts[name]).on(device)

    def vectors(encoder: SentenceEncoder | VectorTable, name: str, sentences: list[str]) -> Vectors:
        return embed(encoder, name, sentences, accelerator, args.max_tokens_per_batch)

    def documents_of(encoder: SentenceEncoder | VectorTable, name: str, vector: Vectors) -> Vectors:
        if name not in of_documents:
            return {document: vector[document] for document in data.documents}
        with encoder.reading(of_documents[name]):
            return vectors(encoder, f"{name}, documents", data.documents)

    def read_by(name: str) -> tuple[SentenceEncoder | VectorTable, Vectors, Vectors]:
        encoder = teacher if name in of_teacher else load(models[name], name)
        vector = labels[encoder.normalize] if name in of_teacher else vectors(encoder, name, sentences)
        return encoder, vector, documents_of(encoder, name, vector)

    def scored_on_all(name: str, vector: Vectors, documents: Vectors, encoder) -> tuple[dict, Scores]:
        of_teacher = labels.get(encoder.normalize)
        entry, found = score(vector, documents, of_teacher, data, device, args.bootstrap_samples, args.seed)
        about = {"name": name, "path": models[name], "prompt": encoder.prompt}
        about |= {"document_prompt": of_documents[name]} if name in of_documents else {}
        return about | entry, found

    # The teacher's vectors; where only the teacher ends in Normalize, those before it, as train_distill.py's labels
    labels = {}
    if teacher_path:
        teacher = load(teacher_path, "teacher")
        normalize, teacher.normalize = teacher.normalize, False
        raw = vectors(teacher, "teacher", sentences if of_teacher else sources)
        teacher.normalize = normalize
        labels = {False: raw, True: raw}
        if normalize:
            labels[True] = dict(zip(raw, unit(np.stack([*raw.values()])), strict=True))

    # Each model in turn; one that cannot be loaded is told of at the end
    entries, compared, nearness, placed = [], {}, {}, {}
    pool = sample_of(data.pools[0], ON_MAP) if bitexts else None
    reads = [f"teacher reads {teacher.reads}"] if teacher_path and teacher.prompt else []
    for name, path in models.items():
        try:
            encoder, vector, documents = read_by(name)
        except UserError as error:
            entries.append({"name": name, "path": path, "error": str(error), "sts": {}, "bitext": {}})
            continue
        entry, compared[name] = scored_on_all(name, vector, documents, encoder)
        entries.append(entry)
        reads += [f"{name} reads {encoder.reads}"] if encoder.prompt else []
        reads += [f"{name} reads {behind(of_documents[name])} of documents"] if name in of_documents else []
        if isinstance(encoder, VectorTable) and encoder.differing:
            reads.append(f"{name}: {encoder.differing:,} vectors differ from the first of their sentence, which counts")
        nearness[name] = {sentence: vector[sentence] for sentence in args.sentences or []}
        placed |= {name: np.stack([vector[sentence] for sentence in pool.sentences])} if pool else {}
    failed = [entry["error"] for entry in entries if "error" in entry]
    if not compared:
        raise UserError("; ".join(failed))
    *others, last = compared
    entry["compared_with"] = {other: compare(compared[last], compared[other]) for other in others}
    if args.truncate_dim or args.precision:
        try:
            cuts = cuts_of(vector, args.truncate_dim, args.precision)
            entry["cuts"] = score_cuts(vector, documents, compared[last], data, cuts, device, args.seed)
        except UserError as error:  # its width is known now
            failed.append(str(error))

    # Scores
    settings = vars(args) | {"device": device.type, "mixed_precision": accelerator.mixed_precision}
    about = {"settings": settings, "versions": {package: version(package) for package in PACKAGES}}
    about["notes"] = list(dict.fromkeys([*reads, *(note for name in compared for note in notes[name])]))
    scores = {"models": [defined(entry) for entry in entries]} | about
    if accelerator.is_main_process:
        with writing(args.output_dir), replaced_folder(args.output_dir, args, "scores") as folder:
            write_scores(folder, scores, sets, args)
            if pool:
                draw_map(folder / "map.png", pool, placed)
        print_scores([entry for entry in scores["models"] if "error" not in entry], sets, about["notes"])
        if args.sentences:
            print_nearness(args.sentences, nearness)
        if args.mteb_results and "error" not in entries[-1]:
            model = args.push_to_hub or f"local/{last}"
            with writing(args.mteb_results):
                tasks = write_mteb_results(args.mteb_results, model, entry, of_mteb, encoder)
            print(f"\nMTEB's results: {args.mteb_results} ({', '.join(tasks)})")
        print(f"\nscores: {args.output_dir} (report.md, scores.json, scores.csv, pictures)")

    # Export
    if "error" in entries[-1]:
        failed += [f"{path} was not written" for path in (args.export_dir, args.mteb_results) if path]
    elif args.export_dir:
        exported, scored = {key: value for key, value in entry.items() if key != "compared_with"}, compared[last]
        if args.export_dtype == "fp16":
            rounded = {name: w.half() if w.is_floating_point() else w for name, w in encoder.state_dict().items()}
            encoder.load_state_dict(rounded)
            vector = vectors(encoder, f"{last} in fp16", sentences)
            documents = documents_of(encoder, last, vector)
            exported, scored = scored_on_all(last, vector, documents, encoder)
            exported["compared_with"] = {"fp32": compare(scored, compared[last])}
            if "cuts" in entry:
                exported["cuts"] = score_cuts(vector, documents, scored, data, cuts, device, args.seed)
        if accelerator.is_main_process:
            about |= {"settings": public_settings(settings), "notes": notes[last]}
            sample = sentences[:: max(1, len(sentences) // 64)]
            write_export(encoder, exported, scored, about, data, sample, device, args)
    accelerator.end_training()
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    run(main, build_parser().parse_args())
