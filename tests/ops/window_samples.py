"""Calls of convolutions, pooling, padding, interpolation and recurrent layers."""

from __future__ import annotations

from collections.abc import Iterator

from tests.ops.sample import I64, N, Operand, S, Sample, T, call


def table() -> Iterator[Sample]:
    yield from _convolutions()
    yield from _pools()
    yield from _pads()
    yield from _interpolations()
    yield from _recurrent()


def _convolutions() -> Iterator[Sample]:
    image, line = T(N, 4, S + 6, 9), T(N, 4, S + 6)
    yield call("aten.conv2d", image, T(6, 4, 3, 2))
    yield call("aten.conv2d", image, T(6, 2, 3, 3), T(6), (2, 1), (1, 2), (1, 2), 2)
    yield call("aten.conv2d", T(4, S + 6, 9), T(6, 4, 3, 3), None, (2, 2), (1, 1))
    yield call("aten.conv2d", T(N, 3, 8 * S, 16), T(6, 3, 8, 8), T(6), (8, 8))
    yield call("aten.conv1d", line, T(6, 4, 3), T(6), (2,), (1,))
    yield call("aten.conv1d", line, T(8, 1, 3), None, (1,), (2,), (2,), 4)
    for kernel in (3, 4):
        yield call("aten.conv1d.padding", line, T(6, 4, kernel), T(6), (1,), "same")
        yield call("aten.conv2d.padding", image, T(6, 4, kernel, 3), None, (1, 1), "same", (1, 2))
    yield call("aten.conv2d.padding", image, T(6, 4, 3, 3), T(6), (2, 2), "valid")
    plain = ((2,), (1,), (1,), False, (0,), 1)
    yield call("aten.convolution", line, T(6, 4, 3), T(6), *plain)
    yield call("aten.convolution", image, T(6, 2, 3, 3), None, (1, 2), (1, 0), (1, 1), False, (0, 0), 2)
    volume = T(N, 2, S + 3, 4, 5)
    yield call("aten.conv3d", volume, T(4, 2, 3, 2, 2), T(4), (1, 2, 1), (1, 0, 1), (1, 1, 2))
    yield call("aten.conv3d.padding", volume, T(4, 1, 3, 2, 3), None, (1, 1, 1), "same", (1, 1, 1), 2)
    yield call("aten.conv_transpose1d", line, T(4, 2, 3), T(4), (2,), (1,), (1,), 2)
    yield call("aten.conv_transpose2d.input", image, T(4, 3, 3, 2), None, (2, 1), (1, 0))
    yield call("aten.conv_transpose2d.input", image, T(4, 3, 2, 2), T(3), (2, 2), dilation=(1, 2))
    yield call("aten.conv_transpose2d.input", T(4, S, 5), T(4, 3, 2, 2), T(3), (2, 2))
    yield call("aten.conv_transpose3d.input", volume, T(2, 2, 2, 2, 2), T(2), (2, 1, 2), (0, 1, 0), (1, 0, 0))
    yield call("aten.convolution", line, T(4, 3, 3), T(3), (2,), (1,), (1,), True, (1,), 1)


def _pools() -> Iterator[Sample]:
    image, line, volume = T(N, 4, S + 6, 9), T(N, 4, S + 6), T(N, 2, S + 3, 4, 5)
    for name in ("max_pool2d", "avg_pool2d"):
        yield call(f"aten.{name}", image, (2, 2))
        yield call(f"aten.{name}", image, (3, 3), (2, 1), (1, 1))
        yield call(f"aten.{name}", image, (3, 2), (2, 2), (1, 0), ceil_mode=True)
        yield call(f"aten.{name}", T(4, S + 6, 9), (2,))
    yield call("aten.max_pool2d", image, (3, 3), (2, 2), (1, 1), (2, 1))
    yield call("aten.avg_pool2d", image, (3, 3), (2, 2), (1, 1), False, False)
    yield call("aten.avg_pool2d", image, (3, 3), (2, 2), (1, 1), divisor_override=4)
    for name in ("adaptive_avg_pool2d", "_adaptive_avg_pool2d"):
        yield call(f"aten.{name}", image, (1, 1))
        yield call(f"aten.{name}", image, (3, 2))
    for name in ("max_pool1d", "avg_pool1d"):
        yield call(f"aten.{name}", line, (2,))
        yield call(f"aten.{name}", line, (3,), (2,), (1,), ceil_mode=True)
    yield call("aten.max_pool1d", T(4, S + 6), (3,), (1,), (1,), (2,))
    for name in ("max_pool3d", "avg_pool3d"):
        yield call(f"aten.{name}", volume, (2, 2, 2))
        yield call(f"aten.{name}", volume, (3, 2, 2), (1, 2, 2), (1, 0, 1))
    yield call("aten.max_pool2d_with_indices", image, (3, 3), (2, 2), (1, 1))
    yield call("aten.max_pool2d_with_indices", T(4, S + 6, 9), (2, 2))
    yield call("aten.max_pool3d_with_indices", volume, (2, 2, 2))
    for name in ("adaptive_avg_pool3d", "_adaptive_avg_pool3d"):
        yield call(f"aten.{name}", volume, (1, 1, 1))
        yield call(f"aten.{name}", volume, (2, 3, 5))
    for sizes in ((1, 1), (3, 2), (5, 7)):
        yield call("aten.adaptive_max_pool2d", image, sizes)
    yield call("aten.adaptive_max_pool2d", T(3, 7, 9), (3, 4))
    yield call("aten.adaptive_max_pool3d", volume, (2, 3, 2))


