"""lm-evaluation-harness on a task file of our own: it says what is worked out by hand, and leaves nothing behind."""

import builtins
import copy
import dataclasses
import json
import random
from contextlib import ExitStack

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument, MissingExtra
from qwenlab.tasks import harness_scores, measure, mqar, recall_texts

TASK = """
task: recall_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 2.0
"""


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.fixture
def documents():
    """Questions of recall texts, of so many pairs that the toy is not always right, and ten values to choose from."""
    found = []
    for text in recall_texts(52, 16, questions=1, seed=3):
        question, answer = text[:-2], int(text[-2])
        found.append({"question": question, "choices": list("0123456789"), "answer": answer})
    return found


@pytest.fixture
def folder(tmp_path, documents, monkeypatch):
    """A folder with the task file and its documents; what the harness keeps of them goes there too."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "recall.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tasks / "recall.yaml").write_text(TASK.format(data=tasks / "recall.jsonl"))
    return tasks


@torch.no_grad()
def by_hand(toy, documents):
    right = []
    for document in documents:
        ids = toy.tokenizer(document["question"]).input_ids
        choices = [toy.tokenizer(choice).input_ids[0] for choice in document["choices"]]
        logits = toy.model(torch.tensor([ids])).logits[0, -1, choices]
        right.append(logits.argmax().item() == document["answer"])
    return np.mean(right)


@pytest.mark.remote
def test_it_is_what_is_worked_out_by_hand(toy, folder, documents):
    found = harness_scores(toy, ["recall_choice"], task_folder=folder)
    assert found.sizes == {"score": 1}
    one = found.isel(score=0)
    told = [str(one[name].values) for name in ("task", "metric", "filter", "better")]
    assert told == ["recall_choice", "acc", "none", "higher"]
    share = by_hand(toy, documents)
    assert 0 < share < 1
    assert float(one["value"]) == share
    np.testing.assert_allclose(one["stderr"], np.sqrt(share * (1 - share) / (len(documents) - 1)))
    assert (int(one["samples"]), int(one["shots"])) == (len(documents), 0)
    assert found.attrs["task_versions"] == "recall_choice 2.0"
    tokens = sum(len(toy.tokenizer(one["question"] + choice).input_ids) for one in documents for choice in "0123456789")
    assert json.loads(found.attrs["labels"]) == {"recall_choice": tokens}
    assert found.attrs["sequences"] == 10 * len(documents)
    assert set(measure(toy, [mqar(toy, pairs=2, count=1)]).attrs) <= set(found.attrs)
    few = harness_scores(toy, "recall_choice", task_folder=folder, limit=5)
    assert int(few["samples"][0]) == 5
    assert float(few["value"][0]) == by_hand(toy, documents[:5])


@pytest.mark.remote
def test_an_edited_model_is_scored_and_all_is_left_as_it_was(toy, folder, documents):
    before = float(harness_scores(toy, ["recall_choice"], task_folder=folder)["value"][0])
    toy.model.train()
    toy.model.get_decoder().layers[0].eval()
    modes = [module.training for module in toy.model.modules()]
    bare = copy.deepcopy(toy.tokenizer)
    bare.pad_token = None  # the harness chooses one for itself
    unpadded, tokenizer = dataclasses.replace(toy, tokenizer=bare), repr(bare)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    try:
        with ExitStack() as hooks:
            for layer in toy.model.get_decoder().layers:
                if hasattr(layer, "linear_attn"):
                    hooks.callback(layer.linear_attn.register_forward_hook(lambda *args: 0 * args[2]).remove)
            edited = float(harness_scores(unpadded, ["recall_choice"], task_folder=folder)["value"][0])
            assert edited == by_hand(toy, documents)
        assert edited < before
        assert [module.training for module in toy.model.modules()] == modes
        assert (repr(bare), bare.pad_token) == (tokenizer, None)
        assert (random.random(), np.random.rand(), torch.rand(())) == expected  # noqa: NPY002
    finally:
        toy.model.eval()
    assert float(harness_scores(toy, ["recall_choice"], task_folder=folder)["value"][0]) == before


@pytest.mark.remote
def test_an_unknown_task_is_answered_with_the_nearest(toy, folder):
    with pytest.raises(BadArgument, match=r"no task 'recal_choice', nor has '.*'\.\nDid you mean 'recall_choice'"):
        harness_scores(toy, ["recal_choice"], task_folder=folder)


@pytest.mark.remote
def test_a_folder_is_there(toy, tmp_path):
    with pytest.raises(BadArgument, match=r"task_folder='.*nowhere'\): there is no such folder"):
        harness_scores(toy, ["recall_choice"], task_folder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (dict(tasks=[]), "give the name of at least one task"),
        (dict(tasks=["a"], limit=0), r"harness_scores\(limit=0\): give an integer"),
        (dict(tasks=["a"], batch_size=0), r"harness_scores\(batch_size=0\)"),
    ],
)
def test_foolish_arguments_are_refused(toy, given, why):
    with pytest.raises(BadArgument, match=why):
        harness_scores(toy, **given)


def test_without_the_extra_it_says_how_to_have_it(toy, monkeypatch):
    usual = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'")
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"No module named 'lm_eval'.\nRun: pip install 'qwenlab\[harness\]'"):
        harness_scores(toy, ["anything"])
