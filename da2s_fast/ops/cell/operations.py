"""The operations that a cell knows, by name: their geometry and the order of their codes."""

from __future__ import annotations

from typing import NamedTuple


class Conv(NamedTuple):
    """ReLU, depthwise k x k, pointwise, BatchNorm; `twice` makes it a separable convolution."""

    kernel: int
    dilation: int
    twice: bool

    @property
    def padding(self) -> int:
        """Keeps the size at stride 1."""
        return self.dilation * (self.kernel - 1) // 2


CONVS = {
    "sep_conv_3x3": Conv(3, 1, True),
    "sep_conv_5x5": Conv(5, 1, True),
    "sep_conv_7x7": Conv(7, 1, True),
    "dil_conv_3x3": Conv(3, 2, False),
    "dil_conv_5x5": Conv(5, 2, False),
}
DENSE = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
"""ReLU, dense k x k, BatchNorm: name -> k."""
POOLS = ("max_pool_3x3", "avg_pool_3x3")
SKIP, NONE = "skip_connect", "none"
KNOWN = (NONE, SKIP, *POOLS, *CONVS, *DENSE)
"""In the order of their codes."""
