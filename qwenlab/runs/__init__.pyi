from .demo import Demo as Demo, demo as demo
from .notebook import run_notebook as run_notebook
from .profiling import Profile as Profile, profile as profile
