"""What models are scored on, as a call names it: STS sets, bitexts, retrieval."""

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from distill.command import UserError
from distill.scoring.bitext import Bitext, read_bitext
from distill.scoring.retrieval import Pool, Retrieval, read_retrieval
from distill.scoring.sts import StsSet


class Data(NamedTuple):
    """What models are scored on."""

    sets: list[StsSet]
    bitexts: list[Bitext]
    pools: list[Pool]  # those of the bitexts
    margin: bool  # bitexts by the ratio margin too
    retrievals: list[Retrieval]

    @property
    def sentences(self) -> list[str]:
        """All that stand behind the prompt of queries: every one but the documents of retrieval."""
        found = [sentence for one in self.bitexts for side in (one.sources, one.targets) for sentence in side]
        found += [sentence for one in self.sets for side in (one.sentence1, one.sentence2) for sentence in side]
        return found + [query for one in self.retrievals for query in one.queries]

    @property
    def documents(self) -> list[str]:
        """Those of retrieval."""
        return [document for one in self.retrievals for document in one.documents]


def named(spec: str) -> tuple[str, str]:
    """'NAME=SPEC' -> (NAME, SPEC), or '' where there is no name; a name holds no '/' and no '{'.

    What exists is a path, as 'lr=1e-3/student' may be.
    """
    if os.path.exists(spec):
        return "", spec
    match = re.fullmatch(r"(?:([^/={]+)=)?(.*)", spec, re.DOTALL)
    return match[1] or "", match[2]


def read_all(specs: list[str], read: Callable[[str, str], list]) -> list:
    """The sets of all specs, each read by `read(spec, name)`; UserError where two have the same name."""
    found = {}
    for name, path in map(named, specs):
        for one in read(path, name):
            if one.name in found:
                raise UserError(f"{path} and {found[one.name].spec} both have {one.name}: name one, as in x={path}")
            found[one.name] = one
    return list(found.values())


def read_data(sets: list[StsSet], bitext: list[str], retrieval: list[str]) -> tuple[Data, list[str]]:
    """STS sets, and what specs of bitexts and of retrieval name; names of bitexts that are left out, of one pair.

    UserError for what cannot be read, and where two have the same name.
    """
    bitexts = read_all(bitext, read_bitext)
    alone = [one.name for one in bitexts if len(one.sources) < 2]
    bitexts = [one for one in bitexts if one.name not in alone]
    retrievals = read_all(retrieval, lambda spec, name: [read_retrieval(spec, name)])
    return Data(sets, bitexts, [], False, retrievals), alone
