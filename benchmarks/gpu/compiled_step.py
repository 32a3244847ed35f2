"""Count the kernels a compiled training step launches and the bytes it moves, from its HLO text.

XLA's own ``cost_analysis`` does not cover library calls (on a GPU: convolutions and matrix
products), so kernels and bytes are counted here, from the shapes of the launched instructions.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

#: Instructions that name or regroup values and launch nothing.
_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_PART_READERS = {"slice", "dynamic-slice", "gather"}


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str  # text after the operands; for a parameter or constant, the text in parentheses

    def called(self, attribute: str) -> list[str]:
        """Return the computations that an attribute names: ``body=%a`` or ``branches={%a, %b}``."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
        return re.findall(r"%?([\w.\-]+)", match[1]) if match else []


class Cost(NamedTuple):
    kernels: int
    moved: int  # bytes

    def plus(self, other: Cost) -> Cost:
        return Cost(self.kernels + other.kernels, self.moved + other.moved)


class Program:
    """The computations of a compiled module, parsed from its text."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] | None = None
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
            if header and "->" in line:
                current = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and " = " in line:
                current.append(_instruction(line))
        self.cost_of = cache(self._cost_of)

    def loop_step(self) -> Cost:
        """Return the cost of one iteration (body and condition) of the loop with most kernels."""
        loops = [i for i in self.computations[self.entry] if i.opcode == "while"]
        return max(
            (self._turn(instruction) for instruction in loops), default=self.cost_of(self.entry)
        )

    def _turn(self, loop: Instruction) -> Cost:
        (body,), (condition,) = loop.called("body"), loop.called("condition")
        return self.cost_of(body).plus(self.cost_of(condition))

    def _cost_of(self, computation: str) -> Cost:
        instructions = self.computations[computation]
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        total = Cost(0, 0)
        for instruction in instructions:
            total = total.plus(self._launched(instruction, shapes))
        return total

    def _launched(self, instruction: Instruction, shapes: dict[str, str]) -> Cost:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            return Cost(0, 0)
        if opcode == "while":
            trips = re.search(r'known_trip_count[^0-9]*"(\d+)"', instruction.rest)
            turn = self._turn(instruction)
            times = int(trips[1]) if trips else 1
            return Cost(turn.kernels * times, turn.moved * times)
        if opcode == "conditional":
            branches = [
                name
                for attribute in ("branch_computations", "true_computation", "false_computation")
                for name in instruction.called(attribute)
            ]
            return max(self.cost_of(name) for name in branches)
        inner = instruction.called("to_apply" if opcode == "call" else "calls")
        if opcode in ("call", "async-start"):  # command buffers (CUDA graphs) are calls, too
            return self.cost_of(inner[0])
        operands = [shapes.get(name, "") for name in instruction.operands]
        if opcode == "fusion":
            return Cost(1, self._read(inner[0], operands) + self._written(inner[0]))
        shape = instruction.shape
        if opcode == "custom-call":
            shape = re.sub(r"\b[su]8\[\d+\]", "", shape)  # its workspace
        return Cost(1, sum(map(_bytes, operands)) + _bytes(shape))

    def _read(self, fused: str, operands: list[str]) -> int:
        """Return the bytes that a fusion reads; for operands that it only slices, the slices."""
        instructions = self.computations[fused]
        total = 0
        for instruction in instructions:
            if instruction.opcode == "parameter":
                size = _bytes(operands[int(instruction.rest)])
                total += min(size, _used(instructions, instruction.name, size))
        return total

    def _written(self, fused: str) -> int:
        """Return the bytes that a fusion writes; for in-place updates, only the update."""
        instructions = {instruction.name: instruction for instruction in self.computations[fused]}

        def written(name: str) -> int:
            instruction = instructions[name]
            if instruction.opcode == "tuple":
                return sum(map(written, instruction.operands))
            if instruction.opcode == "bitcast":
                return written(instruction.operands[0])
            if instruction.opcode == "dynamic-update-slice":
                return _bytes(instructions[instruction.operands[1]].shape)
            return _bytes(instruction.shape)

        return written(self.computations[fused][-1].name)  # the root stands last


def _used(instructions: list[Instruction], name: str, size: int) -> int:
    """Return the bytes of a fusion's parameter that its users read."""
    total = 0
    for user in instructions:
        if name not in user.operands:
            continue
        if user.opcode == "bitcast":
            total += _used(instructions, user.name, size)
        elif user.opcode in _PART_READERS and user.operands[0] == name:
            total += _bytes(user.shape)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            return size
    return total


def _instruction(line: str) -> Instruction:
    name, _, definition = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(definition, 0) + 1 if definition.startswith("(") else definition.index(" ")
    shape, call = definition[:end], definition[end:].strip()
    start = call.index("(")
    close = _closing(call, start)
    opcode, arguments, rest = call[:start], call[start + 1 : close], call[close + 1 :]
    operands = re.findall(r"%([\w.\-]+)", arguments)
    if opcode in ("parameter", "constant"):
        operands, rest = [], arguments
    return Instruction(name.removeprefix("%"), shape, opcode, operands, rest)


def _closing(text: str, start: int) -> int:
    """Return the index where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text)


def _bytes(shape: str) -> int:
    """Return the bytes of a shape such as ``bf16[16,32]{1,0}``, or of a tuple of shapes."""
    total = 0
    for kind, sizes in re.findall(r"\b([a-z]+[a-z0-9]*)\[([\d,]*)\]", shape):
        bits = re.match(r"[a-z]+(\d+)", kind)
        count = 8 if kind == "pred" else int(bits[1]) if bits else 0
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count // 8
    return total
