# The functions `record`, `run`, `find` and `compare` hide the modules they live in.
from .compare import Comparison as Comparison, compare as compare, compare_stores as compare_stores
from .demo import Demo as Demo, demo as demo
from .export import export_mlflow as export_mlflow
from .find import datasets as datasets, facts as facts, find as find, metrics as metrics
from .points import Plan as Plan, plan as plan
from .profiling import Profile as Profile, profile as profile
from .prune import prune as prune
from .record import record as record
from .report import report as report
from .run import Result as Result, run as run
from .spec import Spec as Spec
from .store import Store as Store, store_at as store_at
