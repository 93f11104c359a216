from .audit.audit import Audit as Audit, audit as audit
from .audit.contract import Contract as Contract
from .custom_generate import CustomGenerate as CustomGenerate
from .draft_chains import draft_chains as draft_chains
from .generate import Generated as Generated, generate as generate
from .lossless.check import LosslessReport as LosslessReport, check_lossless as check_lossless
from .policies import ExpectedValue as ExpectedValue, FixedDepth as FixedDepth, Threshold as Threshold
from .rollback import ReplayRollback as ReplayRollback, RerunRollback as RerunRollback, Rollback as Rollback
from .rounds import Round as Round
from .scores import acceptance_score as acceptance_score
from .step_times import step_times as step_times
from .trace.record_trace import trace as trace
from .trace.trace import Trace as Trace
from .verification import (
    ExactMatch as ExactMatch,
    Greedy as Greedy,
    SpeculativeSampling as SpeculativeSampling,
    VerificationRule as VerificationRule,
)
