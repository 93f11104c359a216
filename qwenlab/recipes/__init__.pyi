# The functions `profile`, `acceptance`, `ablate` and `demo` hide the modules that define them.
from .ablate import Ablated as Ablated, ablate as ablate
from .acceptance import AcceptanceReport as AcceptanceReport, acceptance as acceptance, trace as trace
from .demo import Demo as Demo, demo as demo
from .profile import Profile as Profile, profile as profile
