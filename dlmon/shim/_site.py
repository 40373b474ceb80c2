"""What the value of a call is assigned to: a small walk over the bytecode that follows the call.

Runs in: rank, once per place that builds a loader. On failure: nowhere, and the place is the name.

Bytecode, because the source need not be there (a zip, a notebook, `exec`), and because it says
which of two calls on one line is meant.
"""

from __future__ import annotations

import dis
import functools
import sys
from types import CodeType
from typing import Any, NamedTuple

MOST_STEPS = 500
"""Instructions followed before giving up."""

_STORES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF")
_NO_EFFECT = ("NOP", "CACHE", "PRECALL", "KW_NAMES", "EXTENDED_ARG", "RESUME")
_RESULTLESS = ("STORE_", "POP_", "RETURN_", "DELETE_", "LIST_", "SET_", "MAP_", "DICT_")
_LOOPS = ("JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE")
_ADDS = ("LIST_APPEND", "SET_ADD", "MAP_ADD")
_CONTAINERS = ("BUILD_LIST", "BUILD_TUPLE", "BUILD_SET")


class Target(NamedTuple):
    """Where a value goes.

    Attributes:
        name: What it is called there, None if that is not to be seen.
        returned: The function returns it, alone or as an item of a list or tuple.
        item: Which item, None if it is alone.
        dropped: Nowhere: it is a statement's value.
        collected: Under a key that is not the same each time.
    """

    name: str | None = None
    returned: bool = False
    item: int | None = None
    dropped: bool = False
    collected: bool = False


@functools.lru_cache(maxsize=256)
def target(code: CodeType, offset: int, item: int | None = None) -> Target:
    """Return where the result of the call at `offset` goes.

    Args:
        code: What is being executed.
        offset: Of the call: `frame.f_lasti`.
        item: The call returns a list or tuple, and this one in it is meant.
    """
    try:
        steps = list(dis.get_instructions(code))
    except ValueError:  # a number too long to be shown
        return Target()
    start = next((n for n, step in enumerate(steps) if step.offset > offset), len(steps))
    return _Walk(steps, start, code.co_consts, item).run()


def _loaded(step: dis.Instruction, pushes: int) -> list[dis.Instruction | None]:
    """Return what an instruction loads, by item; from 3.13 on one may load two variables."""
    if step.opname.startswith("LOAD_FAST_") and isinstance(step.argval, tuple):
        return [step._replace(opname="LOAD_FAST", argval=name) for name in step.argval]
    return [step if step.opname.startswith("LOAD_") else None] * pushes


def _loads_method(step: dis.Instruction) -> bool:
    """Return whether LOAD_ATTR is what LOAD_METHOD was before Python 3.12."""
    return sys.version_info >= (3, 12) and bool((step.arg or 0) & 1)


