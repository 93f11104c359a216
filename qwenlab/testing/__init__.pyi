from .checkpoints import tiny_checkpoint as tiny_checkpoint
from .ledgers import Played as Played, ledger as ledger, made_ledger as made_ledger, replayed as replayed
from .models import tiny_config as tiny_config, tiny_head as tiny_head, tiny_model as tiny_model
from .recordings import made_recording as made_recording
from .strategies import (
    made_ledgers as made_ledgers,
    made_recordings as made_recordings,
    made_traces as made_traces,
)
from .traces import made_trace as made_trace
