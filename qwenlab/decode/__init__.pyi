from .audit import Audit as Audit, audit as audit
from .chains import chains as chains
from .contract import Contract as Contract
from .custom import custom_generate as custom_generate
from .generate import Generated as Generated, generate as generate
from .lossless import Losslessness as Losslessness, check_lossless as check_lossless
from .policies import ExpectedValue as ExpectedValue, FixedDepth as FixedDepth, Threshold as Threshold
from .rollback import Replay as Replay, Rerun as Rerun, Rollback as Rollback
from .rounds import Round as Round
from .rules import ExactMatch as ExactMatch, Greedy as Greedy, Rule as Rule, SpeculativeSampling as SpeculativeSampling
from .scores import acceptance_score as acceptance_score
from .step_times import step_times as step_times
from .traced import Trace as Trace
from .tracing import trace as trace
