"""All errors and warnings that qwenlab raises. Each message says what is wrong, where, and how to fix it."""


class QwenlabError(Exception):
    """Base class of all errors: `except QwenlabError` catches every one."""


class BadArgument(QwenlabError, ValueError):
    """The value of an argument is not allowed."""


# --- Finding a checkpoint and reading its config ---
class UnknownCheckpoint(QwenlabError):
    """The name is not a shipped toy, a catalogued config, a folder or a hub id."""


class NotCached(QwenlabError):
    """A hub checkpoint is not on this machine, and the hub cannot be reached."""


class UnreadableConfig(QwenlabError):
    """The config.json does not exist, or is not a JSON object."""


class BadConfig(QwenlabError):
    """A config field is missing, has the wrong type or value, or contradicts another field."""


class UnknownConfigField(QwenlabError):
    """The config has fields that qwenlab does not know and that may change the results; raised when strict."""


class UnknownConfigFieldWarning(UserWarning):
    """The config has fields that qwenlab does not know and that may change the results; a warning by default."""


class UnsupportedTransformers(QwenlabError):
    """A function of the installed transformers takes its cache in a way that qwenlab does not know."""


# --- Model families and the parts of a model ---
class NotAHybrid(QwenlabError):
    """The model has no DeltaNet layers."""


class UnsupportedFamily(QwenlabError):
    """The model is a hybrid, but qwenlab does not support its family."""


class AmbiguousModel(QwenlabError):
    """A module contains several stacks of decoder layers, and it is unclear which one is meant."""


class UnknownSite(QwenlabError):
    """No layer of the model has a site with this name or pattern."""


class UnknownLayer(QwenlabError):
    """The requested layers lack the part that the probe reads or the intervention changes."""


# --- Weights, tokenizer and MTP head ---
class UnknownQuantization(QwenlabError):
    """The quantisation of the weights is unknown: they cannot be loaded, or their bytes cannot be counted."""


class NoWeights(QwenlabError):
    """The folder has no safetensors weights, or lacks the index of its shards."""


class PickleWeights(NoWeights):
    """The weights are pickled, and a pickle can run code when it is opened."""


class MissingShard(QwenlabError):
    """The index names a shard that is not in the folder."""


class TruncatedShard(QwenlabError):
    """A shard is not a safetensors file, or its size differs from what its header describes."""


class BrokenWeights(QwenlabError):
    """The tensors in the shards do not match the config: some are missing or have another shape or format."""


class UnusedWeights(QwenlabError):
    """The shards contain tensors that no part of the model uses; raised when strict."""


class UnusedWeightsWarning(UserWarning):
    """The shards contain tensors that no part of the model uses; a warning by default."""


class NonFiniteWeights(QwenlabError):
    """A weight is NaN or infinite."""


class HalfLoadedModel(QwenlabError):
    """A model in memory lacks some of its weights, or has quantised codes without scales."""


class MemoryTooSmall(BadArgument):
    """A memory budget is smaller than what the largest layer takes of a checkpoint."""


class WeightsChanged(QwenlabError):
    """A weight file changed while the model was reading its layers from it."""


class CannotStream(QwenlabError):
    """The checkpoint, or what is done with it, does not work with weights that are read as they are needed."""


class TokenizerMismatch(QwenlabError):
    """The tokenizer is missing, or has token ids beyond the rows of the embedding."""


class DiskTooSmall(QwenlabError):
    """The checkpoint to be written is larger than the free space of its disk."""


class NoMtpHead(QwenlabError):
    """The checkpoint has no multi-token-prediction head."""


class BrokenMtpHead(QwenlabError):
    """The `mtp.*` tensors do not form one head: some are missing, unknown or have another shape."""


# --- Probes ---
class MissingPart(QwenlabError):
    """The model lacks the part that the probe reads or the intervention changes."""


class NoForwardPass(QwenlabError):
    """The model did not run a forward pass inside the block."""


class ProbeInUse(QwenlabError):
    """A probe object was passed to more than one watch."""


class SiteNotReached(QwenlabError):
    """A watched site did not run, or ran for fewer tokens than the model read."""


class KernelMismatch(QwenlabError):
    """A probe recomputed the output of a kernel and got another result."""


class AmbiguousSequences(QwenlabError):
    """A probe cannot tell which tokens are padding, or where a sequence begins."""


class MapTooLarge(QwenlabError):
    """A token-by-token attention map is too large to store."""


