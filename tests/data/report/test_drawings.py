"""Drawings: widths are to scale, labels do not overlap, curves are those of the formulas."""

from __future__ import annotations

import random
import re

import pytest

from puyulm.data.report.charts import CURVE_SIZE, PLOT_HEIGHT, draw_curve, draw_lengths, draw_sizes
from puyulm.data.report.flow import HEIGHT, NODE, Drop, Flow, FlowStage, draw_flow, shortened
from puyulm.data.report.numbers import count


def ribbon_width(path: str) -> float:
    """Width of a ribbon where it ends: between its right edge (before V) and its left edge (after H)."""
    numbers = re.fullmatch(r"M.*A\S+ \S+ 0 0 1 (\S+) \S+V\S+H(\S+)V.*", path)
    assert numbers is not None, path
    return float(numbers.group(1)) - float(numbers.group(2))


def stages() -> list[FlowStage]:
    return [
        FlowStage("format", 1000, 900, (Drop("language", 100, 0),)),
        FlowStage("clean", 900, 500, (Drop("gopher", 250, 1), Drop("c4", 100, 2), Drop("own", 49, 3), Drop("x", 1, 4))),
        FlowStage("dedup", 500, 400, (Drop("near", 100, 5),)),
    ]


def test_widths_are_to_scale() -> None:
    flow = draw_flow(stages(), count)
    assert [node.height for node in flow.nodes] == pytest.approx([HEIGHT, 0.9 * HEIGHT, 0.5 * HEIGHT, 0.4 * HEIGHT])
    widths = {ribbon.name: ribbon_width(ribbon.path) for ribbon in flow.ribbons}
    assert widths["gopher"] == pytest.approx(0.25 * HEIGHT, abs=0.2)
    assert widths["near"] == pytest.approx(0.1 * HEIGHT, abs=0.2)
    assert widths["own"] == pytest.approx(0.049 * HEIGHT, abs=0.2)
    assert flow.bands[1].startswith(f"M{flow.nodes[1].x + NODE:.1f} 0")


def test_tiny_drops_become_other() -> None:
    many = (*(Drop(f"rule {i}", 10 + i, i) for i in range(9)), Drop("tiny", 0.5, -1), Drop("none", 0, -1))
    flow = draw_flow([FlowStage("clean", 1000, 1000 - 126.5, many)], count)
    names = [ribbon.name for ribbon in flow.ribbons]
    assert sorted(names) == ["other", "rule 5", "rule 6", "rule 7", "rule 8"]
    other = next(ribbon for ribbon in flow.ribbons if ribbon.name == "other")
    assert other.amount.startswith("60.5") and other.colour == -1
    alone = draw_flow([FlowStage("a", 1000, 999, (Drop("one", 1, 2),))], count)
    assert [ribbon.name for ribbon in alone.ribbons] == ["one"]  # a single one keeps its name


def boxes(flow: Flow) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of all labels, 6.2 pixels a letter of 12 pixels, wide ones twice."""

    def width(text: str) -> float:
        return sum(12.4 if ord(c) > 0x2E80 else 6.2 for c in text)

    labels = [(r.x, r.y + 2, r.x + max(width(r.name), width(r.amount)), r.y + 27) for r in flow.ribbons]
    return labels + [(n.x, -34, n.x + max(width(n.name) * 1.05, width(n.amount)), -8) for n in flow.nodes]


@pytest.mark.parametrize("seed", range(8))
def test_labels_do_not_overlap(seed: int) -> None:
    generator = random.Random(seed)
    made, amount = [], 5_000_000.0
    for number in range(generator.randint(1, 11)):
        drops, left = [], amount
        for k in range(generator.randint(0, 7)):
            lost = left * generator.random() ** 3
            left -= lost
            drops.append(
                Drop(
                    generator.choice(["乱码和异常符号", "gopher", "a long name of a family of rules"]) + str(k), lost, k
                )
            )
        made.append(FlowStage(f"stage-{number}" * generator.randint(1, 3), amount, left, tuple(drops)))
        amount = left
    flow = draw_flow(made, count)
    found = boxes(flow)
    for i, (left, top, right, bottom) in enumerate(found):
        assert left >= 0 and right <= flow.width and bottom + flow.top <= flow.height
        for other in found[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, (i, found)


def test_a_stage_that_adds_documents_is_drawn() -> None:
    flow = draw_flow([FlowStage("cut", 10, 40, ()), FlowStage("next", 40, 40, ())], count)
    assert [node.height for node in flow.nodes] == [HEIGHT, HEIGHT, HEIGHT]
    assert draw_flow([FlowStage("empty", 0, 0, ())], count).nodes[0].height == 0


def test_names_are_shortened_by_their_width() -> None:
    assert shortened("decontaminate") == "decontaminate"
    assert shortened("x" * 40) == "x" * 21 + "…"
    assert shortened("浦" * 20) == "浦" * 10 + "…"
    assert shortened("\x1b\n") == "[U+001B]" and shortened(" ") == "(no name)"


def test_curve_is_that_of_lsh() -> None:
    curve = draw_curve(16, 8, 0.7)
    assert curve is not None
    assert curve.at_threshold == pytest.approx(1 - (1 - 0.7**8) ** 16)
    assert 1 - (1 - curve.half**8) ** 16 == pytest.approx(0.5)
    points = [tuple(map(float, point.split())) for point in curve.path[1:].split("L")]
    for x, y in points:
        similarity = x / CURVE_SIZE[0]
        assert 1 - y / CURVE_SIZE[1] == pytest.approx(1 - (1 - similarity**8) ** 16, abs=1e-3)
    assert draw_curve(0, 8, None) is None
    assert draw_curve(25, 5, 7.0).threshold is None  # type: ignore[union-attr]


def test_lengths_before_and_after() -> None:
    before, after = [0] * 32, [0] * 32
    before[5], before[7], after[7] = 10, 40, 20
    histogram = draw_lengths(before, after)
    assert histogram is not None
    assert [bar.label for bar in histogram.bars] == ["16", "32", "64"]
    assert [bar.behind for bar in histogram.bars] == pytest.approx([PLOT_HEIGHT / 4, 0, PLOT_HEIGHT])
    assert [bar.height for bar in histogram.bars] == pytest.approx([0, 0, PLOT_HEIGHT / 2])
    assert "64 to 127 characters" in histogram.bars[2].title
    assert draw_lengths([0] * 32, [0] * 32) is None


def test_cluster_sizes() -> None:
    histogram = draw_sizes([(2, 2, 30), (3, 4, 10), (17, 32, 3)])
    assert histogram is not None
    assert [bar.label for bar in histogram.bars] == ["2", "3–4", "5–8", "9–16", "17–32"]
    assert [bar.height for bar in histogram.bars] == pytest.approx([PLOT_HEIGHT * n / 30 for n in (30, 10, 0, 0, 3)])
    assert draw_sizes([]) is None
