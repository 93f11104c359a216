"""Every error qwenlab raises. Each message says what is wrong, where, and the mend."""


class QwenlabError(Exception):
    """What every error of qwenlab is: `except QwenlabError` catches them all."""


class UnknownCheckpoint(QwenlabError):
    """A name that is neither a shipped toy, nor in the catalog, nor a folder."""


class UnreadableConfig(QwenlabError):
    """No config.json where one was said to be, or one that is not a JSON object."""


class BadConfig(QwenlabError):
    """A field of a config is missing, misshapen or at odds with another."""


class UnknownConfigField(QwenlabError):
    """Strict reading met fields that qwenlab does not know: they may change what the numbers mean."""


class UnknownConfigFieldWarning(UserWarning):
    """The same in the default reading, where it only warns."""


class NotAHybrid(QwenlabError):
    """A model without DeltaNet layers."""


class UnsupportedFamily(QwenlabError):
    """A hybrid model whose parts the table of families cannot name."""


class UnsupportedTransformers(QwenlabError):
    """A version of transformers whose functions take their cache in a way that qwenlab does not know."""


class BadArgument(QwenlabError, ValueError):
    """An argument's value is not one of those it can have."""


class UnknownQuantization(QwenlabError):
    """Weights are stored in a way that is not known: they cannot be opened, or their bytes cannot be counted."""


class UnknownNotebook(QwenlabError):
    """No notebook at that path."""


class UnknownParameter(QwenlabError):
    """A value for a name that the notebook's parameters cell does not assign."""


class BadParameter(QwenlabError):
    """A value of another type than the notebook's parameters cell gives the name, or a type that cannot be read."""


class NotebookFailed(QwenlabError):
    """A cell raised, the kernel stopped, or the notebook did not save what it should."""


class CellFailed(NotebookFailed):
    """A cell of a notebook raised."""


class NotebookKernelDied(NotebookFailed):
    """The process that ran a notebook's cells ended before the notebook did."""


class MissingParameter(QwenlabError):
    """A parameter that the notebook gives no value, and that was given none."""


class NotWatched(QwenlabError):
    """A recording was asked for what a probe would have seen, and that probe was not watching."""


class NotARecording(QwenlabError):
    """A path or an object that holds no recording of qwenlab's."""


class TruncatedRecording(QwenlabError):
    """A recording's file ends too early or is damaged."""


class NewerRecording(QwenlabError):
    """A recording written in a later format than this qwenlab reads."""


class CannotMerge(QwenlabError):
    """Two recordings whose sums must not be added: another checkpoint, precision, sample or set of labels."""


class MissingVariable(QwenlabError):
    """A Dataset without the variables that a statistic or a plot reads."""


class InconsistentRecording(QwenlabError):
    """Counts of a recording that contradict each other: a number made of them would be wrong."""


class NothingMeasured(QwenlabError):
    """A statistic of no tokens, or a comparison with nothing to compare."""


class UnknownSite(QwenlabError):
    """A site, or a pattern of sites, that no layer of the model has."""


class AmbiguousModel(QwenlabError):
    """A module that holds several stacks of decoder layers where one was asked for."""


class NotCached(QwenlabError):
    """A checkpoint of the hub that is not on this machine, while the hub cannot be reached."""


class NoWeights(QwenlabError):
    """A folder without safetensors weights, or without the index that says which shard holds what."""


class PickleWeights(NoWeights):
    """Weights in a pickle, which can run code when it is opened."""


class MissingShard(QwenlabError):
    """The index names a shard that is not in the folder."""


class TruncatedShard(QwenlabError):
    """A shard whose size is not what its header says, or that is no safetensors file."""


class BrokenWeights(QwenlabError):
    """Tensors that the model needs are missing from the shards, or have other shapes."""


class UnusedWeightsWarning(UserWarning):
    """The shards hold tensors that no part of the model takes."""


