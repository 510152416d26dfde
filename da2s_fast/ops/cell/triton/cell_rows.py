"""What the kernels are told of layers, candidates and inputs: the rows of their tables."""

from __future__ import annotations

from da2s_fast.kernels.cell import rows
from da2s_fast.kernels.cell.rows import Group, Layer, Part
from da2s_fast.ops.cell.operations import CONVS, DENSE, NONE, POOLS, SKIP
from da2s_fast.ops.cell.plan import EdgePlan
from da2s_fast.ops.cell.triton.layout import Key, Layout


class CellRows:
    """The rows of one cell.

    Args:
        layout: where everything is.
        frozen: norms whose statistics are given.
    """

    def __init__(self, layout: Layout, frozen: frozenset[int]) -> None:
        self.layout, self.plan, self.frozen = layout, layout.plan, frozen

    def input_sums(self, position: int) -> Layer:
        """A preprocessed input itself, of whose gradient only sums are taken."""
        layout = self.layout
        height, width = layout.before
        return Layer(
            source=layout.states[position],
            height=height,
            width=width,
            gradient=layout.gradients[position],
            sums=layout.input_sums[position],
            inner_gradient=layout.beside.get(position, 0),
        )

    def input(self, position: int) -> Part:
        """An input without its convolutions."""
        slot = self.plan.preprocess_norms.get(position)
        layout = self.layout
        part = Part(
            position,
            state=layout.states[position],
            gradient=layout.gradients[position],
            sums=layout.input_sums[position],
            cout=self.plan.channels,
        )
        if slot is None:
            return part
        return part._replace(
            cin=layout.sizes[position][0],
            z=layout.prepared[0][position],
            moments=layout.input_moments[position],
            statistics=layout.norms[slot],
            frozen=int(slot in self.frozen),
        )

    def parts(self, position: int) -> list[Part]:
        """The convolutions of an input's preprocessing."""
        at = self.layout.weights[self.plan.preprocess_weights(position)]
        part = self.input(position)
        if self.plan.preprocess[position] == "conv":
            return [part._replace(product=at[0])]
        half = self.plan.channels // 2
        return [
            part._replace(product=at[0], cout=half, stride=2),
            part._replace(product=at[1], cout=part.cout - half, column=half, stride=2, shift=1),
        ]

    def group(self, state: int, first: int, length: int) -> Group:
        """A state, and its rows among others."""
        node = state >= self.plan.inputs
        return Group(
            first,
            length,
            self.layout.states[state],
            self.layout.gradients[state],
            self.plan.partial_channels if node else 1,
        )

    def _at(self, edge: EdgePlan, operation: str = "") -> Layer:
        """What every row of an edge has in common."""
        plan, layout = self.plan, self.layout
        height, width = layout.size(edge.source)
        return Layer(
            source=layout.states[edge.source],
            height=height,
            width=width,
            stride=edge.stride,
            cout=plan.mixed_channels,
            edge=edge.row,
            operation=plan.operations.index(operation) if operation else 0,
            gradient=layout.gradients[edge.target],
            gradient_pitch=plan.channels,
            sums=layout.sums[edge.row, operation, 1] if operation else layout.bypass_sums[edge.row],
        )

    def _norm(self, edge: EdgePlan, operation: str, half: int) -> tuple[int, int]:
        """Where the statistics are and whether they are given; -1 without a norm."""
        slots = range(*self.plan.norm_slots[edge.row, operation].indices(len(self.layout.norms)))
        if not slots:
            return -1, 0
        slot = slots[0] if half == 0 else slots[-1]
        return self.layout.norms[slot], int(slot in self.frozen)

    def _layer(self, edge: EdgePlan, operation: str, half: int) -> list[Layer]:
        """A convolution's rows, two for FactorizedReduce, whose weights follow one another."""
        layout, key = self.layout, (edge.row, operation, half)
        statistics, frozen = self._norm(edge, operation, half)
        at = layout.weights[self.plan.weight_slots[edge.row, operation]]
        row = self._at(edge, operation)._replace(
            z=layout.z[key],
            moments=layout.moments[key],
            statistics=statistics,
            frozen=frozen,
            reached=layout.reached[key],
        )
        if operation == SKIP:
            half_channels = row.cout // 2
            row = row._replace(kind=rows.DENSE.value)
            return [
                row._replace(product=at[0], cout=half_channels),
                row._replace(
                    product=at[1],
                    cout=row.cout - half_channels,
                    column=half_channels,
                    padding=-1,
                ),
            ]
        if operation in DENSE:
            k = DENSE[operation]
            return [row._replace(kind=rows.DENSE.value, kernel=k, padding=k // 2, product=at[0])]
        conv = CONVS[operation]
        row = row._replace(
            kind=rows.SEPARABLE.value,
            kernel=conv.kernel,
            dilation=conv.dilation,
            padding=conv.padding,
            spatial=at[2 * (half and conv.twice)],
            product=at[2 * (half and conv.twice) + 1],
        )
        if conv.twice:
            row = self._half(row, (edge.row, operation, 0), edge, half)
        return [row]

    def _half(self, row: Layer, first: Key, edge: EdgePlan, half: int) -> Layer:
        """A separable convolution's first or second layer."""
        layout = self.layout
        inner, sums = layout.inner[first], layout.sums[first]
        if half == 0:
            return row._replace(
                edge=-1,
                gradient=inner,
                gradient_pitch=self.plan.mixed_channels,
                sums=sums,
            )
        place, frozen = self._norm(edge, first[1], 0)
        height, width = layout.after
        return row._replace(
            source=layout.z[first],
            height=height,
            width=width,
            stride=1,
            inner=place,
            inner_moments=layout.moments[first],
            inner_frozen=frozen,
            inner_gradient=inner,
            inner_sums=sums,
        )

    def first(self, edge: EdgePlan) -> list[Layer]:
        """First layers of an edge."""
        keys = self.layout.first_layers(edge)
        return [row for _, name, half in keys for row in self._layer(edge, name, half)]

    def pool(self, edge: EdgePlan, operation: str) -> Layer:
        """A pool, which is that of all edges from its state."""
        layout, key = self.layout, (edge.source, operation)
        statistics, frozen = self._norm(edge, operation, 1)
        kind = rows.MAXIMUM if operation.startswith("max") else rows.AVERAGE
        return self._at(edge, operation)._replace(
            kind=kind.value,
            kernel=3,
            padding=1,
            z=layout.pools[key],
            position=layout.positions.get(edge.source, 0),
            moments=layout.pool_moments[key],
            statistics=statistics,
            frozen=frozen,
        )

    def candidates(self, edge: EdgePlan) -> list[Layer]:
        """All candidates of an edge, by their last layers."""
        found: list[Layer] = []
        for name in self.plan.candidates(edge):
            if name in POOLS:
                found.append(self.pool(edge, name))
            elif name == NONE:
                found.append(self._at(edge, name)._replace(kind=rows.NOTHING.value))
            elif name == SKIP and edge.stride == 1:
                found.append(self._at(edge, name)._replace(kind=rows.SKIP.value))
            else:
                found += self._layer(edge, name, 1)
        return found

    def bypass(self, edge: EdgePlan) -> Layer:
        """What goes past an edge's candidates."""
        return self._at(edge)._replace(kind=rows.BYPASS.value)
