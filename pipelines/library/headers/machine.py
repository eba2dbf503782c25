"""Pickles as data. Walks the opcodes of a pickle with names for functions and records for calls: nothing is imported,
nothing is called, and a name that no weights file needs (see names.py) ends the walk with a sentence that tells it.

Opcodes: https://docs.python.org/3/library/pickletools.html
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from pipelines.errors import BadModel
from pipelines.library.headers.names import STORAGES, Name, allowed

MOST_OPCODES = 20_000_000
"""A checkpoint has about 50,000."""


class Record(NamedTuple):
    """What REDUCE and its like would have called."""

    name: str
    arguments: tuple[Any, ...]


class Storage(NamedTuple):
    """What a persistent id stands for: a block of raw numbers elsewhere in the file."""

    key: str
    dtype: str
    elements: int


class _Mark(NamedTuple):
    """Where a list of arguments begins on the stack."""


class Machine:
    """One pickle. `walk` gives the value at its end, built from dicts, lists, tuples, numbers, names and records."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def walk(self, file: IO[bytes] | bytes) -> Any:
        """Leaves the file behind the pickle. Raises BadModel for what is damaged or wants to run something."""
        try:
            for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if number > MOST_OPCODES:
                    raise BadModel("Its list of tensors is too long to be that of a model.")
                self._step(opcode.name, argument)
            return self._stack.pop()
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise BadModel("It is damaged, or no torch file: its list of tensors cannot be read.") from error

    def _step(self, name: str, argument: Any) -> None:
        if action := ACTIONS.get(name):
            action(self, argument)
        elif name not in IGNORED:
            raise BadModel(f"It is no file of weights: its list of tensors uses the pickle instruction {name}.")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def items(self) -> list[Any]:
        """All above the last mark, which goes too."""
        for index in range(len(self._stack) - 1, -1, -1):
            if isinstance(self._stack[index], _Mark):
                found = self._stack[index + 1 :]
                del self._stack[index:]
                return found
        raise IndexError("no mark")

    def drop(self) -> None:
        self.items()

    def top(self) -> Any:
        return self._stack[-1]

    def remember(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self.top()

    def recall(self, index: int) -> None:
        self.push(self._memo[index])


def _named(text: Any) -> Name:
    if not isinstance(text, Name):
        raise TypeError("what is called is no name")
    return text


def _reduce(machine: Machine, _: Any) -> None:
    arguments, function = machine.pop(), _named(machine.pop())
    machine.push(_build(function.text, tuple(arguments)))


def _build(function: str, arguments: tuple[Any, ...]) -> Any:
    """Containers become plain ones, all else a record. An OrderedDict comes empty and is filled afterwards."""
    if function in ("collections.OrderedDict", "collections.defaultdict", "collections.Counter"):
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], str | int)}
    return Record(function, arguments)


def _new(machine: Machine, _: Any) -> None:
    arguments, kind = machine.pop(), _named(machine.pop())
    machine.push(_build(kind.text, tuple(arguments)))


def _new_with_names(machine: Machine, _: Any) -> None:
    machine.pop()
    _new(machine, None)


def _old_object(machine: Machine, _: Any) -> None:
    kind, *arguments = machine.items()
    machine.push(_build(_named(kind).text, tuple(arguments)))


def _instance(machine: Machine, argument: str) -> None:
    module, name = argument.split(" ", 1)
    function = allowed(module, name)
    machine.push(_build(function.text, tuple(machine.items())))


def _global(machine: Machine, argument: str) -> None:
    module, name = argument.split(" ", 1)
    machine.push(allowed(module, name))


def _stack_global(machine: Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(allowed(str(module), str(name)))


def _persistent(machine: Machine, _: Any) -> None:
    """('storage', kind of storage, key, device, count of elements), as torch.save writes it."""
    word, kind, key, _device, count = machine.pop()[:5]
    if word != "storage":
        raise TypeError("no storage")
    machine.push(Storage(str(key), STORAGES.get(_named(kind).text, "U8"), int(count)))


def _set(machine: Machine, pairs: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, dict):
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(key, str | int):  # others name no tensor, and hashing may be made expensive
                target[key] = value


def _set_one(machine: Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set(machine, [key, value])


def _extend(machine: Machine, values: list[Any]) -> None:
    if isinstance(machine.top(), list):
        machine.top().extend(values)


def _append(machine: Machine, _: Any) -> None:
    value = machine.pop()
    _extend(machine, [value])


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    def action(machine: Machine, _: Any) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return action


def _dictionary(machine: Machine, _: Any) -> None:
    pairs = machine.items()
    machine.push({})
    _set(machine, pairs)


def _fresh(kind: Callable[[], Any]) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.push(kind())


def _push(machine: Machine, argument: Any) -> None:
    machine.push(argument)


CONSTANTS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)

IGNORED = {"PROTO", "FRAME", "STOP"}

ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(CONSTANTS, _push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, index: machine.remember(index)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.recall(index)),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), _fresh(list)),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": _fresh(dict),
    "EMPTY_TUPLE": _fresh(tuple),
    "MARK": _fresh(_Mark),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.items())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": lambda machine, _: machine.push(machine.items()),
    "FROZENSET": lambda machine, _: machine.push(machine.items()),
    "DICT": _dictionary,
    "APPEND": _append,
    "APPENDS": lambda machine, _: _extend(machine, machine.items()),
    "ADDITEMS": lambda machine, _: _extend(machine, machine.items()),
    "SETITEM": _set_one,
    "SETITEMS": lambda machine, _: _set(machine, machine.items()),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.drop(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _old_object,
    "REDUCE": _reduce,
    "NEWOBJ": _new,
    "NEWOBJ_EX": _new_with_names,
    "BUILD": lambda machine, _: machine.pop(),  # the state of an object: never a tensor of ours
    "BINPERSID": _persistent,
}
