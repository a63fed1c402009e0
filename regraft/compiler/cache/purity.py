"""What a user's code may call without its result depending on more than the arguments."""

from __future__ import annotations

#: Modules of the standard library whose functions compute from their arguments, or whose effects (a
#: warning, a message) do not reach the graph.
PURE_MODULES = frozenset(
    [
        "__future__",
        "_abc",
        "_collections",
        "_collections_abc",
        "_functools",
        "_operator",
        "_typing",
        "abc",
        "array",
        "base64",
        "bisect",
        "builtins",
        "cmath",
        "collections",
        "contextlib",
        "copy",
        "copyreg",
        "dataclasses",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "heapq",
        "itertools",
        "json",
        "keyword",
        "logging",
        "math",
        "numbers",
        "operator",
        "pprint",
        "re",
        "statistics",
        "string",
        "struct",
        "textwrap",
        "types",
        "typing",
        "unicodedata",
        "warnings",
        "weakref",
    ]
)

#: Built-in functions that reach outside the program, or hide from us what they run.
IMPURE_BUILTINS = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "globals", "id", "input", "locals", "open"}
)

#: Built-in functions that find attributes by names that the code need not spell out.
DYNAMIC_BUILTINS = frozenset({"dir", "getattr", "hasattr", "vars"})

#: Attributes that do the same.
DYNAMIC_ATTRIBUTES = frozenset({"__dict__", "__getattribute__", "attrgetter", "methodcaller", "getmembers"})

#: What torch and NumPy tell that is not a function of the arguments.
IMPURE_ATTRIBUTES = {
    "torch": frozenset({"get_rng_state", "hub", "initial_seed", "load", "seed", "from_file"}),
    "numpy": frozenset({"fromfile", "genfromtxt", "load", "loadtxt", "memmap", "random"}),
}

#: Methods that Python calls without their name in the code.
IMPLICIT_METHODS = frozenset(
    f"__{name}__"
    for name in [
        "abs",
        "add",
        "and",
        "aenter",
        "aexit",
        "bool",
        "bytes",
        "call",
        "ceil",
        "complex",
        "contains",
        "delattr",
        "delete",
        "delitem",
        "divmod",
        "enter",
        "eq",
        "exit",
        "float",
        "floor",
        "floordiv",
        "format",
        "ge",
        "get",
        "getattr",
        "getattribute",
        "getitem",
        "gt",
        "hash",
        "iadd",
        "iand",
        "ifloordiv",
        "imatmul",
        "imod",
        "imul",
        "index",
        "init_subclass",
        "instancecheck",
        "int",
        "invert",
        "ior",
        "ipow",
        "isub",
        "iter",
        "itruediv",
        "le",
        "len",
        "length_hint",
        "lshift",
        "lt",
        "matmul",
        "missing",
        "mod",
        "mul",
        "ne",
        "neg",
        "next",
        "or",
        "pos",
        "pow",
        "radd",
        "rand",
        "reversed",
        "rfloordiv",
        "rmatmul",
        "rmod",
        "rmul",
        "ror",
        "round",
        "rpow",
        "rshift",
        "rsub",
        "rtruediv",
        "set",
        "set_name",
        "setattr",
        "setitem",
        "str",
        "sub",
        "subclasscheck",
        "torch_dispatch",
        "torch_function",
        "truediv",
        "trunc",
        "xor",
        "class_getitem",
    ]
) | {"forward"}

#: Methods that run when a class is called.
CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})
