"""Kernels of products with constant weights, by the templates. Imports TVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.tvm import building, tune
from regraft.backends.tvm.bodies import bodies
from regraft.backends.tvm.cluster import Cluster, form
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.following import kernel_key, problem_of_cluster, title
from regraft.backends.tvm.packing import Packing
from regraft.backends.tvm.problems import rows_of
from regraft.backends.tvm.space import Config
from regraft.backends.tvm.templates import TYPICAL_ROWS, Problem, Template, template_for
from regraft.errors import BackendError
from regraft.ir import Dim, Function, Op


@dataclass(frozen=True)
class Parameter:
    """A buffer that the kernel takes: what ``values_of`` has under ``name``, packed if it is a weight.

    Fields:
        view: the type that the kernel sees the buffer's elements as, several in one, where it is another.
    """

    name: str
    shape: tuple[Dim, ...]
    packing: Packing | None
    view: str | None


@dataclass(frozen=True)
class BuiltProduct:
    """A kernel of a template, and what it takes, the result last.

    Fields:
        facts: what a report says of it, as JSON.
    """

    function: Any
    parameters: tuple[Parameter, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Products:
    """Builds kernels of templates.

    Fields:
        cpu: what configs are ranked for.
        configs: by ``kernel_key`` the configs to take, the best first, where it is not the default.
        is_careful: each config that is not the default is built alone before it is taken.
        notes: what the user should know.
    """

    cpu: Cpu
    configs: Mapping[str, Sequence[Config]]
    is_careful: bool
    notes: list[str]

    def build(self, cluster: Cluster, name: str) -> BuiltProduct:
        """The kernel of ``cluster``, whose anchor is a template's op, as the function ``name``."""
        assert cluster.anchor is not None
        problem = problem_of_cluster(cluster)
        template = template_for(problem, self.cpu)
        assert template is not None, "what no template takes is expanded"
        config, function = self._built(problem, template, name)
        packing, rows = template.packing(problem, config), rows_of(cluster.anchor)
        parameters = (
            Parameter(
                a.name,
                tuple(rows if size is None else size for size in a.shape),
                packing.get(a.name),
                a.dtype if a.viewed_from is not None else None,
            )
            for a in template.arguments(problem, config)
        )
        return BuiltProduct(function, tuple(parameters), self._facts(problem, template, config))

    def alone(self, function: Function) -> list[Op]:
        """The products in ``function`` whose kernel TVM builds with nothing of what would follow them."""
        found: list[Op] = []
        refused: dict[str, bool] = {}
        for cluster in (step for body in bodies(function) for step in form(body).steps):
            if not (isinstance(cluster, Cluster) and cluster.is_closed) or cluster.root is cluster.anchor:
                continue
            problem = problem_of_cluster(cluster)
            key = kernel_key(problem)
            if key not in refused:
                refused[key] = self._refuses(problem, cluster)
            if refused[key]:
                found.extend(cluster.products)
        return found

    def _refuses(self, problem: Problem, cluster: Cluster) -> bool:
        template = template_for(problem, self.cpu)
        assert template is not None, "what no template takes is expanded"
        try:
            building.build([template.build(problem, template.default(problem, self.cpu), "tried")])
        except BackendError as error:
            ops = ", ".join(f"{op.name} at {op.loc}" for op in cluster.inlined)
            self.notes.append(f"what follows a product has kernels of its own, of {ops}: {error.message}")
            return True
        return False

    def _built(self, problem: Problem, template: Template, name: str) -> tuple[Config, Any]:
        default = template.default(problem, self.cpu)
        wanted = self.configs.get(kernel_key(problem), (default,))

        def build(config: Config) -> Any:
            function = template.build(problem, config, name)
            if self.is_careful and config != default:
                building.build([function])
            return function

        return tune.built(wanted, build, self.notes)

    def _facts(self, problem: Problem, template: Template, config: Config) -> dict[str, Any]:
        rows = TYPICAL_ROWS if problem.rows is None else (problem.rows,)
        return {
            "key": kernel_key(problem),
            "title": title(problem),
            "template": template.name,
            "config": str(config),
            "rows": problem.rows,
            "estimated_us": [[r, template.estimate(problem, config, self.cpu, r)] for r in rows],
        }
