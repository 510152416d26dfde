"""Networks: candidate operations, mixed operations, cells, super-networks."""

from da2s_fast.nn.architecture import ArchitectureParameters, EdgeMode
from da2s_fast.nn.cell import Cell, Mixture
from da2s_fast.nn.mixed_op import DARTS_PRIMITIVES, MixedOp
from da2s_fast.nn.operations import OPERATIONS, create_operation, register_operation
from da2s_fast.nn.super_network import DenseCell, NasBench201SuperNetwork, SuperNetwork
from da2s_fast.ops import use_backend

__all__ = [
    "DARTS_PRIMITIVES",
    "OPERATIONS",
    "ArchitectureParameters",
    "Cell",
    "DenseCell",
    "EdgeMode",
    "MixedOp",
    "Mixture",
    "NasBench201SuperNetwork",
    "SuperNetwork",
    "create_operation",
    "register_operation",
    "use_backend",
]
