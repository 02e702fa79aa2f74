import csv
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic import (
    COLUMNS,
    STEPS,
    declare,
    forgetting,
    init_comparison,
    make_run,
    make_study,
    rank_strategies,
    rank_sweep,
)

from lab.record import read, write
from lab.report import figure as figures
from lab.report.analysis import analyse, frontier_arms
from lab.report.arms import on_shared_seeds
from lab.report.figure import drawings
from lab.report.figure.curves import ABOVE, below, ceiling, means, over_seeds, room_for
from lab.report.figure.effects import reach
from lab.report.figure.heatmap import grid, rows_and_layers
from lab.report.figure.style import COLOURS, MARKERS, axis, marker
from lab.report.render import write_report
from lab.report.tables import ranks_table

DRAWINGS = {drawing.name: drawing for drawing in drawings()}
EXPECTED = {
    rank_sweep: set(DRAWINGS) - {"rank_heatmap", "low_rank_over_steps", "forgetting_curves"},
    init_comparison: set(DRAWINGS)
    - {"rank_comparison", "rank_heatmap", "frontier", "low_rank_over_steps", "forgetting_curves"},
    rank_strategies: set(DRAWINGS) - {"rank_comparison", "low_rank_over_steps", "forgetting_curves"},
    forgetting: set(DRAWINGS)
    - {"rank_comparison", "rank_heatmap", "frontier", "learning_rates", "low_rank_over_steps"},
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
    for name, drawing in DRAWINGS.items():
        figure = drawing.figure(analyses[make])
        if figure is None:
            continue
        drawn.add(name)
        boxes = texts(figure)
        assert figure.get_figwidth() * 100 == 600
        nothing_overlaps(figure, boxes, name)
        column = drawing.column(analyses[make])
        assert column.get_figwidth() == 3.3
        nothing_overlaps(column, texts(column), f"{name} in a column")
        assert min(text.get_fontsize() for text in column.findobj(Text) if text.get_text()) >= 5, name
        words = " ".join(text for text, _ in boxes)
        words += " ".join(text.get_text() for legend in figure.legends for text in legend.get_texts())
        if name == "rank_heatmap":
            assert "LoRA rank" in words
        else:
            assert ("%" if name == "accuracy" else "nats per token") in words, name
            assert "n = " in words, name
            assert figure.legends, name
    assert drawn == EXPECTED[make]


def test_long_names_and_many_arms_do_not_overlap(tmp_path):
    arms = {f"init=a_rather_long_scheme_name_{i} rank_strategy=an_even_longer_name_{i}": 2 + 0.01 * i for i in range(9)}
    make_study(tmp_path, arms, tuned=False, seeds=[1, 2, 3, 4])
    for name in ("effect_sizes", "loss_curves", "forgetting_gain"):
        for figure in (DRAWINGS[name].figure(analyse(tmp_path)), DRAWINGS[name].column(analyse(tmp_path))):
            nothing_overlaps(figure, texts(figure), name)


def test_no_run_no_figure_and_one_seed_no_band(tmp_path):
    assert all(drawing.figure(analyse(tmp_path)) is None for drawing in drawings())
    make_study(tmp_path / "one", {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    figure = DRAWINGS["loss_curves"].figure(analyse(tmp_path / "one"))
    assert "n = 1" in figure.legends[0].get_texts()[0].get_text()


def test_every_drawing_a_file_defines_is_found_once_and_named_once():
    sources = [path.read_text() for path in Path(figures.__file__).parent.glob("*.py")]
    defined = [name for text in sources for name in re.findall(r"= Drawing\(\n?\s*(\w+)", text)]
    assert len(defined) >= 7
    assert sorted(drawing.name for drawing in drawings()) == sorted(defined)
    assert len(set(defined)) == len(defined)


THROW_AWAY = """
from lab.report.figure import Drawing, style

def {name}(analysis):
    return style.new(2.0)[0] if {drawn} else None

ANY = Drawing({name}, caption="A caption of {name}.", section="{section}", nothing="reason of {name}")
"""


@pytest.fixture
def figure_file(tmp_path, monkeypatch):
    """A file of figures beside the lab's own, for one test."""
    folder = tmp_path / "more"
    folder.mkdir()
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(folder)])

    def write(name, section, drawn=True):
        (folder / f"{name}.py").write_text(THROW_AWAY.format(name=name, section=section, drawn=drawn))
        monkeypatch.setitem(sys.modules, f"{figures.__name__}.{name}", None)  # so that it is unloaded afterwards
        del sys.modules[f"{figures.__name__}.{name}"]

    return write


@pytest.mark.parametrize(
    "section", ["Rank", "The baseline against itself", "Training"]
)  # without another block, with, among several
def test_a_figure_is_one_file_and_appears_in_its_section(tmp_path, figure_file, section):
    figure_file("throw_away", section)
    figure_file("empty", section, drawn=False)
    make_study(tmp_path / "study", {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    readme = write_report(analyse(tmp_path / "study"), tmp_path / "report")
    text = readme.read_text()
    shown = text.split(f"## {section}\n")[1].split("\n## ")[0]
    assert "![A caption of throw_away.](throw_away.png)" in shown
    assert text.count("throw_away.png") == 1
    assert "empty (reason of empty)" in text.split("Not drawn: ")[1]
    assert "caption of throw_away" in readme.with_name("report.html").read_text()
    assert readme.with_name("throw_away.pdf").exists()
    assert readme.with_name("throw_away_column.pdf").exists()


def test_a_figure_for_a_section_that_is_none_is_refused_by_name(tmp_path, figure_file):
    figure_file("throw_away", "Appendix")
    make_study(tmp_path / "study", {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    with pytest.raises(ValueError, match="throw_away is for the section 'Appendix'; there are Conditions, "):
        write_report(analyse(tmp_path / "study"), tmp_path / "report")


def test_curves_are_averaged_over_steps_that_every_run_has(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1, 2], noise=0.0)
    steps, mean, sd = over_seeds(analyse(tmp_path).arms[0].runs, "val_loss")
    assert list(steps) == list(range(0, STEPS + 1, 10))
    assert mean[0] == pytest.approx(3.02)
    assert sd[-1] > 0


def test_an_arm_is_drawn_against_the_baseline_s_runs_of_its_own_seeds(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1, 2, 3, 4], noise=0.05)
    losses = {}  # by arm, seed and step, from the files themselves
    for path in tmp_path.glob("*/metrics.csv"):
        _, _, arm, _, seed = path.parent.name.split("_")
        for row in csv.DictReader(path.open()):
            if row["val_loss"] and read(path.parent).data_seed in (None, int(seed[5:])):
                losses[arm, seed, int(row["step"])] = float(row["val_loss"])
    per_step = {}
    for (arm, seed, step), loss in losses.items():
        if arm == "b" and (seed != "seed=4" or step != 50):  # what one run did not measure is drawn for none
            per_step.setdefault(step, []).append(loss - losses["a", seed, step])
    cut = next(tmp_path.glob("*_b_*seed=4")) / "metrics.csv"
    lines = cut.read_text().splitlines()
    cut.write_text("\n".join(line for line in lines if not line.startswith("50,")) + "\n")
    (axes,) = DRAWINGS["loss_difference"].figure(analyse(tmp_path)).axes
    line = next(line for line in axes.lines if line.get_label() == "b (n = 4)")
    expected = {step: sum(own) / 4 for step, own in per_step.items() if len(own) == 4}
    assert 50 in per_step
    assert list(line.get_xdata()) == sorted(expected)
    assert line.get_ydata() == pytest.approx([expected[step] for step in sorted(expected)])


def test_no_difference_is_drawn_where_no_seed_is_shared_or_too_few_steps_are(tmp_path):
    study = make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1, 2, 3, 4])
    for run_dir in tmp_path.glob("*_a_*"):
        write(run_dir, replace(read(run_dir), seed=read(run_dir).seed + 50))
    assert study.baseline == "a"
    assert DRAWINGS["loss_difference"].figure(analyse(tmp_path)) is None


def test_a_caption_explains_only_what_its_figure_shows(tmp_path, analyses):
    drawing = DRAWINGS["learning_rates"]
    make_study(tmp_path / "flat", {"a": 2.0, "b": 2.1}, seeds=[1, 2, 3, 4])
    make_study(tmp_path / "cliff", {"a": 2.0, "b": 2.1}, seeds=[1, 2, 3, 4])
    for tried in (tmp_path / "cliff").glob("*_tune_a_lr=0.01_*"):
        write(tried, replace(read(tried), metrics=read(tried).metrics | {"val_loss": 9.0}))
    found = {}
    for name in ("flat", "cliff"):
        analysis = analyse(tmp_path / name)
        dotted = any(line.get_color() == "#999999" for line in drawing.figure(analysis).axes[0].lines)
        found[name] = ("dotted" in drawing.caption_of(analysis), dotted)
        assert "moved" not in drawing.caption_of(analysis)  # one tuning seed, so none is missing
    assert found == {"flat": (False, False), "cliff": (True, True)}


def test_sixteen_arms_look_different_without_relying_on_colour():
    assert len({(marker(i)["color"], marker(i)["marker"]) for i in range(16)}) == 16
    assert len(set(COLOURS)) == 8
    assert len({marker(i)["marker"] for i in range(8)}) == 8


def test_a_heat_map_places_modules_by_kind_and_layer():
    ranks = {"m.layers.0.q_proj": 4, "m.layers.1.q_proj": 8, "m.layers.1.mlp.up_proj": 2, "lm_head": 1}
    kinds, layers = rows_and_layers([ranks])
    assert (kinds, layers) == (["q_proj", "up_proj", "lm_head"], 2)
    values = grid(ranks, kinds, layers)
    assert values[0].tolist() == [4, 8]
    assert values[1, 1] == 2
    assert rows_and_layers([{"h.0.attn.c_proj": 4, "h.0.mlp.c_proj": 8}])[0] == ["c_proj", "mlp.c_proj"]


def test_the_panels_of_a_heat_map_have_the_same_rows_and_columns(tmp_path):
    """Arms that switched layers hold ranks of some modules only, in the order in which they went."""
    whole = {f"m.layers.{layer}.{name}": 8 for layer in range(3) for name in ("q_proj", "o_proj", "fc1")}
    some = {"m.layers.1.fc1": 5, "m.layers.0.q_proj": 3}
    make_study(
        tmp_path,
        {"whole": 2.0, "some": 2.1},
        tuned=False,
        seeds=[1],
        per_arm={"whole": {"ranks": whole}, "some": {"ranks": some}},
    )
    panels = {axes.get_title(): axes for axes in DRAWINGS["rank_heatmap"].figure(analyse(tmp_path)).axes}
    assert [text.get_text() for text in panels["whole"].get_yticklabels()] == ["q_proj", "o_proj", "fc1"]
    placed = {text.get_position(): text.get_text() for text in panels["some"].texts}
    assert placed == {(0, 0): "3", (1, 2): "5"}
    assert panels["some"].get_xlim() == panels["whole"].get_xlim()
    assert panels["some"].get_ylim() == panels["whole"].get_ylim()


def test_a_heat_map_has_a_row_for_layers_that_may_switch_and_ended_full(tmp_path):
    names = [f"m.layers.{layer}.{name}" for layer in range(2) for name in ("q_proj", "fc1", "fc2")]
    ranks = {"m.layers.0.q_proj": 3, "m.layers.1.fc2": 5}
    some = {"ranks": ranks, "config": {"method": "full"}}
    make_study(tmp_path, {"never": 2.0, "some": 2.1}, tuned=False, seeds=[1], per_arm={"some": some})
    for never in tmp_path.glob("*_never_*"):
        write(never, replace(read(never), ranks={}))
    (run_dir,) = tmp_path.glob("*_some_*")
    (run_dir / "ledger").mkdir()
    targets = {name: {"shape": (8, 8)} for name in names}
    (run_dir / "ledger/rows.jsonl").write_text(f"0 {json.dumps({'targets': targets})}\n")
    panels = {axes.get_title(): axes for axes in DRAWINGS["rank_heatmap"].figure(analyse(tmp_path)).axes}
    assert [text.get_text() for text in panels["some"].get_yticklabels()] == ["q_proj", "fc1", "fc2"]
    assert {text.get_position(): text.get_text() for text in panels["some"].texts} == {(0, 0): "3", (1, 2): "5"}


@pytest.mark.parametrize(
    ("rates", "named"),
    [
        ([1e-4, 1.2e-4, 3e-4, 3e-2], ["1e-4", "3e-4", "1e-3", "3e-3", "0.01", "0.03"]),  # two are too near to be named
        ([0.02, 0.01, 0.04], ["0.01", "0.02", "0.04"]),
        ([3.2e-4, 5.6e-4, 1e-3], ["3.2e-4", "5.6e-4", "1e-3"]),
    ],
)
def test_the_axis_of_learning_rates_holds_all_that_were_tried_and_names_them_or_half_decades(rates, named):
    axes = Figure().add_subplot()
    room_for(axes, rates)  # of some no run came to a value, so that no line leads to them
    low, high = axes.get_xlim()
    assert low < min(rates) <= max(rates) < high
    FigureCanvasAgg(axes.figure).draw()
    shown = [tick.label1.get_text() for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert shown == named
    assert not any(tick.label1.get_text() for tick in axes.xaxis.get_minor_ticks())


def test_the_frontier_is_what_no_cheaper_arm_beats(tmp_path):
    for i, (rank, loss) in enumerate([(1, 2.5), (2, 2.2), (4, 2.3), (8, 2.1)]):
        make_run(tmp_path / str(i), arm=None, stage=None, seed=0, loss=loss, rank=rank)
    assert frontier_arms(analyse(tmp_path)) == ["rank=1", "rank=2", "rank=8"]


def test_an_axis_names_its_unit():
    assert axis("test_loss") == "test loss (nats per token)"
    assert axis("seconds.train") == "train (s)"


@pytest.fixture(scope="module")
def blown_up(tmp_path_factory):
    """Ranks beside a full arm that is far better, rates that blow up to 8 nats, and two validation points a run."""
    folder = tmp_path_factory.mktemp("blown_up")
    means = {"r64": 2.0, "r4": 2.1, "r8": 2.004, "r16": 2.0, "full": 1.5}
    ranks = {arm: {"rank": int(arm[1:]) if arm != "full" else None} for arm in means}
    make_study(folder, means, noise=0.004, per_arm=ranks, contrasts=["r4", "r8", "r16"])
    for number, (arm, rank) in enumerate((arm, each["rank"]) for arm, each in ranks.items()):
        make_run(folder / f"{900 + number}", arm=arm, seed=0, loss=8.0, stage="tune", lr=3e-2, rank=rank)
    for path in folder.glob("*/metrics.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["val_loss"] = row["val_loss"] if row["step"] in ("0", str(STEPS)) else ""
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return analyse(folder)


def test_a_rate_that_blew_up_is_marked_at_the_top_and_squashes_nothing(blown_up):
    axes = DRAWINGS["learning_rates"].figure(blown_up).axes[0]
    assert axes.get_ylim()[1] < 3.5  # the base's loss is 3.02
    marks = [line for line in axes.lines if line.get_marker() == ABOVE and list(line.get_ydata()) == [0.965]]
    assert len(marks) == 5
    assert {line.get_xdata()[0] for line in marks} == {3e-2}
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert any(re.fullmatch(r"above \d\.\d+ \((the base|off scale)\)", text) for text in legend)


def test_each_rate_is_drawn_once_and_the_symbol_of_what_is_off_scale_is_no_arms_own(tmp_path):
    """The last rate lies just above the ceiling, where the axes still reach; all arms' curves are the same."""
    arms = ["a", "b", "c"]
    declare(tmp_path, {arm: [] for arm in arms}, "a", seeds=[1], twin_seeds=[])
    losses = {1e-4: 2.4, 3e-4: 2.2, 1e-3: 2.0, 3e-3: 2.1, 1e-2: 3.05}  # the base's is 3.02
    for arm in arms:
        for lr, loss in losses.items():
            metrics = {"val_loss": loss}
            make_run(tmp_path / f"{arm}{lr}", arm=arm, seed=0, loss=loss, stage="tune", lr=lr, metrics=metrics)
        make_run(tmp_path / f"{arm}1", arm=arm, seed=1, loss=2.0)
    axes = DRAWINGS["learning_rates"].figure(analyse(tmp_path)).axes[0]
    points = [line for line in axes.lines if line.get_marker() in MARKERS and line.get_linestyle() == "None"]
    own = [line for line in points if line.get_color() != "none"]  # a ring is no point
    drawn = [(rate, loss) for line in own for rate, loss in zip(*line.get_data(), strict=True) if rate != 1e-2]
    assert len(drawn) == 3 * 4
    assert not [1 for line in own for rate in line.get_xdata() if rate == 1e-2]
    off = [line for line in axes.lines if line.get_marker() == ABOVE and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in off] == [1e-2] * 3
    assert ABOVE not in MARKERS
    (legend,) = axes.figure.legends
    assert any(text.get_text().startswith("above ") for text in legend.get_texts())


def test_the_line_of_an_arm_ends_at_the_ceiling():
    rates, losses = below({1e-4: 5.0, 1e-3: 1.0, 1e-2: 3.0}, 2.0)
    assert [rates[1], rates[3]] == pytest.approx([1e-3 / 10**0.25, 1e-3 * 10**0.5])
    assert [losses[1], losses[2], losses[3]] == [2.0, 1.0, 2.0]
    assert math.isnan(losses[0])
    assert math.isnan(losses[4])
    assert below({1e-4: 2.0, 1e-3: 1.0}, math.inf) == ([1e-4, 1e-3], [2.0, 1.0])
    assert below({}, 1.0) == ([], [])


def test_means_of_one_and_of_two_tuning_seeds_are_drawn_alike(tmp_path):
    """The second seed is 0.4 harder at every rate; three rates ran on both, one on the second alone."""
    curve = {1e-4: 2.4, 3e-4: 2.2, 1e-3: 2.0, 3e-3: 2.1, 1e-2: 2.6}
    study = declare(tmp_path, {"a": []}, "a", contrasts=[], seeds=[1], twin_seeds=[])
    for lr, loss in curve.items():
        for seed in [0, 99] if lr in (3e-4, 1e-3, 3e-3) else [0] if lr < 1e-3 else [99]:
            metrics = {"val_loss": loss + 0.4 * (seed == 99)}
            make_run(tmp_path / f"{lr}_{seed}", arm="a", seed=seed, loss=2.0, stage="tune", lr=lr, metrics=metrics)
    make_run(tmp_path / "1", arm="a", seed=study.seeds[0], loss=2.0)
    analysis = analyse(tmp_path)
    assert means(analysis.arms[0]) == {lr: pytest.approx(loss + 0.2) for lr, loss in curve.items()}
    axes = DRAWINGS["learning_rates"].figure(analysis).axes[0]
    assert axes.get_ylabel().endswith("mean of n = 1 to 2 seeds")


def test_the_ceiling_is_the_bases_loss_or_a_robust_one_and_never_cuts_a_choice():
    fine = [2.0, 2.1, 2.3, 2.6, 2.2]
    assert ceiling(fine, [2.0], [3.0]) == (math.inf, "")  # nothing lies above the base
    assert ceiling([*fine, 8.0], [2.0], [2.7]) == (2.7, "the base")
    assert ceiling([*fine, 8.0], [2.0], [])[1] == "off scale"
    assert 2.6 <= ceiling([*fine, 8.0], [2.0], [])[0] < 4
    assert ceiling([*fine, 8.0], [2.0], [7.9])[0] < 4  # an untrained base is no scale
    assert ceiling([1.0, 1.0, 1.0, 5.0], [1.0, 5.0], [])[0] == math.inf  # every rate of an arm is far above the others'
    assert ceiling([], [], []) == (math.inf, "")
    assert ceiling([2.0, 2.0, 2.0], [2.0], [1.0]) == (math.inf, "")


def test_the_axis_of_effects_is_the_judged_arms_and_an_arrow_leads_to_the_others(blown_up):
    axes = DRAWINGS["effect_sizes"].figure(blown_up).axes[0]
    low, high = axes.get_xlim()
    assert (low, high) == reach([*blown_up.contrasts, *blown_up.described], blown_up.judgement.margin)
    assert -0.1 < low < high < 0.2
    (arrow,) = [line for line in axes.lines if line.get_marker() == "<"]
    assert arrow.get_xdata()[0] == low
    full = blown_up.described[0].statistics.mean
    assert f"{full:+.3g}".replace("-", "−") in [text.get_text() for text in axes.texts]
    assert not [text for text in axes.figure.legends[0].get_texts() if "noise floor" in text.get_text()]
    # a mean is a stroke across its interval, which a disk would hide
    assert {line.get_marker() for line in axes.lines} <= {"|", "<", "None"}


def test_two_points_of_validation_loss_are_not_joined(blown_up):
    upper, lower = DRAWINGS["loss_curves"].figure(blown_up).axes
    assert not [each for each in upper.collections if isinstance(each, PolyCollection)]
    assert {line.get_linestyle() for line in upper.lines} == {"None"}
    assert len([each for each in lower.collections if isinstance(each, PolyCollection)]) == 5


def test_an_arm_without_a_rank_that_is_far_off_does_not_squash_the_ranks(blown_up):
    axes = DRAWINGS["rank_comparison"].figure(blown_up).axes[0]
    assert axes.get_ylim()[0] > 1.8
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert any(re.fullmatch(r"mean of full \(n = 6\): 1\.[45]\d*, below the axis", text) for text in legend)


def test_a_rank_without_a_value_of_the_metric_is_left_out_of_its_curve(tmp_path):
    ranks = {"r16": 2.0, "r2": 2.4, "r4": 2.2, "r8": 2.1}
    blank = {"metrics": {"test_loss": None}}
    for lost, drawn in ((("r4",), [2, 8, 16]), (("r4", "r8", "r2"), None)):
        own = {arm: {"rank": int(arm[1:])} | (blank if arm in lost else {}) for arm in ranks}
        make_study(tmp_path / str(len(lost)), ranks, tuned=False, per_arm=own, contrasts=["r8"])
        analysis = analyse(tmp_path / str(len(lost)))
        figure = DRAWINGS["rank_comparison"].figure(analysis)
        assert (None if figure is None else figure.axes[0].get_xticks().tolist()) == drawn
        write_report(analysis, tmp_path / f"{len(lost)}_report")


def drawn_means(figure):
    """Height of each errorbar's marker by the label of its container."""
    return {each.get_label(): float(each[0].get_ydata()[0]) for each in figure.axes[0].containers}


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """Ranks, of which two took four seeds and two eight; the later four are 0.5 nats harder for every arm."""
    folder = tmp_path_factory.mktemp("unequal")
    ranks = {"r16": 2.0, "r2": 2.3, "r4": 2.2, "r8": 2.1}
    few = [1, 2, 3, 4]
    study = {"seeds": [*few, 5, 6, 7, 8], "contrasts": ["r4", "r8"], "tuned": False, "noise": 0.0}
    make_study(folder, ranks, per_arm={arm: {"rank": int(arm[1:])} for arm in ranks}, **study)
    for path in sorted(folder.glob("*/result.json")):
        held = read(path.parent)
        if held.seed > 4 and held.arm in ("r2", "r8"):
            shutil.rmtree(path.parent)
        elif held.seed > 4:
            held.metrics["test_loss"] += 0.5
            write(path.parent, held)
    return analyse(folder)


def test_means_that_are_drawn_beside_each_other_are_over_the_same_seeds(unequal):
    own = {arm.name: arm.values("test_loss") for arm in unequal.arms}
    assert {name: len(values) for name, values in own.items()} == {"r16": 8, "r2": 4, "r4": 8, "r8": 4}
    shared = {name: sum(values[:4]) / 4 for name, values in own.items()}
    found = drawn_means(DRAWINGS["frontier"].figure(unequal))
    assert found == {f"{name} (n = 4)": pytest.approx(mean) for name, mean in shared.items()}
    assert frontier_arms(unequal) == ["r2", "r4", "r8", "r16"], "r8 only seems better than r16 over other seeds"
    (bars,) = DRAWINGS["rank_comparison"].figure(unequal).axes[0].containers
    assert list(bars[0].get_ydata()) == pytest.approx([shared[f"r{rank}"] for rank in (2, 4, 8, 16)])
    assert "n = 4)" in bars.get_label()
    table = ranks_table(unequal)
    assert "over the seeds that all of them completed" in table.caption
    assert [row[2] for row in table.rows] == ["4"] * 4
    assert [float(row[3]) for row in table.rows] == pytest.approx(
        [shared[f"r{rank}"] for rank in (2, 4, 8, 16)], abs=1e-4
    )
    shares = [float(row[4]) for row in table.rows]
    assert shares == sorted(shares), "each rank is better than the last on every seed"


def test_means_of_arms_that_share_no_seed_are_each_its_own(tmp_path):
    for n, (rank, seed, loss) in enumerate([(2, 1, 2.4), (4, 2, 2.2), (8, 3, 2.0)]):
        make_run(tmp_path / str(n), arm=None, stage=None, seed=seed, loss=loss, rank=rank)
    analysis = analyse(tmp_path)
    assert on_shared_seeds(analysis.arms, "test_loss") == {"rank=2": [2.4], "rank=4": [2.2], "rank=8": [2.0]}
    assert len(drawn_means(DRAWINGS["frontier"].figure(analysis))) == 3


def test_markers_stand_in_the_order_of_their_counts_and_the_line_ends_at_one(tmp_path):
    """Two counts so close that a shift by a marker's width would turn them round, and three arms of one count."""
    counts = {"a": 73_984, "b": 73_920, "c": 75_000, "d": 75_000, "e": 75_000, "f": 76_500}
    study = declare(tmp_path, {arm: [] for arm in counts}, "a", seeds=[1, 2], contrasts=[], twin_seeds=[])
    for i, (arm, count) in enumerate(counts.items()):
        for seed in study.seeds:
            place = make_run(tmp_path / f"{arm}{seed}", arm=arm, seed=seed, loss=2.0 + seed / 100 - 0.01 * i)
            held = read(place)
            held.trainable_params = count
            write(place, held)
    analysis = analyse(tmp_path)
    figure = DRAWINGS["frontier"].figure(analysis)
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    at = {}
    for each in axes.containers:
        line = each[0]
        at[each.get_label()[0]] = float(line.get_transform().transform((line.get_xdata()[0], line.get_ydata()[0]))[0])
    true = {arm: float(axes.transData.transform((count, 0))[0]) for arm, count in counts.items()}
    assert sorted(at, key=at.get)[:2] == ["b", "a"]
    assert {at["c"], at["d"], at["e"]}.isdisjoint({at["a"], at["f"]})
    assert max(at["c"], at["d"], at["e"]) < at["f"]
    assert len({at[arm] for arm in "cde"}) == 3, "equal counts stand side by side"
    for arm in (*frontier_arms(analysis), "a", "b", "f"):
        assert at[arm] == pytest.approx(true[arm], abs=0.01), "the line that leads there ends at its marker"


def test_a_single_seed_has_no_interval_and_the_legend_names_none(tmp_path):
    for seeds, named in (([1], False), ([1, 2], True)):
        make_study(tmp_path / str(len(seeds)), {"a": 2.0, "b": 2.1}, tuned=False, seeds=seeds)
        (legend,) = DRAWINGS["effect_sizes"].figure(analyse(tmp_path / str(len(seeds)))).legends
        assert ("judged: mean, 90 % thick, 95 % thin" in [text.get_text() for text in legend.get_texts()]) == named
        assert (legend.get_lines()[-1].get_linestyle() == "-") == named


def test_the_band_of_the_knee_is_said_to_be_wider_than_its_ranks():
    assert "the band is drawn a little wider" in DRAWINGS["rank_comparison"].caption


def test_a_heat_map_says_every_rank_in_its_cell(analyses):
    figure = DRAWINGS["rank_heatmap"].figure(analyses[rank_strategies])
    panel = next(axes for axes in figure.axes if axes.get_title() == "attention_heavy")
    assert [text.get_text() for text in panel.texts] == ["24"] * 16 + ["8"] * 12


def test_a_heat_map_of_many_arms_shows_the_uneven_ones_and_names_those_it_leaves_out(tmp_path):
    names, uneven = [f"arm{i}" for i in range(9)], {"m.layers.0.q_proj": 4, "m.layers.1.q_proj": 8}
    even = {"m.layers.0.q_proj": 6, "m.layers.1.q_proj": 6}
    own = {name: {"ranks": uneven if name in ("arm7", "arm8") else even} for name in names}
    make_study(tmp_path / "one", dict.fromkeys(names, 2.0), tuned=False, seeds=[1], per_arm=own)
    analysis = analyse(tmp_path / "one")
    titles = [axes.get_title() for axes in DRAWINGS["rank_heatmap"].figure(analysis).axes if axes.get_title()]
    assert titles == ["arm0", "arm1", "arm2", "arm3", "arm7", "arm8"]
    left = "Not shown: arm4 (rank 6), arm5 (rank 6), arm6 (rank 6)."
    assert left in write_report(analysis, tmp_path / "report").read_text()
    own = {name: {"ranks": uneven} for name in names}
    make_study(tmp_path / "all", dict.fromkeys(names, 2.0), tuned=False, seeds=[1], per_arm=own)
    assert (
        DRAWINGS["rank_heatmap"]
        .caption_of(analyse(tmp_path / "all"))
        .endswith("Not shown: arm6 (uneven), arm7 (uneven), arm8 (uneven).")
    )
    make_study(tmp_path / "few", dict.fromkeys(names[:6], 2.0), tuned=False, seeds=[1], per_arm=own)
    assert "Not shown" not in DRAWINGS["rank_heatmap"].caption_of(analyse(tmp_path / "few"))


def test_a_deep_models_ranks_are_stacked_and_shown_in_letters_that_can_be_read(tmp_path):
    ranks = {f"m.layers.{layer}.{name}": 4 + layer % 3 for layer in range(30) for name in ("q_proj", "up_proj")}
    long = "init=a_rather_long_scheme_name rank_strategy=an_even_longer_name"
    make_study(tmp_path, {"a": 2.0, long: 2.1}, tuned=False, seeds=[1], per_arm={long: {"ranks": ranks}})
    for figure, digits in ((DRAWINGS["rank_heatmap"].figure, 60), (DRAWINGS["rank_heatmap"].column, 0)):
        drawn = figure(analyse(tmp_path))
        nothing_overlaps(drawn, texts(drawn), "rank_heatmap")
        panel = next(axes for axes in drawn.axes if "longer_name" in axes.get_title())
        assert len(panel.texts) == digits  # in a column thirty layers leave no room for a number
        assert all(text.get_fontsize() >= 4 for text in panel.texts)
