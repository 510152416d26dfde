"""PTX text as instructions, registers and variables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tests.gpu.ptx.types import SIZE, dtype_of


@dataclass(frozen=True)
class Register:
    """A register; `type` is the one of its declaration."""

    name: str
    type: str
    negated: bool = False


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of an f32 or f64."""

    bits: int
    type: str  # "int", "f32" or "f64"


@dataclass(frozen=True)
class Special:
    """A predefined register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Name:
    """A variable's address, or a label."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """Operands in braces, or two joined by |."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    """[base + offset]."""

    base: Operand
    offset: int


@dataclass(frozen=True)
class Discarded:
    """The operand _: nobody wants the result."""


Operand = Register | Immediate | Special | Name | Vector | Address | Discarded


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        index: its place in the kernel, which is its program counter.
        opcode: the parts between dots.
        predicate: the register that guards it.
        line: in the PTX text, from 1.
        source: line in the kernel's source by the last .loc, or 0.
    """

    index: int
    opcode: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: Register | None
    line: int
    source: int
    text: str

    def __str__(self) -> str:
        return f"{self.text!r} (PTX line {self.line}, source line {self.source})"


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter and where it lies in the parameter space."""

    name: str
    type: str
    size: int
    offset: int


@dataclass(frozen=True)
class Variable:
    """A .shared, .local, .global or .const variable; offset counts in its space."""

    space: str
    offset: int
    size: int
    data: bytes = b""


@dataclass
class Kernel:
    """An entry of a PTX module, ready to be decoded."""

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of variables by space
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    threads: tuple[int, ...] | None = None  # .reqntid

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.size for p in self.parameters), default=0)


_VARIABLE = re.compile(
    r"(\.extern\s+)?(?:\.\w+\s+)?\.(shared|local|global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"([\w$]+)\s*(\[\d*\])?\s*(?:=\s*([^;]+))?;"
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)(?:\s+\.ptr\b[\s.\w]*?)?\s+([\w$]+)(?:\[(\d+)\])?$"
)
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<open>\{)|(?P<close>\})"
    r"|\.loc\s+\d+\s+(?P<loc>\d+)[^\n]*\n"
    r"|(?P<label>[\w$]+)\s*:(?!:)"
    r"|(?P<statement>[^;]+);"
)


def names(text: str) -> list[str]:
    """The entries of a module."""
    return re.findall(r"\.entry\s+([\w$]+)", text)


def parse(text: str, name: str | None = None) -> Kernel:
    """Read the entry `name`, or the only one."""
    entries = names(text)
    if name is None:
        (name,) = entries
    if name not in entries:
        raise ValueError(f"no kernel {name} among {entries}")
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    head = re.search(rf"\.entry\s+{re.escape(name)}\s*\(([^)]*)\)([^{{]*)\{{", text)
    if head is None:
        raise ValueError(f"cannot read the head of kernel {name}")
    kernel = Kernel(name, _parameters(head[1]))
    if threads := re.search(r"\.reqntid\s+([\d,\s]+)", head[2]):
        kernel.threads = tuple(int(n) for n in threads[1].split(","))
    end = text.find(".entry", head.end())
    end = len(text) if end < 0 else end
    _declare_variables(kernel, text[: text.find(".entry")] + text[head.end() : end])
    _read_body(kernel, text, head.end())
    return kernel


