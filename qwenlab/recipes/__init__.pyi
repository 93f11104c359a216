from .ablate import Ablated as Ablated, ablate as ablate
from .acceptance import Acceptance as Acceptance, acceptance as acceptance, trace as trace
from .demo import Demo as Demo, demo as demo
from .profile import Profile as Profile, profile as profile
