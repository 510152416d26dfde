"""In which order lanes of a kernel run, so that those that parted meet again as early as they can.

Compilers lay blocks out as they like: the place where two branches meet may come before one of
them. A GPU's compiler finds it in the flow of control, and so is it here: every block has a *turn*,
and lanes with the earliest turn run first. Blocks of a loop have their turns before whatever comes
behind the loop, and lanes that jump back to a loop's first block wait there until all others of the
loop have come (the weak topological order of F. Bourdoncle, *Efficient chaotic iteration strategies
with widenings*, 1993).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.gpu.ptx.parse import Instruction, Kernel, Name

# Behind these a group may have become several.
_PART = ("bra", "ret", "exit", "bar", "barrier", "mbarrier", "cp", "nanosleep")
# Lanes of other warps may wait for what these do.
_TELL = ("st", "atom", "red", "stmatrix", "cp", "bar", "barrier", "mbarrier")


@dataclass(frozen=True)
class Order:
    """Turns of a kernel's blocks.

    Attributes:
        block: of every instruction.
        turns: of every block.
        back: (from, to) of jumps to the first block of a loop from inside -> the turn of waiting.
        tells: whether a block does what lanes of other warps may wait for.
    """

    block: list[int]
    turns: list[int]
    back: dict[tuple[int, int], int]
    tells: list[bool]

    def turn(self, source: int, target: int) -> int:
        """Of lanes that go from one instruction to another one."""
        blocks = self.block[source], self.block[target]
        return self.back.get(blocks, self.turns[blocks[1]])


def order_of(kernel: Kernel) -> Order:
    """Find the turns."""
    instructions = kernel.instructions
    leaders = {0, *kernel.labels.values()}
    leaders |= {i + 1 for i, one in enumerate(instructions) if one.opcode[0] in _PART}
    starts = sorted(leader for leader in leaders if leader < len(instructions))
    ends = [*starts[1:], len(instructions)]
    block: list[int] = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        block += [number] * (end - start)
    # Whoever is past the last instruction is done.
    block.append(len(starts))
    follow = [_targets(kernel, instructions[end - 1], end) for end in ends]
    edges = [sorted({block[target] for target in own}) for own in follow] + [[]]
    turns = [0] * len(edges)
    back: dict[tuple[int, int], int] = {}
    _number(edges, range(len(edges)), 0, turns, back)
    tells = [
        any(one.opcode[0] in _TELL and "local" not in one.opcode for one in instructions[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]
    return Order(block, turns, back, [*tells, False])


def _targets(kernel: Kernel, last: Instruction, following: int) -> list[int]:
    """Where lanes go from a block's last instruction."""
    name = last.opcode[0]
    targets = []
    if name == "bra" and isinstance(last.operands[0], Name):
        targets.append(kernel.labels[last.operands[0].name])
    if name not in ("bra", "ret", "exit") or last.predicate is not None:
        targets.append(following)
    return targets


def _number(
    edges: Sequence[Sequence[int]],
    among: Iterable[int],
    turn: int,
    turns: list[int],
    back: dict[tuple[int, int], int],
) -> int:
    """Give turns from `turn` on to the blocks `among`; return the next one."""
    for part in _components(edges, list(among)):
        first = part[0]
        turns[first] = turn
        turn += 1
        inside = set(part)
        ends = [block for block in part if first in edges[block]]
        if not ends:
            continue
        without = [
            [to for to in own if to != first and to in inside] if block in inside else []
            for block, own in enumerate(edges)
        ]
        # From where the loop is entered on: so are the loops inside.
        entries = [to for to in without[first] if to in inside]
        turn = _number(without, dict.fromkeys([*entries, *part[1:]]), turn, turns, back)
        back.update(dict.fromkeys(((end, first) for end in ends), turn))
        turn += 1
    return turn


def _components(edges: Sequence[Sequence[int]], among: Sequence[int]) -> list[list[int]]:
    """Strongly connected components, those first that lead to others; their entry first in each.

    `among` begins with the blocks that are entered.
    """
    allowed = set(among)
    found: set[int] = set()
    finished: list[int] = []
    for root in among:
        stack = [] if root in found else [(root, iter(edges[root]))]
        found.add(root)
        while stack:
            block, rest = stack[-1]
            following = next((to for to in rest if to in allowed and to not in found), None)
            if following is None:
                finished.append(block)
                stack.pop()
            else:
                found.add(following)
                stack.append((following, iter(edges[following])))
    reverse: dict[int, list[int]] = {block: [] for block in among}
    for block in among:
        for to in edges[block]:
            if to in allowed:
                reverse[to].append(block)
    components: list[list[int]] = []
    taken: set[int] = set()
    # Whoever finished last, of a component not yet taken, is where it is entered.
    for root in reversed(finished):
        if root in taken:
            continue
        taken.add(root)
        part = [root]
        for block in part:
            fresh = [b for b in reverse[block] if b not in taken]
            taken.update(fresh)
            part += fresh
        components.append(part)
    return components
