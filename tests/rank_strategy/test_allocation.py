"""An allocation's table and figure say what the plan says, and can be read at the size a dashboard shows."""

import io

import numpy as np
import pytest
from rich.console import Console

from lab.instruments.rank_plan_figure import allocation_figure, equivalent_rank, table
from lab.layer import Target

SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (16, 64),
    "mlp.gate_proj": (172, 64),
    "mlp.down_proj": (64, 172),
}


def layers(blocks, outside=False):
    targets = [Target("proj_in", "other", -1, (64, 64), False)] if outside else []
    return targets + [
        Target(f"model.layers.{i}.{kind}", "mlp" if "mlp" in kind else "attention", i, shape, False)
        for i in range(blocks)
        for kind, shape in SHAPES.items()
    ]


def text_of(found):
    console = Console(file=io.StringIO(), width=120)
    console.print(found)
    return console.file.getvalue()


def test_the_table_has_rank_cost_and_share_of_every_block():
    targets = layers(2)
    plan = {target.name: 8 for target in targets} | {"model.layers.1.self_attn.k_proj": 2}
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text_of(table(plan, targets)).split("\n")]
    # a block costs 8 (128 + 80 + 236 + 236) = 5440, the second 6 · 80 = 480 less
    assert ["0", "8", "8", "5,440", "52.3 %"] in lines
    assert ["1", "2–8", "8", "4,960", "47.7 %"] in lines
    assert ["all", "2–8", "8", "10,400", "100.0 %"] in lines
    assert equivalent_rank(plan, targets) == pytest.approx(10400 / 1360)


@pytest.mark.parametrize(("blocks", "outside"), [(1, False), (2, True), (28, False)])
def test_the_figure_shows_every_module_once_in_each_half(blocks, outside):
    targets = layers(blocks, outside)
    plan = {target.name: 1 + i for i, target in enumerate(targets)}
    bars, heat = allocation_figure(plan, targets).axes[:2]
    assert [bar.get_height() for bar in bars.patches] == list(plan.values())
    shown = heat.images[0].get_array().compressed()
    assert sorted(shown[~np.isnan(shown)]) == sorted(plan.values())


@pytest.mark.parametrize(("blocks", "outside"), [(1, False), (12, True), (28, False)])
def test_no_label_covers_another_or_leaves_a_figure_600_pixels_wide(blocks, outside):
    targets = layers(blocks, outside)
    figure = allocation_figure({target.name: 100 + i for i, target in enumerate(targets)}, targets)
    figure.draw_without_rendering()
    assert figure.bbox.width == 600
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [label.get_window_extent() for label in labels if label.get_visible() and label.get_text()]
            for i, box in enumerate(boxes):
                assert figure.bbox.x0 <= box.x0
                assert box.x1 <= figure.bbox.x1
                assert not any(box.overlaps(other) for other in boxes[i + 1 :]), labels[i].get_text()


def test_the_figure_names_its_units_and_roles():
    figure = allocation_figure({target.name: 4 for target in layers(3)}, layers(3))
    assert [axes.get_ylabel() for axes in figure.axes] == ["LoRA rank", "", "LoRA rank"]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["block, one bar per module", "block"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "attention",
        "mlp",
        "uniform at this cost: 4.00",
    ]
