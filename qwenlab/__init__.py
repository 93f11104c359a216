"""A workbench for hybrid attention: open a checkpoint, watch a forward pass, get labelled numbers.

    import qwenlab as ql

    ckpt = ql.open("toy-moe")              # or "Qwen/Qwen3.6-35B-A3B", or a folder
    ckpt.anatomy                           # layers by kind, parameters, bytes and FLOPs per token
    with ql.watch(ckpt.model, ql.probes.DeltaNet(), ql.probes.Routing()) as seen:
        ckpt.model(**inputs)               # forward, generate or a training step: your code
    recording = seen.recording()           # one xarray Dataset per probe
    horizon = ql.stats.half_life(recording)
    ql.plots.half_life(horizon)
    recording.save("run.nc")               # and, on any laptop: ql.Recording.open("run.nc")
    with ql.intervene(ckpt.model, ql.interventions.Zero("layers.3.mixer")):
        ckpt.model(**inputs)               # without that mixer; afterwards the model is what it was
    ql.ablations.sweep(ckpt, ql.ablations.units(ckpt), tasks)  # without each mixer in turn, on every task

The folders, in the order in which data passes through them:

    checkpoint   a name or a folder -> model, tokenizer, MTP head, anatomy; each part of a layer named alike (`Site`)
    tasks        what is read and scored: texts by domain, recall, losses
    probe        what is seen of a forward pass inside a `with`, or changed in it
    decode       draft and verify with the MTP head: exact rollback, rounds, traces
    ablations    edits of many parts, with matched random controls, scored on tasks; patching by layer and position
    record       the labelled result (`Recording`), its provenance, save and open
    stats        Datasets in, Datasets out; needs no torch
    plots        statistics in, matplotlib figures out
    widgets      statistics in, interactive views out
    notebook     a notebook of your own: figures and results shown and saved, numbers with intervals
    kernels      a notebook with checked parameters -> its executed copy, in a kernel that can be kept warm
    runs         a question (spec.yaml) -> its runs, kept in a store -> compared
    recipes      profile, acceptance, ablate, demo: studies of one checkpoint in one call, and from a shell
    testing      tiny random models and made recordings, for your tests and ours

Names are imported when first used, so `import qwenlab` costs milliseconds and loads no torch.
The words are defined in docs/glossary.md, the errors in docs/errors.md.
"""

import lazy_loader

from qwenlab.renamed import with_old_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, __getattr__)
