from __future__ import annotations

import pytest
import torch

from puyulm.engine.quant.gptq import gptq, inverse_factor
from puyulm.engine.quant.rounding import quantize
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.tensor import QuantizedWeight
from puyulm.errors import ConfigError
from tests.conftest import tiny_config
from tests.engine.quant.models import correlated

SCHEMES = [(8, None, False), (8, 32, False), (4, 32, False), (4, 64, False), (4, None, False), (4, 32, True)]


def matrix(rows: int = 48, columns: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(quantised: QuantizedWeight, weight: torch.Tensor, inputs: torch.Tensor) -> float:
    return float(((quantised.dequantize().double() - weight.double()) @ inputs.double().T).square().mean())


@pytest.mark.parametrize(("bits", "group_size", "zero_point"), SCHEMES)
def test_every_weight_is_the_nearest_code_or_is_cut_at_the_end(bits: int, group_size: int | None, zero_point: bool):
    weight = matrix()
    made = quantize(weight, bits, group_size, zero_point=zero_point)  # type: ignore[arg-type]
    assert made.shape == (48, 128)
    size = group_size or 128
    steps = made.scales.float().repeat_interleave(size, dim=1).abs()
    integers = made.integers().float()
    low = -127 if bits == 8 else 0 - (8 if made.zeros is None else made.zeros.float().repeat_interleave(size, dim=1))
    high = 127 if bits == 8 else low + 15
    at_end = (integers == low) | (integers == high)
    error = (made.dequantize() - weight).abs()
    assert bool(((error <= 0.5001 * steps) | at_end).all())


@pytest.mark.parametrize(("bits", "group_size", "zero_point"), SCHEMES)
def test_searching_scales_lowers_the_squared_error(bits: int, group_size: int | None, zero_point: bool):
    weight = matrix()

    def error(search: bool) -> float:
        made = quantize(weight, bits, group_size, zero_point=zero_point, search=search)  # type: ignore[arg-type]
        return float((made.dequantize() - weight).square().sum())

    assert error(True) < error(False)


def test_scales_are_close_to_those_of_an_exhaustive_search():
    weight = matrix(rows=64, columns=32)
    found = (quantize(weight, 4, 32).dequantize() - weight).square().sum(1)
    least = []
    for row in weight:
        scales = torch.cat([sign * torch.linspace(0.5, 1.05, 1000) * row.abs().max() / 7 for sign in (1, -1)])
        codes = (row / scales[:, None]).round().clamp(-8, 7)
        least.append((codes * scales[:, None] - row).square().sum(1).min())
    ratio = found / torch.stack(least)
    assert float(ratio.mean()) < 1.05 and float(ratio.max()) < 1.3


def test_more_bits_smaller_groups_and_zero_points_are_better():
    weight = matrix() + 0.3  # lopsided

    def error(bits: int, group_size: int | None, zero_point: bool = False) -> float:
        made = quantize(weight, bits, group_size, zero_point=zero_point)  # type: ignore[arg-type]
        return float((made.dequantize() - weight).square().sum())

    assert error(8, 32) < error(8, None) < error(4, 32) < error(4, 64) < error(4, None)
    assert error(4, 32, zero_point=True) < error(4, 32)


def test_what_lies_on_a_grid_is_kept_exactly():
    scales = torch.rand(8, 4, generator=torch.Generator().manual_seed(1)).half().float() + 0.5
    scales = scales.half().float()
    codes = torch.randint(-7, 8, (8, 128), generator=torch.Generator().manual_seed(2))
    codes[:, ::32] = 7
    weight = codes * scales.repeat_interleave(32, dim=1)
    assert torch.equal(quantize(weight, 4, 32).dequantize(), weight)


def test_zeros_and_constant_groups():
    weight = torch.zeros(2, 64)
    weight[1, 32:] = 0.25
    for bits, zero_point in ((8, False), (4, False), (4, True)):
        made = quantize(weight, bits, 32, zero_point=zero_point)  # type: ignore[arg-type]
        assert torch.allclose(made.dequantize(), weight, atol=1e-3)
        assert made.dequantize()[0].eq(0).all()


def test_moments_make_the_error_of_the_output_smaller_than_that_of_the_weights():
    weight, inputs = matrix(), correlated(4000, 128)
    inputs[:, ::16] *= 8
    moments = inputs.T @ inputs / len(inputs)
    plain, guided = (quantize(weight, 4, 32, moments=given) for given in (None, moments))
    assert output_error(guided, weight, inputs) < output_error(plain, weight, inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_unsound_matrices_are_refused(bad: float):
    weight = matrix()
    weight[3, 5] = bad
    with pytest.raises(ConfigError, match="infinities or NaN"):
        quantize(weight, 4, 32)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group_size", "zero_point"), SCHEMES)
def test_gptq_beats_rounding_to_nearest_where_inputs_are_correlated(
    bits: int, group_size: int | None, zero_point: bool, act_order: bool
):
    weight, (inputs, unseen) = matrix(columns=256), correlated(4500, 256).split([4000, 500])
    moments = inputs.T @ inputs / len(inputs)
    fitted = gptq(weight, moments, bits, group_size, zero_point=zero_point, act_order=act_order)  # type: ignore[arg-type]
    nearest = quantize(weight, bits, group_size, zero_point=zero_point)  # type: ignore[arg-type]
    assert fitted.shape == nearest.shape and fitted.group_size == nearest.group_size
    assert output_error(fitted, weight, unseen) < 0.5 * output_error(nearest, weight, unseen)


def test_gptq_with_uncorrelated_inputs_rounds_to_nearest():
    weight = matrix()
    assert torch.equal(gptq(weight, torch.eye(128), 4, 32).codes, quantize(weight, 4, 32).codes)


def test_gptq_is_the_greedy_solution_column_by_column():
    """Against the definition: each column rounded in turn, the rest refitted by least squares in float64."""
    weight, inputs = matrix(rows=3, columns=32), correlated(500, 32)
    moments = inputs.T @ inputs / len(inputs)
    made = gptq(weight, moments, 8, None, damping=0.01)
    damped = moments.double() + 0.01 * float(moments.diagonal().mean()) * torch.eye(32, dtype=torch.float64)
    scales = made.scales.double()
    rest = weight.double().clone()
    for column in range(32):
        code = (rest[:, column] / scales[:, 0]).round().clamp(-127, 127)
        assert torch.equal(code, made.codes[:, column].double())
        error = code * scales[:, 0] - rest[:, column]
        later = slice(column + 1, 32)
        # The change of the later columns that minimises the error of the output, given this column's.
        step = torch.linalg.solve(damped[later, later], damped[later, column])
        rest[:, later] -= error[:, None] * step
        rest[:, column] += error


def test_singular_moments_are_damped_and_broken_ones_refused():
    inputs = correlated(8, 64)
    inputs[:, 5] = 0
    moments = inputs.T @ inputs
    assert gptq(matrix(columns=64), moments, 4, 32, damping=1e-9).dequantize().isfinite().all()
    moments[3, 3] = float("nan")
    with pytest.raises(ConfigError, match="calibration activations"):
        inverse_factor(moments, 0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"bits": 3}, "4 or 8 bits"),
        ({"method": "smoothquant", "bits": 4, "group_size": None}, "smoothquant has 8 bits"),
        ({"method": "fp8", "bits": 8}, "scale a row"),
        ({"group_size": 40}, "multiple of 32"),
        ({"group_size": 0}, "multiple of 32"),
        ({"bits": 8, "zero_point": True}, "8 bits are symmetric"),
        ({"alpha": 1.5}, "alpha"),
        ({"damping": 0.0}, "damping"),
        ({"head": "fp8"}, "unknown kind of head"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        QuantSettings(**settings)  # type: ignore[arg-type]


def test_groups_must_divide_the_columns():
    with pytest.raises(ConfigError, match=r"groups of 64 do not divide the 96 columns.*use 32"):
        QuantSettings(group_size=64).require_fits(tiny_config())
    QuantSettings(group_size=32).require_fits(tiny_config())
