"""`MixedOp` as in PC-DARTS: eight candidates on C/4 channels, constructor MixedOp(C, stride)."""

from da2s_fast.nn.mixed_op import DARTS_PRIMITIVES
from da2s_fast.nn.mixed_op import MixedOp as _MixedOp

PRIMITIVES = DARTS_PRIMITIVES


class MixedOp(_MixedOp):
    """The eight candidates of DARTS on a quarter of the channels; see `da2s_fast.MixedOp`."""

    def __init__(self, C: int, stride: int) -> None:
        super().__init__(C, stride, primitives=PRIMITIVES, partial_channels=4)
