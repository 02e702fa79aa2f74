from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic import STEPS, init_comparison, make_run, make_study, rank_strategies, rank_sweep

from lab.report.analysis import analyse
from lab.report.figure import FIGURES, draw
from lab.report.figure.curves import over_seeds
from lab.report.figure.heatmap import grid
from lab.report.figure.style import COLOURS, look
from lab.report.quantity import axis
from lab.report.tables import frontier_arms

EXPECTED = {
    rank_sweep: set(FIGURES) - {"rank_heatmap"},
    init_comparison: set(FIGURES) - {"rank_comparison", "rank_heatmap", "frontier"},
    rank_strategies: set(FIGURES) - {"rank_comparison"},
}


@pytest.fixture(scope="module")
def analyses(tmp_path_factory):
    found = {}
    for make in EXPECTED:
        folder = tmp_path_factory.mktemp(make.__name__)
        make(folder)
        found[make] = analyse(folder)
    return found


def texts(figure):
    """Every visible text and legend of a figure with its box, in pixels at 100 dpi: 600 pixels wide."""
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        labels = [axes.title, axes.xaxis.label, axes.yaxis.label]
        for side in (axes.xaxis, axes.yaxis):
            low, high = sorted(side.get_view_interval())
            ticks = side.get_major_ticks()
            labels += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_visible()]
        found += [(text.get_text(), text.get_window_extent(renderer)) for text in labels if text.get_text()]
    found += [("legend", legend.get_window_extent(renderer)) for legend in figure.legends]
    return found


def nothing_overlaps(figure, boxes, name):
    for (one, a), (two, b) in combinations(boxes, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        # a pixel of touching boxes is the anti-aliased edge of a letter
        assert min(overlap) <= 1, (name, one, two)
    width, height = (100 * side for side in figure.get_size_inches())
    for text, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, (name, text)


@pytest.mark.parametrize("make", list(EXPECTED))
def test_each_figure_meets_the_checklist_at_600_pixels(analyses, make):
    drawn = set()
    for name in FIGURES:
        figure = draw(name, analyses[make])
        if figure is None:
            continue
        drawn.add(name)
        boxes = texts(figure)
        assert figure.get_figwidth() * 100 == 600
        nothing_overlaps(figure, boxes, name)
        said = " ".join(text for text, _ in boxes)
        said += " ".join(text.get_text() for legend in figure.legends for text in legend.get_texts())
        if name == "rank_heatmap":
            assert "LoRA rank" in said
        else:
            assert "nats per token" in said, name
            assert "n = " in said, name
            assert figure.legends, name
    assert drawn == EXPECTED[make]


def test_long_names_and_many_arms_do_not_overlap(tmp_path):
    arms = {f"init=a_rather_long_scheme_name_{i} rank_strategy=an_even_longer_name_{i}": 2 + 0.01 * i for i in range(9)}
    make_study(tmp_path, arms, tuned=False, seeds=[1, 2, 3, 4])
    for name in ("effect_sizes", "loss_curves", "forgetting_gain"):
        figure = draw(name, analyse(tmp_path))
        nothing_overlaps(figure, texts(figure), name)


def test_no_run_no_figure_and_one_seed_no_band(tmp_path):
    assert all(draw(name, analyse(tmp_path)) is None for name in FIGURES)
    make_study(tmp_path / "one", {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    figure = draw("loss_curves", analyse(tmp_path / "one"))
    assert "n = 1" in figure.legends[0].get_texts()[0].get_text()


def test_curves_are_averaged_over_steps_that_every_run_has(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1, 2], noise=0.0)
    steps, mean, sd = over_seeds(analyse(tmp_path).arms[0].runs, "val_loss")
    assert list(steps) == list(range(0, STEPS + 1, 10))
    assert mean[0] == pytest.approx(3.02)
    assert sd[-1] > 0


def test_sixteen_arms_look_different_without_relying_on_colour():
    assert len({(look(i)["color"], look(i)["marker"]) for i in range(16)}) == 16
    assert len(set(COLOURS)) == 8
    assert len({look(i)["marker"] for i in range(8)}) == 8


def test_a_heat_map_places_modules_by_kind_and_layer():
    kinds, values = grid({"m.layers.0.q_proj": 4, "m.layers.1.q_proj": 8, "m.layers.1.mlp.up_proj": 2, "lm_head": 1})
    assert kinds == ["q_proj", "up_proj", "lm_head"]
    assert values[0].tolist() == [4, 8]
    assert values[1, 1] == 2
    gpt2, _ = grid({"h.0.attn.c_proj": 4, "h.0.mlp.c_proj": 8})
    assert gpt2 == ["c_proj", "mlp.c_proj"]


def test_the_frontier_is_what_no_cheaper_arm_beats(tmp_path):
    for i, (rank, loss) in enumerate([(1, 2.5), (2, 2.2), (4, 2.3), (8, 2.1)]):
        make_run(tmp_path / str(i), arm=None, stage=None, seed=0, loss=loss, rank=rank)
    assert frontier_arms(analyse(tmp_path)) == ["rank=1", "rank=2", "rank=8"]


def test_an_axis_names_its_unit():
    assert axis("test_loss") == "test loss (nats per token)"
    assert axis("seconds.train") == "train (s)"
