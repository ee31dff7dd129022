"""A model to hand to others: a sentence-transformers folder with its scores, verified, and its model card."""

import itertools
import re
import shlex
from pathlib import Path

import httpx
import numpy as np
import torch
from huggingface_hub import EvalResult, HfApi, ModelCardData

from distill.command import UserError, wrapped
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.folders import TRAINED, read_json
from distill.scoring.data import Data, named
from distill.scoring.report import (
    Table,
    cuts_table,
    legend_of,
    markdown,
    number,
    retrieval_tables,
    sts_tables,
    summary_table,
)
from distill.scoring.sts import set_title
from distill.text_files import expand_languages

USE = """\
    from sentence_transformers import SentenceTransformer
    vectors = SentenceTransformer("path/to/this/folder").encode(["I love plants", "amo le piante"])"""
ONNX_USE = """\
    SentenceTransformer("path/to/this/folder", backend="onnx", model_kwargs={{"file_name": "{file}"}})"""
SPLITS = ("test", "dev")  # which a folder is read for where its spec names none
TOLERANCE = 1e-5  # between the vectors of a model and those of its folder, opened again


def export_model(folder: Path, encoder: SentenceEncoder, dtype: torch.dtype, sample: list[str]) -> None:
    """Fill an empty folder with the model; open it again and compare vectors.

    RuntimeError where the vectors of the sample sentences differ by more than TOLERANCE: then the folder is no good.
    """
    encoder.save(folder, dtype)
    again = SentenceEncoder.from_pretrained(str(folder)).to(next(encoder.parameters()).device)
    difference = np.abs(again.encode(sample) - encoder.encode(sample)).max()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the exported model's vectors differ from its own by {difference:.1e}: it is not written")


def push(folder: str, repo_id: str) -> None:
    """Upload an export to the hub, but for args.json, which marks it as ours. UserError where that fails."""
    try:
        HfApi().create_repo(repo_id, exist_ok=True)
        HfApi().upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=["args.json"])
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"{folder} is whole but could not be pushed to {repo_id} ({reason}): push it again") from error


# ---------------------------------------------------------------- what others may see of this machine


def hub_id(name: str) -> str | None:
    """`name` if it can be an id on the hub and is no path here."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def hub_ids(corpora: list[str]) -> list[str] | None:
    """The data sets on the hub among corpora, each once; None if there is none."""
    known = (hub_id(re.split("[:@]", re.sub(r"^[^/=]+=", "", corpus))[0]) for corpus in corpora)
    return [*dict.fromkeys(filter(None, known))] or None


def public(spec: str) -> str:
    """A spec without this machine's folders: hub ids as they are, of a path the last part, with the NAME= before it."""
    name = re.match(r"([^/={]+=)?", spec)[0]
    path = re.sub(r"/+(?=:|$)", "", spec.removeprefix(name))
    return spec if hub_id(re.split("[:@]", path)[0]) else name + path.rpartition("/")[2]


def public_settings(settings: dict) -> dict:
    """The settings of an evaluation, but for those that are about this machine alone, and prompts, said elsewhere."""
    private = ["output_dir", "export_dir", "mteb_results", "command_line", "called_from", "sentences"]
    private += ["prompt", "prompt_name", "document_prompt"]
    kept = {name: value for name, value in settings.items() if name not in private}
    for name, value in kept.items():
        if isinstance(value, str):
            kept[name] = public(value)
        elif isinstance(value, list):
            kept[name] = [public(one) if isinstance(one, str) else one for one in value]
    return kept


# ---------------------------------------------------------------- the model card


def training_args(path: str) -> dict | None:
    """What a trainer was given for the student that lies at `path`; None for any other model."""
    given = read_json(Path(path) / "args.json", {})
    return given if given.get("kind") == TRAINED else None


