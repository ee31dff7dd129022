"""Scores of sets that MTEB has too, in the files that its library reads (Muennighoff et al. 2023, arXiv 2210.07316)."""

import re

from distill.command import UserError
from distill.encoder.sentence_encoder import SentenceEncoder
from distill.languages import standard_tag
from distill.scoring.data import Data
from distill.scoring.sts import StsSet

TASKS = ("STSBenchmarkMultilingualSTS", "STS17", "STS22", "STS22.v2", "Tatoeba")
STS_METRICS = [f"{kind}_{way}" for kind in ("cosine", "euclidean", "manhattan") for way in ("pearson", "spearman")]


def known_tasks() -> dict[str, object]:
    """MTEB's own TASKS by the NAME that a set may be given, and by their data sets' ids on the hub.

    UserError where the library is not installed.
    """
    try:
        import mteb
    except ImportError:
        raise UserError("--mteb_results needs MTEB's library: pip install mteb, or leave the option out") from None
    tasks = mteb.get_tasks(tasks=[*TASKS])
    return {task.metadata.dataset["path"]: task for task in tasks} | {task.metadata.name: task for task in tasks}


def sets_of_tasks(data: Data) -> list[tuple[object, str, str, object]]:
    """MTEB's task, split and subset of each set that MTEB has, and the set. UserError where no set is one of MTEB's.

    A set is one of a task whose name it was given as NAME=, or whose data set it was read from.
    """
    tasks, found = known_tasks(), []
    for one in (*data.sets, *data.bitexts):
        task = tasks.get(one.name.rpartition("/")[0]) or tasks.get(re.split("[:@]", one.spec)[0])
        kind = "STS" if isinstance(one, StsSet) else "BitextMining"
        if task is None or task.metadata.type != kind:
            continue
        for subset, written in task.metadata.hf_subsets_to_langscripts.items():
            tags = [standard_tag(language.partition("-")[0]) for language in written]
            if set(tags) == set(one.languages) and (kind == "BitextMining" or (tags[0], tags[-1]) == one.languages):
                found.append((task, split_of(task, one.spec), subset, one))
    if not found:
        raise UserError(
            f"--mteb_results: no set is one of MTEB's: name it as its task, {', '.join(TASKS)}, as in "
            "--sts STS17='sts17-{en-de,es-en}.csv'"
        )
    return found


def split_of(task, spec: str) -> str:
    """The split of a task that a set is, by its spec; UserError where neither tells."""
    splits = task.metadata.eval_splits
    named = [split for split in splits if re.search(rf"\b{split}\b", spec.replace("_", " "))]
    if len(splits) > 1 and len(named) != 1:
        raise UserError(f"--mteb_results: {spec} does not say which split of {task.metadata.name}: {', '.join(splits)}")
    return splits[0] if len(splits) == 1 else named[0]


def write_mteb_results(folder: str, model: str, entry: dict, sets: list[tuple], encoder: SentenceEncoder) -> list[str]:
    """`results/MODEL/no_revision_available/TASK.json` in a folder, beside what it holds; returns the tasks' names.

    entry: the model's as scores.json has it; `model`: its id on the hub, or to be; sets: as `sets_of_tasks` has them.
    """
    from mteb import TaskResult
    from mteb.cache import ResultCache
    from mteb.models import ModelMeta

    scores, tasks = {}, {}
    for task, split, subset, one in sets:
        name = task.metadata.name
        tasks[name] = task
        if isinstance(one, StsSet):
            found = {metric: entry["sts"][one.name]["_".join(reversed(metric.split("_")))] for metric in STS_METRICS}
            found |= {way: found[f"cosine_{way}"] for way in ("pearson", "spearman")}
            found["main_score"] = found["cosine_spearman"]
        else:  # MTEB searches from the language that a subset names first
            first = standard_tag(task.metadata.hf_subsets_to_langscripts[subset][0].partition("-")[0])
            way = "src2trg" if one.languages[0] == first else "trg2src"
            found = dict.fromkeys(("f1", "main_score"), entry["bitext"][one.name][f"{way}_f1"])
        scores.setdefault(name, {}).setdefault(split, {})[subset] = found
    about = {"name": model, "n_parameters": sum(weights.numel() for weights in encoder.parameters())}
    about |= {"embed_dim": encoder.dimension, "max_tokens": encoder.max_seq_length, "similarity_fn_name": "cosine"}
    meta = ModelMeta.create_empty(about | {"use_instructions": bool(encoder.prompt), "open_weights": True})
    for name, of_splits in scores.items():
        result = TaskResult.from_task_results(tasks[name], of_splits, evaluation_time=0.0)
        ResultCache(folder).save_to_cache(result.model_copy(update={"evaluation_time": None}), meta)
    return list(scores)
