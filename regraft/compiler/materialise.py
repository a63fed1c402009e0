"""Values of constants. The only place where a recipe is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from regraft.backends import LowerOptions, backend
from regraft.errors import RecompileError
from regraft.ir import Constant, Function, Leaf, Module, Recipe


class Store:
    """The constants of one module, under their unique names.

    A leaf's tensor, constant or state, is the model's own storage. A recipe is evaluated by the eager
    back end when a back end first asks for it, and kept only as long as somebody holds the store.
    """

    def __init__(self, module: Module, replaced: Mapping[Leaf, Tensor] | None = None) -> None:
        self._names = module.constants()
        self._replaced = dict(replaced or {})
        self._results: dict[Recipe, Tensor] = {}
        self._evaluator = backend("eager")

    def name(self, constant: Constant) -> str:
        return self._names[constant]

    def tensor(self, constant: Constant) -> Any:
        if isinstance(constant, Leaf):
            return self._replaced.get(constant, constant.storage)
        assert isinstance(constant, Recipe), constant
        if constant not in self._results:
            self._results[constant] = self._evaluate(constant)
        return self._results[constant]

    def _evaluate(self, recipe: Recipe) -> Tensor:
        function = Function(recipe.name or "recipe", recipe.body)
        executable = self._evaluator.lower(function, self, LowerOptions())
        (result,) = executable.run((), {})
        return result

    def drop_results(self) -> None:
        """Forget evaluated recipes: back ends hold what they need."""
        self._results.clear()


def tensor_of(model: Any, name: str) -> Tensor:
    """The parameter, buffer or plain attribute of that name.

    Raises:
        RecompileError: there is none.
    """
    if isinstance(model, ExportedProgram):
        tensor = model.state_dict.get(name, model.constants.get(name))
    else:
        try:
            tensor = attrgetter(name)(model)
        except AttributeError:
            tensor = None
    if not isinstance(tensor, Tensor):
        raise RecompileError(f"the model has no tensor '{name}', as the compiled one has. Compile again")
    return tensor


def replacements(module: Module, model: Any) -> dict[Leaf, Tensor]:
    """For each leaf, the tensor of the same name in ``model``.

    Raises:
        RecompileError: ``model`` lacks one, or it differs in shape or dtype.
    """
    found: dict[Leaf, Tensor] = {}
    state = [leaf for function in module.functions.values() for leaf in function.state]
    for constant in (*module.constants(), *state):
        if not isinstance(constant, Leaf) or constant.is_literal:
            continue
        tensor = tensor_of(model, constant.name)
        old = constant.storage
        if tensor.shape != old.shape or tensor.dtype != old.dtype:
            raise RecompileError(
                f"'{constant.name}' is {tensor.dtype} {list(tensor.shape)}; the compiled model has "
                f"{old.dtype} {list(old.shape)}. Compile again"
            )
        for name in constant.names:
            if tensor_of(model, name).data_ptr() != tensor.data_ptr():
                raise RecompileError(
                    f"'{constant.name}' and '{name}' were one tied weight and are two now. Compile again"
                )
        found[constant] = tensor if constant in state else tensor.detach()
    return found
