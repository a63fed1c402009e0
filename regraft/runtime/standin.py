"""Standing in for the original: the attributes and the module protocol of a compiled model.

What the original has, such as ``config``, ``device`` or ``state_dict()``, is the compiled model's too, to
read. Its weights are the original's own: no second copy is kept, and a write to one is noticed at the next
call. A method of the original runs with the compiled model as ``self``: where it calls the model, it calls
the compiled one. What would make it another model is refused, with what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MethodType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from regraft.errors import NoOriginalError, RegraftError


class StandIn(nn.Module):
    """An inference-only module in the place of ``original``, which is None when it was loaded from disk."""

    def __init__(self, original: Any, kinds: Collection[tuple[torch.dtype, torch.device]]) -> None:
        """``kinds`` are those of the arguments: what it is compiled for where it has no weights."""
        super().__init__()
        # Not as a submodule: names would get a prefix, and moving a parent would move the original.
        vars(self).update(_original=original, _kinds=frozenset(kinds), training=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols, such as copying, are those of this class
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        original = vars(self).get("_original")
        if original is None:
            raise NoOriginalError(
                f"'{name}' is an attribute of the original model, and this one was loaded from an artefact, "
                "which holds none; keep the original, or its config, beside it"
            )
        try:
            value = getattr(original, name)
        except AttributeError as error:
            raise NoOriginalError(
                f"neither the compiled model nor the original {type(original).__name__} has '{name}'"
            ) from error
        if isinstance(value, MethodType) and value.__self__ is original:
            return MethodType(value.__func__, self)
        return value

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise NoOriginalError(
            f"'{name}' cannot be set: a compiled model is read-only; change the original and compile it again"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise NoOriginalError(f"'{name}' cannot be deleted: a compiled model is read-only")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(() if self._original is None else dir(self._original))})

    # -- the original's weights ----------------------------------------------------------------

    def _module(self) -> nn.Module:
        """The original where it is a module; an empty one otherwise."""
        return self._original if isinstance(self._original, nn.Module) else nn.Module()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The original's.

        Raises:
            NoOriginalError: there is none.
        """
        if not isinstance(self._original, nn.Module):
            raise NoOriginalError(
                "there is no state_dict: the model was loaded from an artefact or is no module, and its "
                "weights may be merged or packed; keep the original's checkpoint"
            )
        return self._original.state_dict(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self._module().named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        return self._module().named_buffers(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """The original and its submodules, so that a parent finds the parameters under their names."""
        return self._module().named_modules(*args, **kwargs)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        return self._module().named_children()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load into the original, whose weights these are, and take them over.

        Raises:
            NoOriginalError: there is none.
            RuntimeError: names or shapes do not fit; torch's own.
        """
        found = self._to_load_into().load_state_dict(state_dict, strict, assign)
        self._refresh()
        return found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """What a parent's ``load_state_dict`` comes down to here: the same."""
        _load(self._to_load_into(), state_dict, prefix, *args)
        self._refresh()

    def _to_load_into(self) -> nn.Module:
        if not isinstance(self._original, nn.Module):
            raise NoOriginalError(
                "there is nothing to load a state_dict into: the model was loaded from an artefact or is no "
                "module; load it into a module and compile that"
            )
        return self._original

    def _refresh(self) -> None:
        """Take over the weights that the original has now."""
        raise NotImplementedError

    # -- becoming another model ----------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Itself for ``mode=False``: a compiled model is always in inference mode.

        Raises:
            RegraftError: ``mode`` is true.
        """
        if mode:
            raise RegraftError("a compiled model is inference only; train the original and compile it again")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Itself for ``requires_grad=False``: it computes no gradients.

        Raises:
            RegraftError: ``requires_grad`` is true.
        """
        if requires_grad:
            raise RegraftError("a compiled model computes no gradients; train the original")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What ``to``, ``half``, ``cuda`` and their like come down to: nothing to do, or refused."""
        for probe in self._probes():
            moved = fn(probe)
            if (moved.dtype, moved.device) != (probe.dtype, probe.device):
                raise RegraftError(
                    f"the model was compiled for {probe.dtype} on {probe.device} and cannot become "
                    f"{moved.dtype} on {moved.device}; convert the original and compile it again"
                )
        return self

    def _probes(self) -> Iterator[Tensor]:
        """An empty tensor for each kind of weight."""
        kinds = {(w.dtype, w.device) for w in (*self.parameters(), *self.buffers())} or self._kinds
        for dtype, device in sorted(kinds, key=str):
            yield torch.empty(0, dtype=dtype, device=device)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RegraftError(
            "a compiled model cannot be copied or pickled; it is safe to share between threads, and "
            "save(path) with regraft.load(path) takes it to another process"
        )


def _load(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """``module`` and its submodules from those entries of ``state_dict`` that begin with ``prefix``.

    As ``nn.Module.load_state_dict`` does it. Of the versions of the layers a parent hands on that of
    ``module`` alone.
    """
    own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    module._load_from_state_dict(own, prefix, dict(metadata), strict, missing, unexpected, errors)
    inner = {key: value for key, value in metadata.items() if key != "version"}
    for name, child in module._modules.items():
        if child is not None:
            _load(child, own, f"{prefix}{name}.", inner, strict, missing, unexpected, errors)
    for hook in module._load_state_dict_post_hooks.values():
        hook(module, _IncompatibleKeys(missing, unexpected))
