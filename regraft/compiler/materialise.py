"""Values of constants. The only place where a recipe is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.errors import RegraftError
from regraft.ir import Constant, Function, Leaf, Module, Recipe


class Store:
    """The constants of one module, under their unique names.

    A leaf's tensor is the model's own storage. A recipe is evaluated by the eager back end when a
    back end first asks for it, and kept only as long as somebody holds the store.
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


def replacements(module: Module, model: Any) -> dict[Leaf, Tensor]:
    """For each leaf, the tensor of the same name in ``model``.

    Raises:
        RegraftError: ``model`` lacks one, or it differs in shape or dtype.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    found: dict[Leaf, Tensor] = {}
    for constant in module.constants():
        if not isinstance(constant, Leaf):
            continue
        tensor = tensors.get(constant.name)
        if tensor is None:
            # A literal that capture lifted out of the code is nobody's parameter.
            continue
        old = constant.storage
        if tensor.shape != old.shape or tensor.dtype != old.dtype:
            raise RegraftError(
                f"'{constant.name}' is {tensor.dtype} {list(tensor.shape)}; the compiled model has "
                f"{old.dtype} {list(old.shape)}. Compile again"
            )
        found[constant] = tensor.detach()
    return found
