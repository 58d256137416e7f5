from fastvar.kernels.baseline import RULES as RULES
from fastvar.kernels.baseline import CompiledRule as CompiledRule
from fastvar.kernels.baseline import Plan as Plan
