"""Training on many processes over MPI, with the same bits on any number of them.

`mpirun -n 4 python train.py` starts four ranks. Without a launcher, the same program runs as one process.
"""

from fastvar.distributed.checkpoint import Checkpoint as Checkpoint
from fastvar.distributed.manager import CheckpointManager as CheckpointManager
from fastvar.distributed.meeting import Ended as Ended
from fastvar.distributed.optimizer import Distributed as Distributed
from fastvar.distributed.world import World as World
from fastvar.distributed.world import simulate as simulate
from fastvar.distributed.world import world as world

__all__ = ["Checkpoint", "CheckpointManager", "Distributed", "Ended", "World", "simulate", "world"]