def _pads() -> Iterator[Sample]:
    image, line, volume = T(N, 4, S + 6, 9), T(N, 4, S + 6), T(N, 2, S + 3, 4, 5)
    yield call("aten.constant_pad_nd", image, (1, 2, 0, 3))
    yield call("aten.constant_pad_nd", line, (1, -2), 1.5)
    yield call("aten.pad", line, (1, 2))
    yield call("aten.pad", line, (1, 2), "constant", 0.5)
    for mode in ("reflect", "replicate", "circular"):
        yield call("aten.pad", line, (1, 2), mode)
        yield call("aten.pad", image, (1, 0, 2, 3), mode)
    yield call("aten.pad", volume, (1, 2, 0, 1, 2, 1), "reflect")
    for name in ("reflection_pad", "replication_pad"):
        yield call(f"aten.{name}1d", line, (2, 1))
        yield call(f"aten.{name}1d", T(4, S + 6, dtype=I64), (2, 1))
        yield call(f"aten.{name}2d", image, (1, 2, 3, 0))
        yield call(f"aten.{name}3d", volume, (1, 2, 3, 0, 1, 1))


def _interpolations() -> Iterator[Sample]:
    line, image, volume = T(N, 3, S + 2), T(N, 3, S + 2, 5), T(N, 2, S + 1, 3, 4)
    for aligned in (False, True):
        yield call("aten.upsample_linear1d", line, (2 * S + 4,), aligned)
        yield call("aten.upsample_linear1d.vec", line, (7,), aligned, None)
        yield call("aten.upsample_trilinear3d", volume, (4, 7, 2 * S), aligned)
        yield call("aten.upsample_trilinear3d.vec", volume, None, aligned, (2.0, 1.0, 3.0))
        for name in ("upsample_bilinear2d", "upsample_bicubic2d"):
            yield call(f"aten.{name}", image, (7, 3), aligned)
            yield call(f"aten.{name}", image, (S, 12), aligned)
            yield call(f"aten.{name}.vec", image, None, aligned, (2.0, 2.0))
            yield call(f"aten.{name}.vec", image, None, aligned, (1.5, 0.5))
            yield call(f"aten.{name}.vec", image, (2 * S + 4, 10), aligned, None)
    for name in ("upsample_nearest", "_upsample_nearest_exact"):
        yield call(f"aten.{name}1d", line, (7,))
        yield call(f"aten.{name}1d.vec", line, None, (2.0,))
        yield call(f"aten.{name}2d", image, (2 * S + 4, 10))
        yield call(f"aten.{name}2d", image, (S, 12))
        yield call(f"aten.{name}2d", image, (7, 3), 0.7, None)
        yield call(f"aten.{name}2d.vec", image, None, (4.0, 3.0))
        yield call(f"aten.{name}2d.vec", image, (S + 9, 8), None)
        yield call(f"aten.{name}3d", volume, (3, 6, 2 * S))
        yield call(f"aten.{name}3d.vec", volume, None, (2.0, 1.0, 0.5))
    grid = Operand(image.dtype, (N, S, 4, 2), -1.2, 1.2)
    for mode in (0, 1, 2):
        for padding in (0, 1, 2):
            yield call("aten.grid_sampler_2d", image, grid, mode, padding, padding == 1)
    yield call("aten.pixel_shuffle", T(N, 12, S, 3), 2)
    yield call("aten.pixel_unshuffle", T(N, 3, 2 * S, 6), 2)


def _recurrent() -> Iterator[Sample]:
    for cell, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
        for biased, layers, both, first in (
            (True, 1, False, False),
            (True, 2, True, True),
            (False, 1, True, False),
            (False, 2, False, True),
        ):
            directions = 2 if both else 1
            params: list[Operand] = []
            for layer in range(layers):
                width = 3 if layer == 0 else 4 * directions
                for _ in range(directions):
                    params += [T(gates * 4, width), T(gates * 4, 4)]
                    params += [T(gates * 4), T(gates * 4)] if biased else []
            state = T(layers * directions, N, 4)
            states = (state, state) if cell == "lstm" else state
            x = T(N, S, 3) if first else T(S, N, 3)
            rest = (tuple(params), biased, layers, 0.0, False, both, first)
            yield call(f"aten.{cell}.input", x, states, *rest)
        memory = T(2, N, 4) if cell == "lstm" else None
        weights = (T(2, gates * 4, 3), T(2, gates * 4, 4), T(2, gates * 8))
        yield call("rg.recurrent", T(S, N, 3), *weights, T(2, N, 4), memory, cell)