def _parameters(text: str) -> list[Parameter]:
    found: list[Parameter] = []
    end = 0
    for part in filter(None, (p.strip() for p in text.split(","))):
        match = _PARAMETER.match(part)
        if match is None:
            raise NotImplementedError(f"parameter {part!r}")
        align, kind, name, count = match.groups()
        size = SIZE[kind] * int(count or 1)
        unit = max(int(align or 1), SIZE[kind])
        end = -(-end // unit) * unit
        found.append(Parameter(name, kind, size, end))
        end += size
    return found


def _declare_variables(kernel: Kernel, text: str) -> None:
    dynamic = []
    for extern, space, align, kind, name, count, data in _VARIABLE.findall(text):
        if extern and space == "shared":
            dynamic.append(name)
            continue
        size = SIZE[kind] * (int(count.strip("[]") or 0) if count else 1)
        unit = max(int(align or 1), SIZE[kind])
        offset = -(-kernel.sizes.get(space, 0) // unit) * unit
        kernel.sizes[space] = offset + size
        values = [int(v.rstrip("Uu"), 0) for v in re.findall(r"-?\w+", data)]
        packed = np.array(values).astype(dtype_of(kind)).tobytes() if values else b""
        kernel.variables[name] = Variable(space, offset, size, packed)
    # Dynamic shared memory follows the static one; 128 bytes are the largest alignment asked for.
    kernel.sizes["shared"] = static = -(-kernel.sizes.get("shared", 0) // 128) * 128
    for name in dynamic:
        kernel.variables[name] = Variable("shared", static, 0)


class _Scopes:
    """Registers by name, innermost braces first; inner ones get names of their own."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.stack: list[dict[str, str]] = [{}]
        self.opened = 0

    def open(self) -> None:
        self.opened += 1
        self.stack.append({})

    def declare(self, text: str) -> None:
        match = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text, re.S)
        assert match is not None, text
        for item in (i.strip() for i in match[2].split(",")):
            several = re.fullmatch(r"(%?[\w$]+)<(\d+)>", item)
            for name in [f"{several[1]}{k}" for k in range(int(several[2]))] if several else [item]:
                own = name if len(self.stack) == 1 else f"{name}@{self.opened}"
                self.stack[-1][name] = own
                self.kernel.registers[own] = match[1]

    def find(self, name: str) -> str | None:
        return next((scope[name] for scope in reversed(self.stack) if name in scope), None)


def _read_body(kernel: Kernel, text: str, start: int) -> None:
    scopes = _Scopes(kernel)
    position, source = start, 0
    line, counted = text.count("\n", 0, start) + 1, start
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"{kernel.name}: the body does not end")
        position = match.end()
        if match["open"]:
            scopes.open()
        elif match["close"]:
            scopes.stack.pop()
            if not scopes.stack:
                return
        elif match["loc"]:
            source = int(match["loc"])
        elif match["label"]:
            kernel.labels[match["label"]] = len(kernel.instructions)
        elif match["statement"]:
            line += text.count("\n", counted, match.start())
            counted = match.start()
            statement = match["statement"].strip()
            if statement.startswith(".reg"):
                scopes.declare(statement)
            elif not statement.startswith("."):
                kernel.instructions.append(_instruction(kernel, statement, scopes, line, source))


def _instruction(kernel: Kernel, text: str, scopes: _Scopes, line: int, source: int) -> Instruction:
    match = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)", text, re.S)
    if match is None:
        raise NotImplementedError(f"statement {text!r} in line {line}")
    negated, guard, opcode, rest = match.groups()
    predicate = None
    if guard:
        own = scopes.find(guard)
        if own is None:
            raise ValueError(f"undeclared predicate {guard} in line {line}")
        predicate = Register(own, "pred", bool(negated))
    operands = tuple(_operand(part, scopes) for part in _split(rest)) if opcode != "call" else ()
    shown = " ".join(text.split())
    parts = tuple(opcode.split("."))
    return Instruction(len(kernel.instructions), parts, operands, predicate, line, source, shown)


def _split(text: str) -> Iterator[str]:
    """Parts between commas outside of brackets."""
    depth, start = 0, 0
    for position, character in enumerate(text):
        if character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:position].strip()
            start = position + 1
    if text[start:].strip():
        yield text[start:].strip()


_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")


def _operand(text: str, scopes: _Scopes) -> Operand:
    if text == "_":
        return Discarded()
    if text[0] == "{":
        return Vector(tuple(_operand(part, scopes) for part in _split(text[1:-1])))
    if text[0] == "[":
        inner = text[1:-1].replace("+-", "-").replace("+ -", "-")
        match = re.fullmatch(r"\s*(.+?)\s*(?:([+-])\s*(\w+)\s*)?", inner, re.S)
        assert match is not None, text
        offset = int(match[3], 0) if match[3] else 0
        return Address(_operand(match[1], scopes), -offset if match[2] == "-" else offset)
    if "|" in text:
        return Vector(tuple(_operand(part.strip(), scopes) for part in text.split("|")))
    if text[:2] in ("0f", "0F") and len(text) == 10:
        return Immediate(int(text[2:], 16), "f32")
    if text[:2] in ("0d", "0D") and len(text) == 18:
        return Immediate(int(text[2:], 16), "f64")
    if _INTEGER.match(text):
        return Immediate(int(text.rstrip("U"), 0), "int")
    if re.fullmatch(r"[-+]?\d*\.\d*(?:[eE][-+]?\d+)?", text):
        return Immediate(int(np.float64(text).view(np.uint64)), "f64")
    negated = text[0] == "!"
    own = scopes.find(text[negated:])
    if own is not None:
        return Register(own, scopes.kernel.registers[own], negated)
    if text[0] == "%" or text == "WARP_SZ":
        return Special(text)
    match = re.fullmatch(r"([\w$]+)\s*(?:\+\s*(\d+))?", text)
    if match is None:
        raise NotImplementedError(f"operand {text!r}")
    return Name(match[1], int(match[2] or 0))
