"""PTX text to a Kernel: parameters, registers, shared variables, and instructions with scopes resolved.

Only the syntax that NVVM and inline assembly use is understood. Anything else is an error, never skipped.

Source: PTX ISA 8.7, "Syntax", "State Spaces, Types, and Variables".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .faults import PtxError

IDENTIFIER = re.compile(r"[%$A-Za-z_][\w$@]*(?:\.[xyz])?")
LABEL = re.compile(r"(?:^|[;{}])\s*([A-Za-z_$][\w$]*):(?!:)")


@dataclass(slots=True)
class Instruction:
    """One instruction; ``line`` is its line in the text, ``text`` what stands there."""

    opcode: str
    operands: list[str]
    guard: str | None  # name of a predicate register
    negated: bool
    line: int
    text: str

    @property
    def parts(self) -> list[str]:
        """The opcode's name and qualifiers."""
        return self.opcode.split(".")


@dataclass(slots=True)
class SharedVariable:
    """A variable in shared memory; ``size`` is None where the launch says it."""

    name: str
    align: int
    size: int | None


@dataclass(slots=True)
class Kernel:
    """The entry of a module."""

    name: str
    target: str
    params: list[tuple[str, str]] = field(default_factory=list)  # (name, type)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    shared: list[SharedVariable] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    most_threads: int = 1024


def parse(text: str) -> Kernel:
    """The only entry of a module. Raises PtxError for a module that has more, or anything unknown."""
    body = _without_comments(text)
    target, entry = re.search(r"\.target\s+(\w+)", body), re.search(r"\.entry\s+([\w$]+)\s*\(", body)
    if not target or not entry or len(re.findall(r"\.entry\b", body)) != 1 or re.search(r"\.func\b", body):
        raise PtxError("a module with one entry and no functions is expected")
    kernel = Kernel(entry[1], target[1])
    for statement in body[: entry.start()].split(";"):
        statement = re.sub(r"\.(version|target|address_size)\s+[\w.]+", "", statement).replace(".visible", "").strip()
        if statement.startswith((".extern .shared", ".shared")):
            kernel.shared.append(_shared_variable(statement))
        elif statement:
            raise PtxError(f"outside the entry: {statement}")
    end = body.index(")", entry.end())
    for param in filter(str.strip, body[entry.end() : end].split(",")):
        match = re.fullmatch(r"\.param\s+\.(\w+)\s+([\w$]+)", param.strip())
        if not match:
            raise PtxError(f"parameter: {param}")
        kernel.params.append((match[2], match[1]))
    start = body.index("{", end)
    if match := re.search(r"\.(?:maxntid|reqntid)\s+(\d+)\s*(?:,\s*(\d+)\s*,\s*(\d+))?", body[end + 1 : start]):
        kernel.most_threads = int(match[1]) * int(match[2] or 1) * int(match[3] or 1)
    _Body(kernel, body, start + 1).read()
    return kernel


def split_operands(text: str) -> list[str]:
    """Operands between commas that are not in braces or brackets."""
    found, depth, current = [], 0, ""
    for c in text:
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += c
    return [*found, current.strip()] if current.strip() else found


def _without_comments(text: str) -> str:
    """Lines stay as they are."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text.replace("\0", ""), flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def _shared_variable(text: str) -> SharedVariable:
    pattern = r"(?:\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\[(\d*)\]"
    match = re.fullmatch(pattern, text.strip())
    if not match:
        raise PtxError(f"shared variable: {text}")
    width = int(re.sub(r"\D", "", match[2])) // 8
    return SharedVariable(match[3], int(match[1] or width), int(match[4]) * width if match[4] else None)


class _Body:
    """The statements of an entry, with scopes."""

    def __init__(self, kernel: Kernel, text: str, at: int) -> None:
        self.kernel, self.text, self.at = kernel, text, at
        self.scopes: list[dict[str, str]] = [{}]
        self.count = 0

    def read(self) -> None:
        """Fill the kernel."""
        current, depth, begin = "", 0, self.at
        for place in range(self.at, len(self.text)):
            c = self.text[place]
            is_start = not current.strip()
            if is_start:
                begin = place
            if c == "{" and is_start:
                self.count += 1
                self.scopes.append({})
                self._find_labels(place + 1)
            elif c == "}" and is_start:
                if len(self.scopes) == 1:
                    break
                self.scopes.pop()
            elif c == ";" and depth == 0:
                self._statement(current.strip(), self.text.count("\n", 0, begin) + 1)
                current = ""
            elif c == ":" and re.fullmatch(r"\s*[\w$%]+", current) and self.text[place + 1] != ":":
                self.kernel.labels[self._name(current.strip())] = len(self.kernel.code)
                current = ""
            else:
                depth += (c == "{") - (c == "}")
                current += c
        for instruction in self.kernel.code:
            if instruction.opcode.startswith("bra") and instruction.operands[0] not in self.kernel.labels:
                raise PtxError(f"no label {instruction.operands[0]}")

    def _find_labels(self, begin: int) -> None:
        """A scope's labels are known in all of it."""
        depth, end = 1, begin
        while depth:
            depth += (self.text[end] == "{") - (self.text[end] == "}")
            end += 1
        for match in LABEL.finditer(self.text[begin : end - 1]):
            self.scopes[-1][match[1]] = f"{match[1]}@{self.count}"

    def _name(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def _statement(self, text: str, line: int) -> None:
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith(".shared"):
            self.kernel.shared.append(_shared_variable(text))
        elif text.startswith("."):
            if not text.startswith(".pragma"):
                raise PtxError(f"line {line}: {text}")
        else:
            self._instruction(text, line)

    def _declare(self, text: str) -> None:
        match = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.S)
        if not match:
            raise PtxError(text)
        for name in split_operands(match[2]):
            if many := re.fullmatch(r"([%\w]+)<(\d+)>", name):
                self.kernel.registers |= {f"{many[1]}{i}": match[1] for i in range(int(many[2]))}
            elif len(self.scopes) > 1:
                self.scopes[-1][name] = f"{name}@{self.count}"
                self.kernel.registers[f"{name}@{self.count}"] = match[1]
            else:
                self.kernel.registers[name] = match[1]

    def _instruction(self, text: str, line: int) -> None:
        match = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", text, re.S)
        if not match:
            raise PtxError(f"line {line}: {text}")
        operands = [IDENTIFIER.sub(lambda m: self._name(m[0]), operand) for operand in split_operands(match[4] or "")]
        guard = self._name(match[2]) if match[2] else None
        self.kernel.code.append(Instruction(match[3], operands, guard, match[1] == "!", line, " ".join(text.split())))
