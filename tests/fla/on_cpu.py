"""Run every use of a model on the CPU and print the results as JSON; called by test_on_cpu.py.

python -m tests.fla.on_cpu [without]    without: as if flash-linear-attention were not installed
"""

import hashlib
import json
import sys

if sys.argv[1:] == ["without"]:
    sys.modules["fla"] = None  # every import of it fails

import torch

import qwenlab as ql
from qwenlab.testing.models import tiny_model

PROMPT = "def mean(values):\n    return sum("


def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def refused(run):
    """The name of the error if the model cannot run because Triton has no GPU or no tensor on it; else ""."""
    try:
        run()
    except (RuntimeError, ValueError) as error:
        return type(error).__name__
    return ""


def plain():
    """A model that qwenlab did not open: trained under watch, then with an intervention."""
    model = tiny_model("qwen3_5_moe", layer_types=["linear_attention", "full_attention"])
    tokens = torch.arange(1, 71)[None]
    before = refused(lambda: model(tokens))
    with ql.watch(model, *ql.probes.defaults(model), ql.probes.ImplicitAttention(every=1)) as seen:
        out = model(tokens, labels=tokens)
        out.loss.backward()
    gradients = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    with torch.no_grad(), ql.intervene(model, ql.interventions.FreezeState(40)):
        edited = model(tokens).logits
    return {
        "plain logits": digest(out.logits),
        "plain gradients": digest(gradients),
        "plain kernel": seen.recording().attrs["kernel_delta_rule"],
        "plain edited": digest(edited),
    }, [before, refused(lambda: model(tokens))]


def opened():
    """A checkpoint that qwenlab opened; afterwards models of its family run on the CPU."""
    ckpt = ql.open("toy-dense")
    inputs = ckpt.tokenizer(PROMPT, return_tensors="pt")
    loss = ql.tasks.measure(ckpt, [ql.tasks.text_task(ckpt, ql.tasks.texts("code", 1))])["loss"]
    with torch.no_grad(), ql.watch(ckpt, *ql.probes.defaults(ckpt)) as seen:
        logits = ckpt.model(**inputs).logits
    with torch.no_grad(), ql.intervene(ckpt, ql.interventions.Zero("layers.*.mixer", kind="full_attention")):
        edited = ckpt.model(**inputs).logits
    made = ql.speculative.generate(ckpt, [PROMPT], depth=3, max_new_tokens=12, progress=False)
    verdicts = [
        ql.speculative.check_lossless(ckpt, [PROMPT], depth=3, max_new_tokens=8, rollback=how, progress=False).verdict
        for how in (ql.speculative.ReplayRollback, ql.speculative.RerunRollback)
    ]
    written = ckpt.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return {
        "loss": loss.values.tolist(),
        "logits": digest(logits),
        "edited": digest(edited),
        "kernel": seen.recording().attrs["kernel_delta_rule"],
        "kernel of decoding": made.facts["kernel_delta_rule"],
        "tokens": made.tokens,
        "verdicts": verdicts,
        "written": written.tolist(),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    found, outside = plain()
    print(json.dumps({"found": found | opened(), "outside": outside}))