class _Walk:
    """Follows one value on the stack; `above` is what was loaded on top of it, None if unknown."""

    def __init__(
        self,
        instructions: list[dis.Instruction],
        start: int,
        constants: tuple[object, ...],
        item: int | None,
    ) -> None:
        self._instructions = instructions
        self._at = start
        self._constants = constants
        self._item = item
        self._above: list[dis.Instruction | None] = []
        self._keywords: tuple[str, ...] = ()
        self._method = False
        self._collected = False

    def run(self) -> Target:
        for _ in range(MOST_STEPS):
            if self._at >= len(self._instructions):
                break
            step = self._instructions[self._at]
            self._at += 1
            if step.opname == "JUMP_FORWARD":
                self._jump(step.argval)
            elif (found := self._follow(step)) is not None:
                return found._replace(collected=found.collected or self._collected)
        return Target()

    def _jump(self, offset: int) -> None:
        steps = enumerate(self._instructions)
        self._at = next((n for n, i in steps if i.offset == offset), len(self._instructions))

    def _follow(self, step: dis.Instruction) -> Target | None:
        """Apply one instruction; return where the value went if that is decided now."""
        name, above = step.opname, self._above
        if name == "KW_NAMES":
            self._keywords = tuple(map(str, self._constant(step, ())))
        if name in _NO_EFFECT:
            return None
        if name == "SWAP" or name.startswith("ROT_"):
            return self._rotate(step)
        if not above and name in ("COPY", "DUP_TOP"):  # a = b = …: the copy is followed
            return None
        if not above and name == "UNPACK_SEQUENCE" and self._item is not None:
            above.extend([None] * self._item)
            self._item = None
            return None
        pops = self._pops(step)
        if pops > len(above):
            return self._consume(step, pops)
        pushes = pops + dis.stack_effect(step.opcode, step.arg, jump=False)
        if name == "CALL":
            pushes = 1
        if pops:
            del above[-pops:]
        above.extend(_loaded(step, pushes))
        return None

    def _rotate(self, step: dis.Instruction) -> Target | None:
        """Exchange the places of what lies on top: SWAP exchanges two, ROT lets the top sink."""
        depth = len(self._above)
        if step.opname == "SWAP":
            other = (step.arg or 1) - 1
            new = other if depth == 0 else 0 if depth == other else depth
        else:
            last = {"ROT_TWO": 1, "ROT_THREE": 2, "ROT_FOUR": 3}.get(step.opname, 0)
            new = last if depth == 0 else depth - 1 if depth <= last else depth
        self._above[:] = [None] * new
        return None

    @staticmethod
    def _pops(step: dis.Instruction) -> int:
        """Return how many items an instruction takes from the stack."""
        if step.opname == "CALL":
            return (step.arg or 0) + 2
        effect = dis.stack_effect(step.opcode, step.arg, jump=False)
        if step.opname in ("LOAD_METHOD", "STORE_FAST_LOAD_FAST"):
            return 1
        if step.opname == "LOAD_ATTR":
            return 1
        return -effect if step.opname.startswith(_RESULTLESS) else max(0, 1 - effect)

    def _append(self, step: dis.Instruction) -> None:
        """Follow the list, set or dict that the value is added to, past the loops that fill it."""
        self._collected, self._item = True, None
        self._above.clear()
        by_offset = {i.offset: i for i in self._instructions}
        for _ in range((step.arg or 1) - 1):  # that many iterators lie between
            rest = self._instructions[self._at :]
            back = next((i for i in rest if i.opname in _LOOPS), None)
            loop = by_offset.get(back.argval) if back is not None else None
            if loop is None or loop.opname != "FOR_ITER":
                self._at = len(self._instructions)
                return
            self._jump(loop.argval)
            self._skip("END_FOR")  # from 3.12 on
            if sys.version_info >= (3, 13):
                self._skip("POP_TOP", "POP_ITER")

    def _skip(self, *names: str) -> None:
        if self._at < len(self._instructions) and self._instructions[self._at].opname in names:
            self._at += 1

    def _consume(self, step: dis.Instruction, pops: int) -> Target | None:
        """Return where an instruction that takes the value puts it; None: it is followed on."""
        name, depth = step.opname, len(self._above)
        if name in ("POP_TOP", "RETURN_VALUE") and not depth:
            returned = name == "RETURN_VALUE"
            return Target(returned=returned, item=self._item, dropped=not returned)
        if name in _ADDS and not depth:
            self._append(step)
            return None
        if name.startswith("STORE_"):
            return self._stored(step, depth)
        if name == "LOAD_METHOD" or (name == "LOAD_ATTR" and _loads_method(step)):
            self._method = True
            return None
        if name.startswith("CALL"):
            return self._passed(step, pops - 1 - depth, pops)
        if name == "BUILD_CONST_KEY_MAP":
            return self._called(self._constant(self._above[-1], ())[-depth])
        if (name in _CONTAINERS or name == "BUILD_MAP") and self._item is None:
            self._item = pops - 1 - depth if name in _CONTAINERS else None
            self._above.clear()
            return None
        return Target()

    def _stored(self, step: dis.Instruction, depth: int) -> Target:
        """Return the variable, attribute or key; in 3.13 one instruction may store two."""
        name = step.opname
        if name == "STORE_SUBSCR" and depth == 2:
            container, key = self._above
            constant = self._constant(key, None)
            if isinstance(constant, str):
                return self._called(constant)
            return self._called(container)._replace(collected=constant is None)
        if name == "STORE_ATTR" and depth == 1:
            return self._called(step.argval)
        if name in _STORES or name.startswith("STORE_FAST_"):
            names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
            return self._called(names[depth])
        return Target()

    def _passed(self, step: dis.Instruction, position: int, pops: int) -> Target | None:
        """Return the keyword that the value is an argument for; follow a method's result."""
        named_last = step.opname in ("CALL_KW", "CALL_FUNCTION_KW")  # 3.10 and from 3.13 on
        arguments = (step.arg or 0) + named_last
        if self._method and len(self._above) == arguments:
            self._method = False  # WebLoader(…).shuffle(10)
            self._above.clear()
            return None
        keywords = self._keywords
        if named_last:
            keywords = self._constant(self._above[-1], ())
        at = position - (pops - named_last - len(keywords))
        return self._called(keywords[at]) if at >= 0 else Target()

    def _constant(self, step: dis.Instruction | None, default: Any) -> Any:
        """Return the constant that an instruction refers to, whatever `dis` makes of it."""
        if step is None or step.arg is None or step.opname not in ("LOAD_CONST", "KW_NAMES"):
            return default
        return self._constants[step.arg]

    def _called(self, name: object) -> Target:
        if isinstance(name, dis.Instruction):  # the container that it is put into
            name = name.argval
        if not isinstance(name, str):
            return Target()
        return Target(name if self._item is None else f"{name}[{self._item}]")