class LabelShapeMismatch(QwenlabError):
    """The labels do not match the shape of the forward pass's tokens."""


# --- Interventions ---
class CannotIntervene(QwenlabError):
    """The model, its kernels or the way it runs do not allow this intervention."""


class InterventionNotApplied(QwenlabError):
    """An intervention was not reached by a forward pass, or never changed a value."""


class CannotWatch(QwenlabError):
    """A probe recomputes a function that an intervention replaced: its result would be wrong."""


# --- Many texts, layer by layer ---
class CannotRunLayerMajor(QwenlabError):
    """A call cannot take turns with others after each layer."""


class DiskFull(QwenlabError, OSError):
    """Hidden states that wait for their turn do not fit on the disk."""


# --- Drafting and verifying ---
class BadPrompt(QwenlabError):
    """A text to decode or trace is empty, or longer than the model's context."""


class BadPolicy(QwenlabError):
    """A drafting policy is not callable, or returns the wrong type or shape."""


class CannotRollBack(QwenlabError):
    """The layers of a cache cannot remove rejected drafts exactly."""


class NothingDecoded(QwenlabError):
    """Results were requested before a text was decoded."""


class WorkerDied(QwenlabError):
    """A process of a sweep ended before its work was done."""


class InterruptedWarning(UserWarning):
    """The work was interrupted; the results so far are returned."""


# --- Recordings and statistics ---
class NotARecording(QwenlabError):
    """The path or object is not a recording of qwenlab."""


class TruncatedRecording(QwenlabError):
    """The file of a recording is damaged or incomplete."""


class NewerRecording(QwenlabError):
    """A later version of qwenlab wrote the recording, in a format that this version cannot read."""


class CannotMerge(QwenlabError):
    """Two recordings cannot be added: they differ in checkpoint, precision, sample or labels."""


class ProbeNotRecorded(QwenlabError):
    """The recording lacks the results of a probe: the probe was not used, or its rows were not stored."""


class MissingVariable(QwenlabError):
    """A Dataset lacks a variable that a statistic or a plot needs."""


class InconsistentRecording(QwenlabError):
    """The counts in a recording contradict each other."""


class NothingMeasured(QwenlabError):
    """There are no tokens to compute a statistic of, or nothing to compare."""


# --- Running notebooks ---
class UnknownNotebook(QwenlabError):
    """The notebook does not exist at this path."""


class UnknownParameter(QwenlabError):
    """The parameters cell of the notebook does not assign this name."""


class BadParameter(QwenlabError):
    """A parameter has a value of the wrong type, or its type annotation cannot be read."""


class MissingParameter(QwenlabError):
    """A required parameter of a notebook has no value."""


class NotebookFailed(QwenlabError):
    """A cell raised, the kernel stopped, or the notebook did not save a required result."""


class CellFailed(NotebookFailed):
    """A cell of a notebook raised an exception."""


class NotebookKernelDied(NotebookFailed):
    """The Jupyter kernel stopped before the notebook finished."""


# --- Experiments and their store ---
class UnknownExperiment(QwenlabError):
    """The experiment does not exist: there is no spec.yaml at this path."""


class BadSpec(QwenlabError):
    """A spec.yaml is not valid YAML, or describes an experiment that cannot run."""


class NeedsNotMet(QwenlabError):
    """This machine does not meet the `needs` of a spec."""


class MissingExtra(QwenlabError):
    """An optional package is not installed."""


class UndeclaredMetric(QwenlabError):
    """A notebook recorded a metric that its spec does not declare."""


class BadMetric(QwenlabError):
    """A recorded metric does not match its spec, or is not a number, dataset or figure."""


class DuplicateMetric(QwenlabError):
    """A run recorded the same value of a metric twice."""


class UnknownRun(QwenlabError):
    """The store has no such run, metric or dataset."""


class NewerStore(QwenlabError):
    """A later version of qwenlab wrote the store, in a format that this version cannot read."""


class CannotCompare(QwenlabError):
    """Runs cannot be compared: they differ in labels or units, or have nothing in common."""


class ExportFailed(QwenlabError):
    """The MLflow server cannot be reached, or rejects the data."""


class ClusterFailed(QwenlabError):
    """The Ray cluster cannot be reached, or one of its nodes cannot run the experiment."""


class StoreFailed(QwenlabError, OSError):
    """The object store cannot be reached, or rejects a request."""
