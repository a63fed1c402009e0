"""The TVM back end: kernels from schedule templates, with little to tune and seconds to do it in.

``templates`` has the kernels, ``space`` their parameters, ``packing`` what becomes of weights at load,
``tune`` and ``bench`` choose, measure and check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # modules, imported when they are asked for: a saved artefact runs without most of them
    from regraft.backends.tvm import bench, cpu, packing, space, templates, tune

__all__ = ["bench", "cpu", "packing", "space", "templates", "tune"]
