from .checkpoints import tiny_checkpoint as tiny_checkpoint
from .models import tiny_config as tiny_config, tiny_head as tiny_head, tiny_model as tiny_model
from .recordings import made_recording as made_recording
from .strategies import made_recordings as made_recordings