def training_notes(name: str, path: str, data: Data) -> list[str]:
    """What a student is scored on although it was trained or chosen on it, or that nothing tells whether it is."""
    given, found, lost = training_args(path), {}, []
    if given is None:
        return []
    chooser = given.get("metric_for_best_model") or ("spearman_cosine" if given.get("sts_dev") else "mean_accuracy")
    chose, scored = {
        "spearman_cosine": ([given["sts_dev"]], data.sets),
        "mean_accuracy": ([], []),
        "bitext_accuracy": ([named(spec)[1] for spec in given.get("eval_bitext", [])], data.bitexts),
        "ndcg_at_10": ([named(spec)[1] for spec in given.get("eval_retrieval", [])], data.retrievals),
    }[chooser]
    for chosen_on in chose:
        dev = files_of(chosen_on, given.get("called_from", "."))
        same = {one.spec: "chosen" for one in scored if not dev.isdisjoint(files_of(one.spec))}
        at_hand = same or not scored or any(isinstance(file, Path) for file in dev)
        if not at_hand and not hub_id(re.split("[:@]", chosen_on)[0]):
            lost.append(chosen_on)
        found |= same
    uses = {"train": "trained"} | ({"dev": "chosen"} if chooser == "mean_accuracy" else {})
    for one in data.bitexts:
        folder, _, split = one.spec.rpartition(":")
        if split in uses and Path(folder).resolve() == pairs_dir_of(given):
            found[one.spec] = uses[split]
    folders = [one for one in data.bitexts if Path(one.spec.partition(":")[0]).is_dir()]
    lost += [given["pairs_dir"]] if folders and not pairs_dir_of(given).is_dir() else []
    notes = [f"{name} was {how} on {public(spec)}: other text may score lower" for spec, how in found.items()]
    return notes + [f"{name} was made with {public(spec)}, not found: it may be among what is scored" for spec in lost]


def files_of(spec: str, folder: str = ".") -> set[Path | str]:
    """The files of a brace path that begins in a folder, however it is written; of others, as a hub id's, the text.

    Of 'FOLDER:SPLIT' a path for the split; where none is named, of each that may be meant.
    """
    if "{" not in spec:
        path, _, split = spec.partition(":")
        found = Path(folder, path).resolve()
        return {found / name if found.is_dir() else f"{path}:{name}" for name in ([split] if split else SPLITS)}
    paths = {path: Path(folder, path).resolve() for path in expand_languages(spec).values()}
    return {file if file.exists() else path for path, file in paths.items()}


def pairs_dir_of(given: dict) -> Path:
    """The pairs that a trainer was given, wherever it was called."""
    return Path(given.get("called_from", "."), given["pairs_dir"]).resolve()


def training_of(path: str) -> dict | None:
    """How a student of a trainer was made, by its args.json; None for any other model. It may have had no teacher."""
    given = training_args(path)
    if given is None:
        return None
    pairs, teachers = given["trained_on"]["pairs"], given.get("teacher_model_name_or_path", [])
    words = ["", *shlex.split(given["command_line"])]
    shown = [word if before.endswith("_prompt") else public(word) for before, word in itertools.pairwise(words)]
    return {
        "teachers": [*map(public, itertools.chain(teachers, *given.get("teacher_vectors", [])))],
        "student": public(given["student_model_name_or_path"]),
        "corpora": [*map(public, given["trained_on"]["corpora"])],
        "pairs": pairs,
        "untranslated": given["trained_on"]["untranslated"],
        "languages": [given["trained_on"]["source_language"], *pairs],
        "command": wrapped(shlex.join(shown)),
    }


def evaluation_results(entry: dict, data: Data) -> list[EvalResult]:
    """The scores as the hub's `model-index`, tasks and metrics named as sentence-transformers does."""
    tasks = [("semantic-similarity", "Semantic Similarity", "sts", data.sets, ["spearman_cosine", "pearson_cosine"])]
    tasks.append(("translation", "Translation", "bitext", data.bitexts, ["mean_accuracy"]))
    tasks.append(("information-retrieval", "Information Retrieval", "retrieval", data.retrievals, ["ndcg@10"]))
    results = []
    for task, task_name, kind, scored, metrics in tasks:
        for one, metric in itertools.product(scored, metrics):
            result = EvalResult(
                task_type=task,
                task_name=task_name,
                dataset_type=hub_id(re.split("[:@]", one.spec)[0]) or "unknown",
                dataset_name=f"{set_title(one.spec)} {one.name}",
                dataset_config=one.name,
                metric_type=metric,
                metric_name=metric.replace("_", " ").capitalize(),
                metric_value=entry[kind][one.name][metric],
            )
            if result.metric_value is not None:
                results.append(result)
    return results


def against_fp32(entry: dict) -> str:
    """By how much the means of something in fewer bits differ from those in fp32; nothing for what is in fp32."""
    lost = entry.get("compared_with", {}).get("fp32", {}).get("summary", {})
    return ", ".join(f"{name} {number(test['difference'], '+', digits=2)}" for name, test in lost.items())


def fp16_loss(entry: dict) -> str:
    """What fp16 weights cost, in words; nothing for a model in fp32."""
    return f"; weights in fp16, against those in fp32: {lost}" if (lost := against_fp32(entry)) else ""


