"""From a function whose jumps are lowered to one that Python can compile.

Arms and trips become functions inside the function, which share its variables (``nonlocal``); a call says
what to do with them. The variables that are read later go with it, as functions that read them and one that
sets them:

    def _rg_then_1(): ...
    def _rg_else_1(): ...
    def _rg_put_1(_rg_0): ...
    calls.branch(test, _rg_then_1, _rg_else_1, ("x",), (lambda: x,), _rg_put_1)
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable, Mapping, Sequence

from regraft.compiler.capture.control.expressions import (
    CALLS,
    Expressions,
    call,
    index_of,
    loop_tested,
    tested,
    thunk,
)
from regraft.compiler.capture.control.jumps import negated
from regraft.compiler.capture.control.tree import (
    PREFIX,
    RESULT,
    SCOPES,
    Branch,
    Extended,
    Flag,
    Guard,
    Loop,
    Next,
    appended,
    at_start,
    blocks,
    bound,
    located,
    path_of,
    places,
)
from regraft.compiler.capture.control.words import worded

#: The operators that change a set in place.
_OF_SETS = (ast.BitOr, ast.BitAnd, ast.BitXor, ast.Sub)


class Emitter:
    """Emits the body of one function.

    Fields:
        expressions: converts what is inside statements.
        global_names: the names that the function declares global.
        local: the function's own variables.
        held: those that hold containers which nobody else does, each with all that may hold the same.
    """

    def __init__(
        self,
        expressions: Expressions,
        global_names: frozenset[str],
        local: frozenset[str],
        held: Mapping[str, frozenset[str]],
    ) -> None:
        self.expressions = expressions
        self.global_names = global_names
        self.local = local
        self.held = held
        self.count = 0

    def body(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        """Statements for Python, for those of ``tree``."""
        return [found for statement in statements for found in self._statement(statement)]

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        if isinstance(node, Branch):
            return self._branch(node)
        if isinstance(node, Loop):
            return self._loop(node)
        if isinstance(node, Guard):
            return self._guard(node)
        if isinstance(node, Next):
            return _parse(f"{node.loop.goes_on} = {_loop_name(node.loop)}.next()", node)
        if isinstance(node, ast.Assert):
            message = thunk(self._value(worded(node.msg, call)) if node.msg else ast.Constant(None))
            return [located(ast.Expr(call("check", self._truth(node.test), message)), node)]
        if isinstance(node, ast.With):
            items = [ast.withitem(self._value(i.context_expr), i.optional_vars) for i in node.items]
            return [ast.copy_location(ast.With(items, self.body(node.body)), node)]
        if isinstance(node, SCOPES) or list(blocks(node)):
            return [node]
        if isinstance(node, Extended):
            return [self._extended(node)]
        if isinstance(node, Flag):
            emptied = [f"{name} = None; del {name}" for name in sorted(node.dead)]
            return _parse("\n".join([*emptied, f"{node.name} = {node.is_set}"]), node)
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Subscript)
            and len(node.targets) == 1
        ):
            target, index = node.targets[0], index_of(node.targets[0].slice)
            parts = [self._value(each) for each in (node.value, target.value)]
            written = call("set_element", parts[0], parts[1], self._value(located(index, node)))
            return [located(ast.Expr(written), node)]
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
            return [self._update(node, node.target)]
        if isinstance(node, ast.AugAssign) and _may_hold_others(node):
            return [self._in_place(node)]
        return [self.expressions.of(node)]

    def _extended(self, node: Extended) -> ast.stmt:
        target, held = (ast.Name(node.name, context) for context in (ast.Store(), ast.Load()))
        made = call("extended", ast.Constant(node.name), held, self._value(node.call.args[0]))
        return located(ast.Assign([target], made), node)

    def _in_place(self, node: ast.AugAssign) -> ast.stmt:
        """``target op= value``, of what may be a list or a set."""
        held = copy.deepcopy(node.target)
        held.ctx = ast.Load()
        variable = node.target.id if isinstance(node.target, ast.Name) else None
        name, operator = ast.Constant(variable), ast.Constant(type(node.op).__name__)
        parts = [name, self._value(held), operator, self._value(node.value)]
        parts += [self._value(held.value)] if isinstance(held, ast.Attribute) else []
        made = call("in_place", *parts)
        return located(ast.Assign([node.target], made), node)

    def _update(self, node: ast.AugAssign, target: ast.Subscript) -> ast.stmt:
        """``target op= value``: its operand is evaluated after what it changes is read."""
        if any(isinstance(n, (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)) for n in ast.walk(node)):
            return self.expressions.of(node)
        operator, operand = ast.Constant(type(node.op).__name__), thunk(self._value(node.value))
        place = self._value(target.value), self._value(located(index_of(target.slice), node))
        return located(ast.Expr(call("update_element", *place, operator, operand)), node)

    def _value(self, node: ast.expr) -> ast.expr:
        return self.expressions.of(node)

    def _truth(self, node: ast.expr) -> ast.expr:
        return located(call("asked", self.expressions.of(tested(node))), node)

    def _branch(self, node: Branch) -> list[ast.stmt]:
        test, arms = node.test, (node.body, node.orelse)
        if RESULT in bound(node.orelse) - bound(node.body):
            # The arm that returns goes first: the other then knows what to give in its place.
            test, arms = negated(test), (node.orelse, node.body)
        n = self._number()
        state, arguments = self._state_of_branch(node, n)
        names = (f"{PREFIX}then_{n}", f"{PREFIX}else_{n}")
        functions = [self._function(name, (), arm, node) for name, arm in zip(names, arms, strict=True)]
        done = _parse(f"_rg.branch(None, {names[0]}, {names[1]}, {arguments})", node)
        _first_call(done).args[0] = located(self._truth(test), node)
        return [*functions, *state, *done]

    def _state_of_branch(self, node: Branch, n: int) -> tuple[list[ast.stmt], str]:
        """What the arms may change is put back between them; of it, what is read later goes on."""
        loop = node.ends
        if loop is None:
            own, changed = bound([node]), places([node])
            state, arguments = self._state(node, own, changed, n)
            live = self._seen(own, changed, node.live_after)
            return state, f"{arguments}, live={_texts(live)}{self._optional(live)}{_unread(node, live)}"
        own, changed = bound(loop.chain), places(loop.chain)
        state, arguments = self._state(node, own, changed, n)
        live = self._seen(bound([node]), changed, loop.live_head | loop.live_after) | {loop.goes_on}
        return state, f"{arguments}, live={_texts(live)}{self._optional(live)}, loop={_loop_name(loop)}"

    def _optional(self, live: frozenset[str]) -> str:
        """The argument that says which of the variables that are read later may be None on one path."""
        found = live & self.expressions.optional
        return f", optional={_texts(found)}" if found else ""

    def _seen(self, names: frozenset[str], changed: frozenset[str], live: frozenset[str]) -> frozenset[str]:
        """What somebody may see later of variables and of changed places, ``live`` being read later.

        A container that only variables hold of which none is read is nobody's.
        """
        unseen = {name for name, group in self.held.items() if not group & live}
        return (names & live) | (changed - unseen)

    def _state(
        self, node: ast.stmt, names: frozenset[str], changed: frozenset[str], n: int
    ) -> tuple[list[ast.stmt], str]:
        """Statements that define the setter, and the arguments that say what the state is."""
        every = sorted(names | {place for place in changed if place.partition(".")[0] not in names})
        put = f"{PREFIX}put_{n}"
        settable = [name for name in every if name in names | self.local or "." in name]
        lines = [f"def {put}({', '.join(f'{PREFIX}{i}' for i in range(len(every)))}):"]
        lines += self._scope_lines({name for name in settable if "." not in name})
        for i, name in enumerate(every):
            if name in settable:
                lines += [
                    f"    if {PREFIX}{i} is _rg.UNBOUND: del {name}",
                    f"    elif {PREFIX}{i} is not _rg.KEPT: {name} = {PREFIX}{i}",
                ]
        gets = "".join(f"lambda: {name}, " for name in every)
        return _parse("\n".join([*lines, "    pass"]), node), f"{tuple(every)!r}, ({gets}), {put}"

    def _loop(self, node: Loop) -> list[ast.stmt]:
        n, original = self._number(), node.original
        names, changed = bound([node]) & (node.live_head | node.live_after), places([node])
        state, arguments = self._state(node, names | {node.goes_on}, changed, n)
        trip, done = f"{PREFIX}trip_{n}", f"{PREFIX}done_{n}"
        start: list[ast.stmt] = _parse(f"{node.goes_on} = False", node)
        parameters = (_loop_name(node),)
        if isinstance(original, ast.For):
            item = f"{PREFIX}item_{n}"
            parameters = (*parameters, item)
            target = self._value(original.target)
            start.insert(0, located(ast.Assign([target], ast.Name(item, ast.Load())), original))
        functions = [
            self._function(trip, parameters, node.body, node, first=start),
            self._function(done, (), node.done, node),
        ]
        last = _texts(self._seen(names, changed, node.live_after))
        common = f"{trip}, {done}, {arguments}, goes_on={node.goes_on!r}, last={last}, leaves={node.leaves}"
        if isinstance(original, ast.For):
            outer = _loop_name(node.outer) if node.outer is not None else None
            spend, statements = self._spend(node, n)
            more = f"appended={_texts(appended(original.body))}, outer={outer}, spend={spend}"
            more += f", spent=({''.join(f'lambda: {name}, ' for name in sorted(node.spent))})"
            run = _parse(f"_rg.each([None], {common}, {more})", node)
            _first_call(run).args[0] = located(ast.List([self._value(original.iter)], ast.Load()), original)
            return [*functions, *state, *statements, *run]
        if isinstance(original.test, ast.Constant) and original.test.value:
            return [*functions, *state, *_parse(f"_rg.repeat(None, {common})", node)]
        test = f"{PREFIX}test_{n}"
        goes_on = self.expressions.of(loop_tested(original.test))
        returned = located(ast.Return(goes_on), original.test)
        tested = self._function(test, (), [], node, first=[returned])
        return [tested, *functions, *state, *_parse(f"_rg.repeat({test}, {common})", node)]

    def _spend(self, node: Loop, n: int) -> tuple[str | None, list[ast.stmt]]:
        """The function that empties the variables that a loop spends, and its definition."""
        if not node.spent:
            return None, []
        name = f"{PREFIX}spend_{n}"
        emptied = [*self._scope_lines(node.spent), *(f"    {each} = None" for each in sorted(node.spent))]
        return name, _parse("\n".join([f"def {name}():", *emptied]), node)

    def _guard(self, node: Guard) -> list[ast.stmt]:
        name = f"{PREFIX}error_{self._number()}"
        run = _parse(f"if _rg.refuses(None, {name}): {name}()", node)
        _first_call(run).args[0] = located(self._truth(node.test), node)
        body = [worded(each, call) for each in node.body]
        return [self._function(name, (), body, node), *run]

    def _function(
        self,
        name: str,
        parameters: Sequence[str],
        body: Sequence[ast.stmt],
        origin: ast.AST,
        *,
        first: Sequence[ast.stmt] = (),
    ) -> ast.stmt:
        """``def name(parameters): first; body``, over the variables of the function around it."""
        (made,) = _parse(f"def {name}({', '.join(parameters)}): pass", origin)
        assert isinstance(made, ast.FunctionDef)
        scope = self._scope_lines(bound([*first, *body]))
        declarations = [s for line in scope for s in _parse(line.strip(), origin)]
        made.body = [*declarations, *first, *self.body(body)] or made.body
        return made

    def _scope_lines(self, names: Iterable[str]) -> list[str]:
        mine = sorted(set(names) - self.global_names)
        others = sorted(set(names) & self.global_names)
        return [
            *([f"    nonlocal {', '.join(mine)}"] if mine else []),
            *([f"    global {', '.join(others)}"] if others else []),
        ]

    def _number(self) -> int:
        self.count += 1
        return self.count


def _may_hold_others(node: ast.AugAssign) -> bool:
    """Whether ``target op= value``, of a variable or attribute, may change a list or set that others hold."""
    if isinstance(node.target, ast.Attribute) and node.target.attr == "data":
        return False
    return path_of(node.target) is not None and isinstance(node.op, (ast.Add, *_OF_SETS))


def _unread(node: Branch, live: frozenset[str]) -> str:
    """The argument that says what nobody reads where an arm has set a flag."""
    found = {flag: tuple(sorted(names & live)) for flag, names in sorted(node.unread.items()) if names & live}
    return f", unread={found!r}" if found else ""


def _texts(names: Iterable[str]) -> str:
    return repr(tuple(sorted(names)))


def _loop_name(loop: Loop) -> str:
    return f"{PREFIX}loop_{loop.number}"


def _parse(text: str, origin: ast.AST) -> list[ast.stmt]:
    """Statements of ours, all of them at the line of ``origin``; ``_rg`` in them is the object of calls."""
    tree = _Marked().visit(ast.parse(text))
    for node in ast.walk(tree):
        at_start(node, origin)
    return tree.body


class _Marked(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(CALLS) if node.id == "_rg" else node


def _first_call(statements: Sequence[ast.stmt]) -> ast.Call:
    """The call in the last of ``statements``, which is one itself or tests one."""
    last = statements[-1]
    found = last.test if isinstance(last, ast.If) else getattr(last, "value", None)
    assert isinstance(found, ast.Call)
    return found
