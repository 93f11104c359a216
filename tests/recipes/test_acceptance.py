"""What `qwenlab acceptance` does: rounds of a checkpoint, rates, a verdict, figures."""

import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument


@pytest.mark.slow
def test_a_folder_with_rounds_trace_and_figures(tmp_path):
    texts = {"code": ql.tasks.texts("code", 2), "mine": "\n".join(ql.tasks.texts("prose", 2))}
    found = ql.recipes.acceptance(
        "toy-dense", texts, tmp_path, depth=2, prompts=2, prompt_tokens=16, new_tokens=12, progress=False
    )
    assert found.lossless
    recording = ql.Recording.open(found.recording)
    assert set(recording) == {"rounds", "trace"}
    assert recording["rounds"]["label"].values.tolist().count("mine") > 1
    assert ql.stats.acceptance(recording)["acceptance_length"].equals(found.rates["acceptance_length"])
    assert found.by_label["label"].values.tolist() == ["code", "mine"]
    assert found.by_label["prompts"].values.tolist() == [2, 2]
    names = {figure.name for figure in found.figures if figure.stat().st_size > 5_000}
    assert names == {"acceptance.png", "acceptance_by_label.png", "teacher_forced.png", "speedup.png"}


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(BadArgument, match=r"acceptance\(texts=\{\}\)"):
        ql.recipes.acceptance("toy-dense", {}, tmp_path)
