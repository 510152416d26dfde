"""Reads genotypes. The text is split into tokens and read by hand, never evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TypeVar

from da2s_fast.errors import UserError
from da2s_fast.nn.operations import OPERATIONS
from da2s_fast.nn.topology import CellTopology, Edge
from da2s_fast.spaces.names import closest

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<integer>\d+)
      | (?P<string>'[^'\n]*'|"[^"\n]*")
      | (?P<mark>[()\[\],=])
      | (?P<unknown>.)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_CLOSING = {"(": ")", "[": "]"}
_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
# More digits than any state number needs; int() of very long digit strings is slow and limited.
_MAX_DIGITS = 9

_T = TypeVar("_T")
Cells = tuple[CellTopology, CellTopology | None]


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


class _Entry(NamedTuple):
    """(op, source) as in DARTS, or (op, source, target) in the form for imbalanced cells."""

    edge: Edge
    target: int | None
    token: _Token


def position(text: str, offset: int) -> str:
    """``"line 1, column 5"`` of a character of ``text``, both counted from 1."""
    before = text[:offset]
    return f"line {before.count(chr(10)) + 1}, column {offset - before.rfind(chr(10))}"


class _Reader:
    """A recursive-descent reader of ``Genotype(normal=[...], normal_concat=..., ...)``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [
            _Token(match.lastgroup or "", match.group(), match.start())
            for match in _TOKEN.finditer(text)
            if match.lastgroup != "space"
        ]
        self.tokens.append(_Token("end", "the end of the text", len(text)))
        self.index = 0

    def fail(self, message: str, token: _Token) -> NoReturn:
        raise UserError(f"Genotype, {position(self.text, token.offset)}: {message}")

    def peek(self) -> _Token:
        return self.tokens[self.index]

    def take(self, kind: str, wanted: str, *texts: str) -> _Token:
        """The next token, which must be of this kind and, if given, one of these texts."""
        token = self.peek()
        if token.kind != kind or (texts and token.text not in texts):
            shown = token.text if token.kind == "end" else repr(token.text)
            self.fail(f"expected {wanted}, found {shown}", token)
        self.index += 1
        return token

    def genotype(self) -> Cells:
        start = self.take("name", "'Genotype'", "Genotype")
        seen: set[str] = set()
        entries: dict[str, list[_Entry]] = {}
        concats: dict[str, tuple[Sequence[int], _Token]] = {}
        self.take("mark", "'('", "(")
        while self.peek().text != ")":
            field = self.take("name", f"one of {', '.join(_FIELDS)}", *_FIELDS)
            kind = field.text.removesuffix("_concat")
            if field.text in seen:
                self.fail(f"the field {field.text!r} appears twice", field)
            seen.add(field.text)
            self.take("mark", "'='", "=")
            if field.text == kind:
                entries[kind] = self.sequence("a list of (operation, source) pairs", self.entry)
            else:
                concats[kind] = (self.concat(), field)
            if self.peek().text != ")":
                self.take("mark", "',' or ')'", ",")
        self.take("mark", "')'", ")")
        self.take("end", "the end of the text")
        cells = {kind: self.cell(kind, entries, concats, start) for kind in ("normal", "reduce")}
        if cells["normal"] is None:
            self.fail("the fields normal and normal_concat are missing", start)
        return cells["normal"], cells["reduce"]

    def sequence(self, wanted: str, item: Callable[[], _T]) -> list[_T]:
        """A list or a tuple of items; a comma after the last one is allowed."""
        closing = _CLOSING[self.take("mark", wanted, "[", "(").text]
        items: list[_T] = []
        while self.peek().text != closing:
            items.append(item())
            if self.peek().text != closing:
                self.take("mark", f"',' or {closing!r}", ",")
        self.take("mark", repr(closing), closing)
        return items

    def integer(self, wanted: str) -> int:
        token = self.take("integer", wanted)
        if len(token.text) > _MAX_DIGITS:
            self.fail(f"the number {token.text[:20]}... is too large for a state", token)
        return int(token.text)

    def entry(self) -> _Entry:
        first = self.take("mark", "an entry such as ('sep_conv_3x3', 0)", "(", "[")
        name = self.take("string", "the name of an operation in quotes")
        operation = check_operation(name.text[1:-1], self.text, name.offset)
        self.take("mark", "','", ",")
        source = self.integer("the number of the source state")
        target = None
        if self.peek().text == ",":
            self.take("mark", "','", ",")
            target = self.integer("the number of the target state")
        closing = _CLOSING[first.text]
        self.take("mark", repr(closing), closing)
        return _Entry(Edge(operation, source), target, first)

    def concat(self) -> Sequence[int]:
        """``range(2, 6)``, ``[2, 3, 4, 5]`` or ``(2, 3, 4, 5)``."""
        wanted = "a list of states or range(first, end)"
        if self.peek().kind != "name":
            return self.sequence(wanted, lambda: self.integer("the number of a state"))
        self.take("name", wanted, "range")
        self.take("mark", "'('", "(")
        first = self.integer("the first state")
        self.take("mark", "','", ",")
        end = self.integer("the end of the range")
        self.take("mark", "')'", ")")
        return range(first, end)

    def cell(
        self,
        kind: str,
        entries: dict[str, list[_Entry]],
        concats: dict[str, tuple[Sequence[int], _Token]],
        start: _Token,
    ) -> CellTopology | None:
        if kind not in entries and kind not in concats:
            return None
        if kind not in entries or kind not in concats:
            missing = kind if kind not in entries else f"{kind}_concat"
            self.fail(f"the field {missing!r} is missing", start)
        nodes, inputs = self.nodes(kind, entries[kind], start)
        states, token = concats[kind]
        if len(states) > len(nodes):
            self.fail(f"{token.text} names more than the cell's {len(nodes)} nodes", token)
        try:
            return CellTopology(nodes, tuple(states), inputs)
        except UserError as error:
            self.fail(f"in the {kind} cell: {error}", token)

    def nodes(
        self, kind: str, entries: list[_Entry], start: _Token
    ) -> tuple[tuple[tuple[Edge, ...], ...], int]:
        """The edges of every node and the number of input states."""
        if not entries:
            self.fail(f"the {kind} cell has no edges", start)
        for entry in entries:
            if (entry.target is None) != (entries[0].target is None):
                self.fail(
                    "entries with and without a target state are mixed; "
                    "give all of them two or all of them three values",
                    entry.token,
                )
        if entries[0].target is None:
            if len(entries) % 2:
                self.fail(
                    f"the {kind} cell has {len(entries)} entries of the form (operation, source), "
                    "which come in pairs, two per node; for another number of edges write "
                    "(operation, source, target)",
                    entries[-1].token,
                )
            grouped = {2 + i // 2: entries[i : i + 2] for i in range(0, len(entries), 2)}
        else:
            grouped = {}
            for entry in entries:
                assert entry.target is not None
                grouped.setdefault(entry.target, []).append(entry)
        inputs = min(grouped)
        for state, target in enumerate(sorted(grouped), start=inputs):
            if state != target:
                self.fail(f"node {state} has no edges", grouped[target][0].token)
            for entry in grouped[state]:
                if entry.edge.source >= state:
                    self.fail(
                        f"node {state} cannot read state {entry.edge.source}; "
                        f"its sources are 0 to {state - 1}",
                        entry.token,
                    )
        return tuple(tuple(e.edge for e in grouped[state]) for state in sorted(grouped)), inputs


def check_operation(name: str, text: str, offset: int) -> str:
    """Returns ``name`` if it is a known operation, otherwise says where it stands in ``text``."""
    if name not in OPERATIONS:
        raise UserError(
            f"Genotype, {position(text, offset)}: unknown operation "
            f"{name!r}{closest(name, OPERATIONS)}; register your own with register_operation"
        )
    return name


def parse_nas_bench_201(text: str) -> Cells:
    """Reads ``|op~0|+|op~0|op~1|+...``: every node has one edge from every earlier state."""

    def fail(message: str, offset: int) -> NoReturn:
        raise UserError(f"Genotype, {position(text, offset)}: {message}")

    nodes: list[tuple[Edge, ...]] = []
    offset = 0
    for node, part in enumerate(text.split("+")):
        if len(part) < 2 or part[0] != "|" or part[-1] != "|":
            fail(f"expected the edges of a node as |op~0|...|, found {part!r}", offset)
        edges: list[Edge] = []
        where = offset + 1
        for source, item in enumerate(part[1:-1].split("|")):
            name, tilde, number = item.rpartition("~")
            if not tilde or number != str(source):
                fail(f"expected operation~{source}, found {item!r}", where)
            edges.append(Edge(check_operation(name, text, where), source))
            where += len(item) + 1
        if len(edges) != node + 1:
            fail(f"node {node + 1}: {len(edges)} edges found, {node + 1} needed", offset)
        nodes.append(tuple(edges))
        offset += len(part) + 1
    return CellTopology(tuple(nodes), concat=(len(nodes),), inputs=1), None


def parse_genotype(text: str) -> Cells:
    """The (normal, reduce) cells of a genotype in any known form.

    Raises:
        UserError: naming the offending token and its line and column.
    """
    if not isinstance(text, str):
        raise UserError(f"a genotype is read from text, but this is {type(text).__name__}")
    stripped = text.strip()
    if not stripped:
        raise UserError("the genotype is empty")
    if stripped.startswith("|"):
        return parse_nas_bench_201(stripped)
    return _Reader(text).genotype()
