"""Ops that only torch runs: linear algebra, complex numbers, Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import regraft
from regraft.errors import CaptureError, RegraftError, UnsupportedOpError
from regraft.testing import assert_close

Results = Any
HERE = Path(__file__).name


def matrices(count: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Symmetric, positive definite."""
    x = torch.randn(count, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x @ x.mT + torch.eye(4)).to(dtype)


FACTORINGS: Mapping[str, Callable[[Tensor], Results]] = {
    "inv": lambda x: torch.linalg.inv(x),
    "inverse": lambda x: x.inverse(),
    "solve": lambda x: torch.linalg.solve(x, x.roll(1, 0)),
    "cholesky": lambda x: torch.linalg.cholesky(x),
    "cholesky_solve": lambda x: torch.cholesky_solve(x, torch.linalg.cholesky(x)),
    "lu_solve": lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), x),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(x.triu(), x, upper=True),
    "matrix_power": lambda x: torch.linalg.matrix_power(x, -2),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(x / 10),
    "det": lambda x: torch.linalg.det(x),
    "slogdet": lambda x: torch.linalg.slogdet(x),
    "pinv": lambda x: torch.linalg.pinv(x),
    "qr": lambda x: torch.linalg.qr(x)[1].abs(),
    "eigvalsh": lambda x: torch.linalg.eigvalsh(x),
    "eigh": lambda x: torch.linalg.eigh(x)[1].abs(),
    "svd": lambda x: torch.linalg.svd(x)[1],
    "matrix_rank": lambda x: torch.linalg.matrix_rank(x),
    "cond": lambda x: torch.linalg.cond(x),
}


def factored(x: Tensor) -> Results:
    x = torch.relu(x) - torch.relu(-x)
    return {name: factor(x) for name, factor in FACTORINGS.items()}


def test_linear_algebra() -> None:
    shapes = ({0: Dim.AUTO},)
    with pytest.raises(UnsupportedOpError) as caught:
        regraft.compile(factored, (matrices(),), dynamic_shapes=shapes)
    for words in ("aten.linalg_inv_ex", "aten._linalg_svd", HERE, 'fallback="eager"'):
        assert words in str(caught.value)
    compiled = regraft.compile(factored, (matrices(),), dynamic_shapes=shapes, fallback="eager")
    assert set(compiled.report.to_dict()["executors"]) == {"ort", "eager"}
    for count in (1, 5):
        found, wide, own = (
            compiled(matrices(count)),
            factored(matrices(count, torch.float64)),
            factored(matrices(count)),
        )
        for name in FACTORINGS:
            assert_close(found[name], wide[name], own[name])


@pytest.mark.parametrize("count", [1, 3])
def test_a_singular_matrix_raises_at_the_call(count: int) -> None:
    compiled = regraft.compile(
        lambda x: torch.linalg.inv(x), (matrices(),), dynamic_shapes=({0: Dim.AUTO},), fallback="eager"
    )
    with pytest.raises(RegraftError, match=r"linalg\.inv: a matrix is singular"):
        compiled(torch.zeros(count, 4, 4))
    assert torch.isfinite(compiled(matrices(count))).all()


def test_a_singular_matrix_alone() -> None:
    compiled = regraft.compile(lambda x: torch.linalg.cholesky(x), (matrices()[0],), fallback="eager")
    with pytest.raises(RegraftError, match=r"linalg\.cholesky: a matrix"):
        compiled(-torch.eye(4))


def test_an_assertion_on_values() -> None:
    def model(x: Tensor) -> Tensor:
        torch.ops.aten._assert_async.msg((x > 0).all(), "only positive numbers")
        return x.log()

    compiled = regraft.compile(model, (torch.ones(3),))
    assert compiled(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(RegraftError, match="only positive numbers"):
        compiled(-torch.ones(3))


def test_another_effect_is_refused_by_name() -> None:
    def model(x: Tensor) -> Tensor:
        torch.ops.aten._print("hello")
        return torch.linalg.inv(x)

    with pytest.raises(CaptureError, match=rf"(?s)aten\._print has an effect.*{HERE}"):
        regraft.compile(model, (matrices(),), fallback="eager")


TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "fft": lambda x: torch.fft.fft(x),
    "rfft": lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2),
    "fft2": lambda x: torch.fft.fft2(x).abs(),
    "stft": lambda x: torch.stft(
        x.flatten(1), 8, 4, window=torch.hann_window(8, dtype=x.dtype), return_complex=True
    ),
    "product": lambda x: torch.complex(x, x) * torch.complex(x, -x.sin()),
    "rotation": lambda x: torch.view_as_real(
        torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.polar(x, x)[..., :2]
    ),
    "conjugate": lambda x: (torch.complex(x, x).mH @ torch.complex(x, x)).real,
    "angle": lambda x: torch.complex(x, -x).angle(),
    "eigenvalues": lambda x: torch.linalg.eigvals(x).real.sort(-1).values,
}


def transformed(x: Tensor) -> Results:
    x = torch.tanh(x)
    return {name: transform(x) for name, transform in TRANSFORMS.items()}


def test_complex_numbers() -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        regraft.compile(transformed, (matrices(),))
    for words in ("aten.fft_fft", "aten.view_as_complex", HERE, "no tensors of type c64", 'fallback="eager"'):
        assert words in str(caught.value)
    compiled = regraft.compile(transformed, (matrices(),), fallback="eager")
    assert set(compiled.report.to_dict()["executors"]) == {"ort", "eager"}
    found, wide, own = (
        compiled(matrices()),
        transformed(matrices(dtype=torch.float64)),
        transformed(matrices()),
    )
    for name in TRANSFORMS:
        assert_close(found[name], wide[name], own[name])


def test_what_stays_whole_is_refused_by_its_own_name() -> None:
    """And what torch can take apart (``hann_window``, ``tensordot``) is not among what is refused."""

    def spectrum(x: Tensor) -> Tensor:
        x = torch.tensordot(x, torch.diag(torch.hann_window(16)), 1)
        return torch.stft(x, 16, window=torch.hann_window(16), return_complex=True).abs()

    with pytest.raises(UnsupportedOpError) as caught:
        regraft.compile(spectrum, (torch.randn(2, 16),))
    names = {op.name for op in caught.value.ops}
    assert "aten.stft" in names
    assert not any(part in name for name in names for part in ("_fft", "tensordot", "window"))


def test_complex_arguments(tmp_path: Path) -> None:
    z = torch.complex(matrices(), matrices().roll(1, 0))
    compiled = regraft.compile(lambda z: (z @ z).abs(), (z,), fallback="eager")
    compiled.save(tmp_path / "model")
    for each in (compiled, regraft.load(tmp_path / "model")):
        assert_close(each(z), (z.to(torch.complex128) @ z.to(torch.complex128)).abs())
    with pytest.raises(regraft.errors.ShapeError, match=r"'z'.*f32.*c64"):
        compiled(matrices())
