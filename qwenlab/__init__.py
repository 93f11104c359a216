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

    checkpoint     name or folder -> model, tokenizer, MTP head, anatomy; one name per part of a layer (`Site`)
    record         `Recording`: labelled results with their provenance; save, open, merge
    stats          Datasets in, Datasets out; needs no torch
    capture        hooks, sequences that are followed across calls, tokens without padding; no public names
    probes         measure a forward pass inside `watch`
    interventions  change a forward pass inside `intervene`
    tasks          texts and tasks to read and score: domains, recall, losses
    speculative    draft with the MTP head, verify, roll back exactly; traces, audit, lossless check
    ablations      interventions on many parts, with matched random controls, scored on tasks; activation patching
    plots          statistics in, matplotlib figures out
    widgets        statistics in, interactive views out
    notebook       a notebook of your own: figures and results shown and saved, numbers with intervals
    execution      run notebooks: checked parameters, warm kernels, an exact record of how each run ended
    experiments    a question (spec.yaml) -> runs, stored and compared
    recipes        ready-made studies of one checkpoint: profile, acceptance, trace, ablate, demo
    testing        tiny random models and recordings, for your tests and ours

Names are imported when first used, so `import qwenlab` costs milliseconds and loads no torch.
The words are defined in docs/glossary.md, the errors in docs/errors.md.
"""

import lazy_loader

from qwenlab.renamed import with_old_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = with_old_names(__name__, __getattr__)
