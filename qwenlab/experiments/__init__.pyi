# The functions `record`, `run`, `find` and `compare` hide the modules they live in.
from .plan.points import Plan as Plan, plan as plan
from .plan.spec import Spec as Spec
from .record import record as record
from .report.experiment import ExperimentReport as ExperimentReport
from .report.export import export_mlflow as export_mlflow
from .report.page import report as report
from .store.compare import Comparison as Comparison, compare as compare, compare_stores as compare_stores
from .store.find import datasets as datasets, facts as facts, find as find, metrics as metrics
from .store.location import store_at as store_at
from .store.prune import prune as prune
from .store.store import Store as Store
from .sweep.run import Result as Result, run as run
