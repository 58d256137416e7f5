from fastvar.kernels.baseline import RULES as RULES
from fastvar.kernels.baseline import CompiledRule as CompiledRule
from fastvar.kernels.baseline import Plan as Plan
from fastvar.kernels.baseline import max_threads as max_threads
from fastvar.kernels.baseline import openmp as openmp