class NonFiniteWeights(QwenlabError):
    """A weight is NaN or infinite."""


class TokenizerMisfit(QwenlabError):
    """A tokenizer is missing, or has tokens for which the embedding has no row."""


class NoMtpHead(QwenlabError):
    """The multi-token-prediction head was asked of a checkpoint that has none."""


class HalfLoadedModel(QwenlabError):
    """A model in memory some of whose weights are absent, or are stored codes that nothing scales."""


class BrokenMtpHead(QwenlabError):
    """The `mtp.*` tensors are not those of one head: some are missing, unknown, or of another shape."""


class UnreadableMask(QwenlabError):
    """A forward pass whose padding, or whose sequences, a probe cannot tell apart."""


class MisshapenLabels(QwenlabError):
    """Labels that do not fit the tokens of the forward pass they are for."""


class UnknownLayer(QwenlabError):
    """Layers were named that do not have what the probe reads or the edit changes."""


class NothingToProbe(QwenlabError):
    """The model has no part that the probe reads or the edit changes."""


class SilentSite(QwenlabError):
    """A watched site did not fire, or fired for fewer tokens than the model read."""


class MapTooLarge(QwenlabError):
    """A map of weights from token to token that is too large to be kept whole."""


class KernelDisagrees(QwenlabError):
    """What was worked out from a kernel's arguments is not what the kernel returned."""


class CannotIntervene(QwenlabError):
    """An edit that this model, kernel or way of running does not allow."""


class SilentIntervention(QwenlabError):
    """An edit that a forward pass did not reach, or that never changed anything."""


class CannotWatch(QwenlabError):
    """A probe works something out again that an edit has replaced: it would show the unedited one."""


class NothingRead(QwenlabError):
    """The watched or edited model ran no forward pass."""


class ProbeInUse(QwenlabError):
    """A probe was given to a second watch while the first one still needs it."""


class UnusedWeights(QwenlabError):
    """Strict opening met tensors that no part of the model takes."""


class BadSpec(QwenlabError):
    """A spec.yaml that is no YAML, or says what cannot be."""


class UnknownExperiment(QwenlabError):
    """No spec.yaml where an experiment was said to be."""


class UndeclaredMetric(QwenlabError):
    """A notebook recorded a metric that its spec does not declare."""


class BadMetric(QwenlabError):
    """What was given to be recorded is not what the spec declares, or no number, dataset or figure."""


class RecordedTwice(QwenlabError):
    """One value of one metric was recorded a second time in one run."""


class NewerStore(QwenlabError):
    """A store written in a later format than this qwenlab reads."""


class UnknownRun(QwenlabError):
    """A run that is not in the store, or a question that no run of the store answers."""


class NeedsNotMet(QwenlabError):
    """This machine lacks what a spec says its runs need."""


class MissingExtra(QwenlabError):
    """A package that is not among the plain dependencies."""


class CannotCompare(QwenlabError):
    """Runs whose numbers do not stand side by side: other labels, other units, or nothing in common."""


class ExportFailed(QwenlabError):
    """An MLflow server that cannot be reached, or does not take what it is sent."""


class ClusterFailed(QwenlabError):
    """A Ray cluster that cannot be reached, or whose nodes cannot run what they are given."""


class StoreFailed(QwenlabError, OSError):
    """An object store that cannot be reached, or does not take or give what it is asked for."""


class CannotRollBack(QwenlabError):
    """A cache whose layers cannot forget rejected drafts exactly."""


class BadPrompt(QwenlabError):
    """A text that cannot be decoded or traced: empty, or beyond the model's context."""


class InterruptedWarning(UserWarning):
    """Work was interrupted, and what was made until then is returned."""


class NothingDecoded(QwenlabError):
    """Rounds were asked for before a text was decoded."""


class BadPolicy(QwenlabError):
    """A drafting policy that cannot be called, or answers in another shape or type than it must."""