def onnx_notes(entry: dict, encoder: SentenceEncoder) -> list[str]:
    """What a card says of the graphs of an export."""
    rows = [
        [
            f"`{one['file']}`",
            f"{one['bytes'] / 1e6:.1f}",
            f"{one['sentences_per_cpu_second']:.0f}",
            against_fp32(one) or "-",
        ]
        for one in entry["onnx"].values()
    ]
    prompt = f"; a graph knows no prompt, so put {encoder.prompt!r} before each" if encoder.prompt else ""
    return [
        "## ONNX",
        "From `input_ids` and `attention_mask`, as `tokenizer.json` has them of sentences cut at "
        f"{encoder.max_seq_length} tokens{prompt}, a graph computes `sentence_embedding`, the vectors above, and "
        "`last_hidden_state`, which sentence-transformers reads:",
        ONNX_USE.format(file=Path(next(iter(entry["onnx"].values()))["file"]).name),
        markdown(Table(["graph", "MB", "sentences per CPU-second", "means against fp32"], rows)),
        "Speed on one thread of the CPU that it was made on.",
    ]


def trained_on(training: dict) -> str:
    """How many pairs of which languages a student has seen, in a sentence."""
    counts = ", ".join(f"{language} {count:,}" for language, count in training["pairs"].items())
    said = [f"Sentence pairs by language: {counts}"] if counts else []
    if training["untranslated"]:
        said.append(f"{'s' if said else 'S'}entences without translations: {training['untranslated']:,}")
    return f"{'; '.join(said)}; from {', '.join(training['corpora'])}."


def model_card(entry: dict, data: Data, encoder: SentenceEncoder, training: dict | None, notes: list[str]) -> str:
    """README.md of an export: metadata that the hub reads, use, scores, how it was trained."""
    spoken = [language for one in (*data.sets, *data.bitexts) for language in one.languages]
    languages = list(dict.fromkeys([*(training["languages"] if training else []), *spoken]))
    metadata = ModelCardData(
        language=list(dict.fromkeys(language.split("-")[0] for language in languages)) or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction"],
        base_model=hub_id(training["student"]) if training else None,
        datasets=hub_ids(training["corpora"]) if training else None,
        model_name=entry["name"],
        eval_results=evaluation_results(entry, data),
    )
    known = f" for {', '.join(languages)}" if languages else ""
    made = f"exported from `{entry['path']}`"
    if training:
        taught = "taught by multilingual knowledge distillation ([Reimers & Gurevych 2020]({}2004.09813))"
        ranked = "trained to find translations ([Chidambaram et al. 2019]({}1810.12836))"
        made = (taught if training["teachers"] else ranked).format("https://arxiv.org/abs/")
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {entry['name']}",
        f"A sentence-embedding model{known}, {made}. A vector has {encoder.dimension} dimensions.",
        USE,
    ]
    if encoder.prompt:
        parts.append(f"Every sentence is encoded with the prompt {encoder.prompt!r} before it, by default.")
    if "document_prompt" in entry:
        parts.append(f"Documents that are searched were encoded with the prompt {entry['document_prompt']!r} for it.")
    parts.append("## Scores")
    parts.append(markdown(summary_table([entry])))
    parts.append(f"Means x 100 with 95% bootstrap intervals{fp16_loss(entry)}.")
    parts.append("\n".join(f"- {line}" for line in legend_of(entry)))
    parts += ["Where less of a vector is kept:", markdown(cuts_table(entry))] if "cuts" in entry else []
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    if data.sets:
        titles = ", ".join(dict.fromkeys(set_title(one.spec) for one in data.sets))
        parts.append(
            f"Semantic textual similarity ({titles}): Spearman x 100 of cosine; row: language of sentence1, column: of "
            "sentence2."
        )
        parts += [markdown(table) for table in sts_tables([entry], data.sets)]
    for title, table in retrieval_tables([entry]):
        parts += [f"{title}, per cent:", markdown(table)]
    if "onnx" in entry:
        parts += onnx_notes(entry, encoder)
    if training:
        teachers = ", ".join(f"`{teacher}`" for teacher in training["teachers"])
        taught = f"Teacher: {teachers}. " if teachers else ""
        parts += ["## Training", f"{taught}Student at the start: `{training['student']}`."]
        parts.append(trained_on(training))
        parts.append(training["command"])
    return "\n\n".join(parts) + "\n"
