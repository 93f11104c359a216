# The functions `profile`, `acceptance`, `ablate`, `demo` and `make_checkpoint` hide the modules that define them.
from .ablate import Ablated as Ablated, ablate as ablate
from .acceptance import AcceptanceReport as AcceptanceReport, acceptance as acceptance, trace as trace
from .demo import Demo as Demo, demo as demo
from .make_checkpoint import MadeCheckpoint as MadeCheckpoint, make_checkpoint as make_checkpoint
from .profile import Profile as Profile, profile as profile
