"""Products with weights of 4 and 8 bits: right within the rounding of activations, and the same bits everywhere."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puyulm.engine.cpu import native, quantised
from puyulm.engine.cpu.quantised import (
    NativeKernel,
    QuantLinear,
    ReferenceKernel,
    quantize_activations,
    quantize_activations_natively,
)
from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.errors import ConfigError
from tests.engine.kernel_builds import needs_compiler

BUILDS = {
    "this processor": (),
    "AVX-512": ("-mno-avx512vnni", "-mno-avxvnni"),
    "AVX VNNI": ("-mno-avx512f",),
    "AVX2": ("-mno-avx512f", "-mno-avxvnni"),
    "plain C": ("-mno-avx2",),
}
ROWS = (1, 2, 3, 5, 7, 8, 9, 16, 17, 64, 200)
SHAPES = [(1, 32, 32), (40, 96, 32), (33, 64, 64), (16, 40, 40), (130, 256, 128), (100, 384, 384), (17, 128, 64)]
"""N, K, group size: tails of both, groups of 32 to whole rows."""

Making = Callable[[QuantizedWeight, Tensor | None], QuantLinear]


def weight_of(
    outputs: int,
    inputs: int,
    bits: Bits,
    group_size: int = 32,
    zeros: bool = False,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = inputs // group_size
    scales = torch.rand(outputs, groups, generator=generator).mul(0.01).add(0.001).to(dtype)
    if bits == 8:
        codes = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
        return QuantizedWeight(codes, scales, None, 8, group_size)
    codes = torch.randint(0, 256, (outputs, inputs // 2), generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, 16, (outputs, groups), generator=generator, dtype=torch.uint8) if zeros else None
    return QuantizedWeight(codes, scales, zero, 4, group_size)


def rows_of(count: int, inputs: int) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count))


def library_of(build: str) -> Callable[[str], object]:
    compiler = native.find_compiler()
    assert compiler is not None
    source = Path(native.__file__).parent / "quantised.c"
    try:
        library = native.build(source, compiler, (*native.FLAGS, *BUILDS[build]))
    except subprocess.CalledProcessError:
        pytest.skip("this compiler knows no such processor")
    return lambda name: library


@pytest.fixture(params=[*BUILDS, "numba", "PyTorch"])
def making(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Making:
    """Every way to a `QuantLinear`."""
    if request.param == "PyTorch":
        return lambda weight, bias=None: QuantLinear(weight, bias, ReferenceKernel)
    if request.param == "numba":
        numba_kernels = pytest.importorskip("puyulm.engine.cpu.quantised_numba", exc_type=ImportError)
        return lambda weight, bias=None: QuantLinear(weight, bias, numba_kernels.NumbaKernel)
    if native.find_compiler() is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(native, "load", library_of(request.param))
    return lambda weight, bias=None: QuantLinear(weight, bias, NativeKernel)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("bits", "zeros"), [(8, False), (4, False), (4, True)])
def test_every_kernel_gives_the_bits_of_the_reference(making: Making, bits: Bits, zeros: bool) -> None:
    for outputs, inputs, group_size in SHAPES:
        weight = weight_of(outputs, inputs, bits, group_size, zeros)
        bias = torch.randn(outputs, generator=torch.Generator().manual_seed(1))
        linear, reference = making(weight, bias), QuantLinear(weight, bias, ReferenceKernel)
        for count in (1, 2, 9):
            x = rows_of(count, inputs)
            assert torch.equal(linear(x), reference(x))


@pytest.mark.parametrize(("bits", "zeros"), [(8, False), (4, True)])
def test_single_precision_scales_are_kept(making: Making, bits: Bits, zeros: bool) -> None:
    weight = weight_of(40, 96, bits, 32, zeros, torch.float32)
    assert not torch.equal(weight.scales, weight.scales.half().float())
    x = rows_of(5, 96)
    assert torch.equal(making(weight, None)(x), QuantLinear(weight, None, ReferenceKernel)(x))


@pytest.mark.parametrize(("bits", "zeros"), [(8, False), (4, False), (4, True)])
@pytest.mark.parametrize("group_size", [32, 128, 1000])
def test_errors_are_those_of_rounded_activations(making: Making, bits: Bits, zeros: bool, group_size: int) -> None:
    """Each activation is off by half a scale at most: bounded in the worst case by the sum of the weights' magnitudes,
    and in the root of the mean of squares by the scale over the root of 12."""
    inputs = 1000 if group_size == 1000 else 1024
    weight = weight_of(48, inputs, bits, group_size, zeros)
    x = rows_of(20, inputs) * torch.logspace(-3, 3, 20)[:, None]
    got, exact = making(weight, None)(x).double(), x.double() @ weight.dequantize().double().T
    padded = torch.nn.functional.pad(x, (0, -inputs % 32)).unflatten(1, (-1, 32))
    scales = (padded.abs().amax(2) / 127).repeat_interleave(32, dim=1)[:, :inputs].double()
    values = weight.dequantize().double()
    worst = 0.5 * scales @ values.abs().T
    expected = (scales.square() @ values.square().T / 12).sqrt()
    assert ((got - exact).abs() <= worst * 1.001).all()
    assert ((got - exact) / expected).square().mean().sqrt() < 1.1


def test_activations_that_are_multiples_of_a_scale_give_exact_products(making: Making) -> None:
    """Every code in every place: a swapped, lost or saturated product shows."""
    codes = torch.arange(-127, 128, dtype=torch.int8)
    for bits in (8, 4):
        weight = weight_of(32, 256, bits, 256, bits == 4)
        weight = QuantizedWeight(weight.codes, torch.ones(32, 1), weight.zeros, weight.bits, 256)
        for first in range(0, 255, 17):
            x = codes.roll(first)[torch.arange(256) % 255].float()[None].clone()
            x[0, ::32] = 127
            exact = x.long() @ weight.integers().long().T
            assert torch.equal(making(weight, None)(x).long(), exact)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_largest_sums_of_a_group_do_not_saturate(making: Making, bits: Bits, sign: int) -> None:
    x = torch.full((3, 64), 127.0 * sign)
    if bits == 8:
        codes = torch.full((20, 64), 127, dtype=torch.int8)
        codes[::2] = -127
        weight = QuantizedWeight(codes, torch.ones(20, 2), None, 8, 32)
    else:
        codes = torch.full((20, 32), 0xFF, dtype=torch.uint8)
        codes[::2] = 0
        zeros = torch.zeros(20, 2, dtype=torch.uint8)
        zeros[::2] = 15
        weight = QuantizedWeight(codes, torch.ones(20, 2), zeros, 4, 32)
    largest = (127 if bits == 8 else 15) * 127 * 64 * sign
    expected = torch.tensor([-largest, largest] * 10, dtype=torch.float32).expand(3, -1)
    assert torch.equal(making(weight, None)(x), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_has_the_same_bits_in_any_company(making: Making, bits: Bits, threads: None) -> None:
    weight = weight_of(900, 160, bits, 32, bits == 4)  # enough for two threads to share a lone row
    linear = making(weight, torch.ones(900))
    x = rows_of(max(ROWS), 160)
    torch.set_num_threads(1)
    alone = torch.cat([linear(row[None]) for row in x])
    for count in (1, 2):
        torch.set_num_threads(count)
        for rows in ROWS:
            assert torch.equal(linear(x[:rows]), alone[:rows])
            assert torch.equal(linear(x[-rows:]), alone[-rows:])


def test_an_outlier_changes_its_own_row_only(making: Making) -> None:
    linear = making(weight_of(48, 128, 8), None)
    x = rows_of(9, 128)
    before = linear(x)
    x[4, 7] = 1e6
    after = linear(x)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[4], after[4])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_not_finite_makes_its_row_nan_and_no_other(making: Making, bits: Bits, bad: float) -> None:
    linear = making(weight_of(40, 100, bits, 100, bits == 4), torch.ones(40))
    x = rows_of(10, 100)
    before = linear(x)
    for place in (0, 31, 99):
        spoilt = x.clone()
        spoilt[3, place] = bad
        after = linear(spoilt)
        assert after[3].isnan().all()
        assert torch.equal(after[[0, 1, 2, 4, 5, 6, 7, 8, 9]], before[[0, 1, 2, 4, 5, 6, 7, 8, 9]])


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_zeros_give_the_bias(making: Making, bits: Bits) -> None:
    bias = torch.arange(40.0)
    linear = making(weight_of(40, 64, bits, 32, bits == 4), bias)
    x = rows_of(4, 64)
    x[1] = 0
    assert torch.equal(linear(x)[1], bias)
    assert torch.equal(linear(torch.zeros(1, 64))[0], bias)


def test_adding_to_the_residual_is_adding_the_result(making: Making) -> None:
    linear = making(weight_of(40, 64, 8), torch.ones(40))
    for count in (1, 3, 17):
        x, residual = rows_of(count, 64), rows_of(count, 40)
        expected = residual + linear(x)
        wide = torch.cat((residual, residual), dim=1)[:, :40]  # a view with gaps between its rows
        half = residual.bfloat16()
        assert linear.add_to(residual, x) is residual
        assert torch.equal(residual, expected)
        assert torch.equal(linear.add_to(wide, x), expected)
        assert linear.add_to(half, x).dtype == torch.bfloat16


def test_no_rows_more_axes_and_other_types(making: Making) -> None:
    linear = making(weight_of(40, 64, 4), None)
    assert linear(torch.empty(0, 64)).shape == (0, 40)
    assert linear.add_to(torch.empty(0, 40), torch.empty(0, 64)).shape == (0, 40)
    x = rows_of(6, 64)
    assert torch.equal(linear(x.view(2, 3, 64)), linear(x).view(2, 3, 40))
    assert torch.equal(linear(x.T.contiguous().T), linear(x))
    assert torch.equal(linear(x.bfloat16()), linear(x.bfloat16().float()))
    assert (linear.in_features, linear.out_features) == (64, 40)


def test_wrong_shapes_are_refused_before_memory_is_read(making: Making) -> None:
    linear = making(weight_of(40, 64, 8), None)
    for x in (torch.zeros(2, 63), torch.zeros(1, 128), torch.zeros(64, 2)):
        with pytest.raises(ValueError, match="a layer of 64 to 40"):
            linear(x)
    with pytest.raises(ValueError, match="a layer of 64 to 40"):
        linear.add_to(torch.zeros(3, 40), torch.zeros(2, 64))


def test_groups_that_no_kernel_can_sum_are_refused() -> None:
    with pytest.raises(ConfigError, match="groups of 48"):
        QuantLinear(weight_of(16, 96, 8, 48))


def test_activations_are_rounded_to_nearest_and_halves_to_even() -> None:
    x = torch.zeros(1, 40)
    x[0, :6] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -2.51])
    x[0, 32:34] = torch.tensor([-254.0, 3.0])
    rounded = quantize_activations(x)
    assert rounded.codes[0, 0, :6].tolist() == [127, 0, 2, 2, 0, -3]
    assert rounded.codes[0, 1, :3].tolist() == [-127, 2, 0]
    assert rounded.scales.tolist() == [[1.0, 2.0]]
    assert rounded.sums.tolist() == [[128, -125]]


@needs_compiler
@pytest.mark.parametrize("build", BUILDS)
def test_activations_are_rounded_alike_in_c(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", library_of(build))
    x = rows_of(40, 70) * torch.logspace(-44, 38, 40)[:, None]  # subnormal scales, and overflow to infinities
    x[3, 5], x[4, 6], x[5] = torch.nan, -torch.inf, 0
    x[6:20] = (x[6:20] * 64).round() / 128  # many halves
    expected = quantize_activations(x)
    for num_threads in (1, 2, 3):
        got = quantize_activations_natively(x, num_threads)
        assert torch.equal(got.codes, expected.codes)
        assert torch.equal(got.sums, expected.sums)
        assert torch.equal(got.scales.nan_to_num(-1), expected.scales.nan_to_num(-1))


def test_one_rounding_where_two_would_show() -> None:
    """1 + 2^-24 + 2^-60: rounded to float64 first, it is a tie that goes to 1."""
    a, b, c = torch.tensor([2.0**-60, -(2.0**-60), 3.0]), torch.ones(3), torch.tensor([1.0, 1.0, torch.inf])
    once = quantised._fma(a.double() + 2.0**-24 * torch.tensor([1.0, 1.0, 0.0]).double(), b, c)
    assert once.tolist() == [1 + 2.0**-23, 1.0, torch.inf]


def test_without_a_compiler_numba_or_pytorch_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda name: None)
    try:
        from puyulm.engine.cpu.quantised_numba import NumbaKernel

        assert quantised.fastest_kernel() is NumbaKernel
    except ImportError:
        assert quantised.fastest_kernel() is ReferenceKernel
    with pytest.raises(ConfigError, match="no C compiler"):
        NativeKernel(weight_of(16, 32, 8), None)
    with pytest.raises(ConfigError, match="no C compiler"):
        quantize_activations_natively(torch.ones(1, 32))
