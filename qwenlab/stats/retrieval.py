"""Weight of heads of both kinds of mixer on the answers of questions."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.stats.base.source import Source, statistic
from qwenlab.stats.base.sums import Estimate, estimates, join_layers
from qwenlab.stats.base.variables import result
from qwenlab.stats.formulas.intervals import by_cluster
from qwenlab.stats.maps import stored_maps

_MEANS = {
    "retrieval": Estimate("1", "mass on the queried value", 1, over="questions"),
    "control": Estimate("1", "mass on the value of another pair", 1, over="questions"),
    "advantage": Estimate("1", "mass on the queried value, less that on another pair's", 1, least=-1, over="questions"),
    "picked": Estimate("1", "questions in which the queried value has the most weight", 1, over="questions"),
    "even": Estimate("1", "mass on each token of uniform weights", 1, over="questions"),
    "chance": Estimate("1", "questions in which a pair's value has the most weight by chance", 1, over="questions"),
}


@statistic
def retrieval(source: Source, questions: xr.Dataset, *, level: float = 0.95) -> xr.Dataset:
    """Weight of heads of both kinds on the queried value of a recall text, at the token before the answer.

    questions  result of `tasks.recall_questions` for the texts that were read inside the `with`, in their order
    source     with stored rows of all questions: queries=sorted(set(questions["query"].values.tolist())), or "all"

    With m(t, s) the mass |w(t, s)| / sum over s of |w(t, s)|, means over questions by [layer, head], layers of both
    kinds in the model's order, each with its interval over texts (Student's t on the delete-one-text jackknife):

    retrieval  m on the value of the queried pair, at the question mark's token
    control    mean of m on the values of the other pairs: equal for a head that attends to any value
    advantage  retrieval - control
    picked     share of questions in which the queried value has more |w| than that of any other pair
    even       mean of 1 / (t + 1): the same for uniform weights
    chance     of `picked`: 1 / number of pairs

    Query each pair once: a head that copies an earlier answer to the same question does not count as retrieval.

    Raises ProbeNotRecorded if no map was stored, and BadArgument if the row of a question was not stored, if maps are
    means over blocks, and for a text with one pair.
    """
    missing = [name for name in ("text", "query", "asked", "value") if name not in questions]
    if missing:
        raise MissingVariable(
            f"No {', '.join(missing)} in `questions`.\n"
            "Give the result of qwenlab.tasks.recall_questions(checkpoint, texts)."
        )
    if (alone := ((questions["value"] >= 0).sum("pair") < 2).values).any():
        raise BadArgument(
            f"Text {int(questions['text'][alone][0])} lists one pair, and so has no other value to compare with.\n"
            "Use texts of two pairs or more."
        )
    nodes = [_of_kind(data, questions, level) for data in stored_maps(source)]
    counts = {"questions": questions.sizes["question"], "texts": len(np.unique(questions["text"]))}
    return join_layers(nodes).assign_attrs(counts)


def _of_kind(data: xr.Dataset, questions: xr.Dataset, level: float) -> xr.Dataset:
    texts = questions["text"].values
    heads, dims = data["weight"].shape[:2], ("fold", "layer", "head")
    coords = {name: data[name] for name in ("layer", "kind", "head")}
    sums = {
        f"{name}_sum": xr.DataArray(by_cluster(values, texts).reshape(-1, *heads), coords, dims)
        for name, values in _at_questions(data, questions).items()
    }
    sums["questions"] = xr.DataArray(np.unique(texts, return_counts=True)[1], dims="fold")
    return result(data, estimates(sums, _MEANS, level))


def _at_questions(data: xr.Dataset, questions: xr.Dataset) -> dict[str, np.ndarray]:
    """Values of each question: [question, layer * head]."""
    query, value, pair = (questions[name].values for name in ("query", "value", "asked"))
    size = np.abs(data["weight"].values[:, :, _rows(data, questions)]).astype(np.float64)
    size = np.moveaxis(size, 2, 0).reshape(len(query), -1, size.shape[3])  # [question, layer * head, key]
    listed = (value >= 0)[:, None]
    weight = np.take_along_axis(size, np.where(value < 0, 0, value)[:, None], axis=2)  # [question, layer * head, pair]
    own = np.take_along_axis(weight, pair[:, None, None], axis=2)
    others = listed & (np.arange(value.shape[1]) != pair[:, None])[:, None]
    total = np.nansum(size, axis=2, keepdims=True)
    mass = weight / np.maximum(total, np.finfo(np.float64).tiny)
    pairs, one = listed.sum(axis=2), np.ones(size.shape[:2])
    retrieval = np.take_along_axis(mass, pair[:, None, None], axis=2)[..., 0]
    control = np.where(others, mass, 0).sum(axis=2) / (pairs - 1)
    return {
        "retrieval": retrieval,
        "control": control,
        "advantage": retrieval - control,
        "picked": (own > np.where(others, weight, -1)).all(axis=2),
        "even": one / (query[:, None] + 1),
        "chance": one / pairs,
    }


def _rows(data: xr.Dataset, questions: xr.Dataset) -> list[int]:
    if "block" in json.loads(data.attrs.get("sample", "{}")):
        raise BadArgument("The maps are means over blocks.\nStore the rows of the questions: queries=[...].")
    rows = zip(data["text"].values.tolist(), data["position"].values.tolist(), strict=True)
    row = {place: number for number, place in enumerate(rows)}
    queries = list(zip(questions["text"].values.tolist(), questions["query"].values.tolist(), strict=True))
    if missing := [query for query in queries if query not in row]:
        raise BadArgument(
            f"The rows of {len(missing)} of {len(queries)} questions were not stored; the first is that of the token "
            f"at position {missing[0][1]} of text {missing[0][0]}.\n"
            "Read the complete texts of these questions, in their order and no others, with "
            'queries=sorted(set(questions["query"].values.tolist())).'
        )
    return [row[query] for query in queries]
