import csv
import html.parser
import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
from synthetic import declare, init_comparison, make_run, make_study, rank_strategies, rank_sweep

from lab.errors import UsageError
from lab.report.__main__ import main
from lab.report.analysis import analyse
from lab.report.card import card
from lab.report.document import Bullets, Paragraph, Table, markdown, number, p_text, page, signed
from lab.report.figure import drawings
from lab.report.findings import report
from lab.report.latex import latex
from lab.report.methods import ALWAYS, CITED, references
from lab.report.render import write_report
from lab.report.run import load_run
from lab.report.scope import limits
from lab.report.sentences import sentence


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["lab-report", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return ended.value.code, out, err


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A rank sweep with a hostile name among its failures, reported once."""
    folder = tmp_path_factory.mktemp("sweep")
    rank_sweep(folder)
    make_run(
        folder / "99_verdict_r8_lr=0.001_seed=9", arm="r8", seed=9, loss=9.0, status="failed", rank=8,
        error={"type": "RuntimeError", "message": "<script>alert('x')</script> | a*b_c & \\cite{x}"},
    )  # fmt: skip
    write_report(analyse(folder), folder / "report")
    return folder


def test_everything_the_contract_names_is_written(sweep):
    names = {path.name for path in (sweep / "report").iterdir()}
    assert names >= {"README.md", "report.html", "all_results.json", "runs.csv", "comparisons.json", "methods.md"}
    assert names >= {"rank_comparison.png", "rank_comparison.pdf", "loss_curves.png", "effect_sizes.pdf", "tables"}
    assert (sweep / "report" / "tables" / "contrasts.tex").read_text().count(r"\toprule") == 1


def test_json_is_strict_and_the_table_is_tidy(sweep):
    def refuse(constant):
        raise AssertionError(constant)

    for name in ("all_results.json", "comparisons.json"):
        json.loads((sweep / "report" / name).read_text(), parse_constant=refuse)
    with (sweep / "report" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 5 + 7 * 6 + 6 + 1
    failed = next(row for row in rows if row["status"] == "failed")
    assert failed["test_loss"] == ""
    assert "RuntimeError" in failed["error"]


def test_the_summary_answers_the_question_in_words(sweep):
    text = (sweep / "report" / "README.md").read_text()
    assert "r32 is equivalent to r64" in text
    assert "r4 is worse than r64 at the rates tried" in text
    assert "Where do returns diminish? At rank 16" in text
    assert "Recommended: rank 16" in text
    assert "2,048" not in text.split("linear in the rank")[0]
    assert re.search(r"linear in the rank\? Yes: 14,336 per unit of rank", text)
    assert "## The baseline against itself" in text
    assert "is no noise floor of a contrast" in text
    assert "cannot resolve" not in text
    assert not re.search(r"clear advantage|validates|significant improvement|✓", text)


def test_the_page_is_self_contained_and_escaped(sweep):
    text = (sweep / "report" / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "http" not in re.sub(r"data:[^\"]+", "", text)

    class Balanced(html.parser.HTMLParser):
        stack: list[str]

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    parser = Balanced()
    parser.stack = []
    parser.feed(text)
    assert parser.stack == []


def test_markdown_and_latex_escape_what_a_name_may_hold():
    table = Table("x", "50 % & more", ["a|b", "n_1"], [["<b>", "–"], ["svd[gradient]", "1 ± 2"]])
    assert "a\\|b" in markdown([table])
    assert "\\<b>" in markdown([Paragraph("<b>")])
    assert markdown([Paragraph("[x](http://y) `z` *w* val_loss _u_")]).count("\\") == 7
    text = latex(table)
    assert r"50 \% \& more" in text
    assert r"n\_1" in text
    assert "--" in text
    assert "<b>" not in page("<t>", [Bullets(["<b>"])], None)


def test_a_missing_value_is_a_dash_and_a_zero_is_a_zero():
    assert number(None) == "–"
    assert number(0.0) == "0.0000"
    assert p_text(None) == "–"
    assert p_text(1e-9) == "< 0.001"


@pytest.mark.parametrize(
    ("value", "digits", "plain", "with_sign"),
    [
        (0.0261, 4, "0.0261", "+0.0261"), (-0.0261, 4, "-0.0261", "-0.0261"), (2.14159, 4, "2.1416", "+2.1416"),
        (0.0, 4, "0.0000", "+0.0000"), (-0.0, 4, "0.0000", "+0.0000"), (0.0005, 4, "0.0005", "+0.0005"),
        (3e-5, 4, "3e-05", "+3e-05"), (-1.234e-5, 4, "-1.23e-05", "-1.23e-05"), (999.94, 1, "999.9", "+999.9"),
        (0.04, 1, "0.04", "+0.04"), (0.0432, 1, "0.043", "+0.043"), (0.4, 1, "0.4", "+0.4"),
        (20.13, 1, "20.1", "+20.1"),
        (0.4, 0, "0.4", "+0.4"), (12.0, 0, "12", "+12"), (0.004, 2, "0.004", "+0.004"),
        (200923702.1482, 4, "200,923,702", "+200,923,702"), (-1234.5, 1, "-1,234", "-1,234"),
        (3.4e12, 4, "3.4e+12", "+3.4e+12"), (-3.456e12, 1, "-3.46e+12", "-3.46e+12"),
    ],
)  # fmt: skip
def test_a_number_keeps_significant_digits_and_usual_ones_are_as_they_were(value, digits, plain, with_sign):
    assert (number(value, digits), signed(value, digits)) == (plain, with_sign)


def test_an_equivalence_within_a_small_margin_says_by_how_much(tmp_path):
    make_study(tmp_path, {"a": 2e-5, "b": 2e-5}, noise=4e-6, tuned=False, margin=3e-5, seeds=list(range(1, 9)))
    row = next(row for row in analyse(tmp_path).contrasts if row.arm_a == "b")
    said = sentence(row)
    assert row.verdict == "equivalent"
    assert "within ±3e-05" in said
    mean = float(re.search(r"differs by ([+-][\d.e-]+) nats", said)[1])
    assert mean == pytest.approx(row.statistics.mean, rel=0.01)
    assert row.statistics.mean != 0


def test_perplexity_is_exp_of_the_mean_loss(tmp_path):
    declare(tmp_path, {"a": []}, "a", contrasts=[], seeds=[1, 2])
    for seed, loss in ((1, 1.0), (2, 3.0)):
        make_run(tmp_path / f"{seed}", arm="a", seed=seed, loss=loss)
    arms = next(b for b in report(analyse(tmp_path), [], []) if isinstance(b, Table) and b.name == "arms")
    # exp(2) = 7.39; the mean of exp would be 11.40
    assert arms.rows[0][list(arms.columns).index("perplexity")] == "7.39"


@pytest.mark.parametrize("make", [init_comparison, rank_strategies])
def test_every_study_has_its_words(tmp_path, make):
    make(tmp_path)
    text = markdown(report(analyse(tmp_path), [], []))
    assert "## What this cannot show" in text
    assert "None" not in text
    assert "nan" not in text.lower().replace("nan at step", "")


def test_a_study_without_a_run_yet_says_so_and_a_folder_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, tmp_path)
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "holds no run and no study" in err
    declare(tmp_path, {"a": [], "b": []}, "a")
    code, out, _ = run(monkeypatch, capsys, tmp_path)
    assert code == 0
    assert "0 runs were read: none" in out
    assert "No run was found" in (tmp_path / "report" / "README.md").read_text()


def test_a_half_finished_study_reports_what_is_there_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    declare(tmp_path, {"a": [], "b": []}, "a")
    for seed in (1, 2):
        make_run(tmp_path / f"{seed}_a", arm="a", seed=seed, loss=2.0 + 0.1 * seed)
    make_run(tmp_path / "3_b", arm="b", seed=1, loss=2.0, status="running")
    (tmp_path / "4_b" / ".hydra").mkdir(parents=True)
    code, out, _ = run(monkeypatch, capsys, tmp_path)
    assert code == 0
    assert "declared verdict jobs have no run yet" in out
    readme = (tmp_path / "report" / "README.md").read_text()
    assert "- b, seed 2" in readme
    assert "interrupted" in readme
    assert "4_b" in readme
    assert "no verdict" in readme


def test_refusing_to_compare_says_which_and_ends_unwell(tmp_path, monkeypatch, capsys):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, per_arm={"b": {"data": "e" * 64}})
    code, _, err = run(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert "data differ" in err
    assert "e" * 64 in err
    assert '"verdict": "withheld"' in (tmp_path / "report" / "comparisons.json").read_text()


def test_a_single_run_has_a_card_and_no_verdict(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "0", arm="a", seed=1, loss=2.0, overrides=("init=svd",))
    code, out, _ = run(monkeypatch, capsys, tmp_path / "0")
    assert code == 0
    assert "16 × 28" in out
    assert "test_loss" in out
    assert "no verdict" in out
    assert not (tmp_path / "0" / "report").exists()
    assert run(monkeypatch, capsys, tmp_path / "0", "--margin", "1%")[0] == 2


@pytest.mark.parametrize(
    ("labelled", "words"),
    [
        ((18_000, 18_000), "54,000 tokens, 18,000 of them labelled."),
        ((18_000, 21_000), "54,000 tokens, 18,000 to 21,000 of them labelled."),
        ((0, 0), "54,000 tokens, 0 of them labelled."),
        ((None, None), "54,000 tokens."),  # records of before the count
        ((18_000, None), "54,000 tokens."),  # a span would leave out a run without saying so
    ],
)
def test_a_budget_tells_labelled_tokens_from_all_tokens(tmp_path, labelled, words):
    declare(tmp_path, {"a": []}, "a", contrasts=[], seeds=[1, 2])
    for seed, count in zip((1, 2), labelled, strict=True):
        make_run(tmp_path / f"{seed}", arm="a", seed=seed, loss=2.0, labelled_tokens=count)
    assert f"- Budget: 60 optimizer steps, {words}\n" in markdown(report(analyse(tmp_path), [], []))
    own = "54,000" if labelled[0] is None else f"54,000, {labelled[0]:,} of them labelled"
    done = next(b for b in card(load_run(tmp_path / "1")) if isinstance(b, Table) and b.name == "done")
    assert ["tokens", own] in done.rows


def test_two_studies_are_compared_arm_by_arm(tmp_path, monkeypatch, capsys):
    make_study(tmp_path / "first", {"a": 2.0, "b": 2.1}, tuned=False, name="before")
    make_study(tmp_path / "second", {"a": 1.9, "b": 2.1}, tuned=False, name="after", draw=8)
    code, out, _ = run(monkeypatch, capsys, tmp_path / "first", tmp_path / "second")
    assert code == 0
    rows = json.loads((tmp_path / "first" / "report" / "vs_second" / "comparisons.json").read_text())
    judged = {(row["arm_a"], row["arm_b"]): row["verdict"] for row in rows if row["kind"] == "contrast"}
    assert judged == {("after: a", "before: a"): "a_better", ("after: b", "before: b"): "equivalent"}
    assert "not declared before the runs" in out


def test_studies_without_a_shared_arm_meet_at_the_baseline(tmp_path, monkeypatch, capsys):
    make_study(tmp_path / "first", {"a": 2.0, "b": 2.1}, tuned=False)
    make_study(tmp_path / "second", {"c": 1.9, "d": 2.1}, tuned=False)
    assert run(monkeypatch, capsys, tmp_path / "first", tmp_path / "second", "--to", tmp_path / "out")[0] == 0
    rows = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    assert {row["arm_b"] for row in rows if row["kind"] == "contrast"} == {"first: a"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nowhere"], "no directory"),
        (["study", "--baseline", "x"], "no arm"),
        (["study", "--margin", "much"], "margin"),
    ],
)
def test_a_users_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, word):
    make_study(tmp_path / "study", {"a": 2.0, "b": 2.1}, tuned=False)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert word in err
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    make_study(tmp_path / "study", {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--to"):
        write_report(analyse(tmp_path / "study"), tmp_path / "file" / "report")


def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path, monkeypatch, capsys):
    make_study(tmp_path / "study", {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    own = {"README.md": "mine", "tables/mine.tex": "mine", "tensorboard/events": "mine"}
    for name, text in own.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    code, _, err = run(monkeypatch, capsys, tmp_path / "study", "--to", tmp_path / "own")
    assert code == 2
    assert "is not empty and holds no earlier report" in err
    assert "choose a new folder" in err
    assert {name: (tmp_path / "own" / name).read_text() for name in own} == own
    for _ in range(2):  # a new folder, and then the report that lies there
        assert run(monkeypatch, capsys, tmp_path / "study", "--to", tmp_path / "new")[0] == 0
    (tmp_path / "empty").mkdir()
    assert run(monkeypatch, capsys, tmp_path / "study", "--to", tmp_path / "empty")[0] == 0


def test_a_report_written_again_is_the_same(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1, 2])
    found = []
    for _ in range(2):
        folder = write_report(analyse(tmp_path), tmp_path / "report").parent
        found.append({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    assert found[0] == found[1]


def test_tensorboard_holds_the_arms_and_the_report(sweep):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    runs = EventMultiplexer().AddRunsFromDirectory(str(sweep / "report" / "tensorboard")).Reload().Runs()
    assert len(runs) == 1 + 7 * 6 + 6
    assert "report" in runs["."]["tensors"]


def test_every_citation_has_its_entry():
    keys = {key for group in CITED.values() for key in group.values()} | set(ALWAYS)
    extra = {"hu2022lora", "liu2024dora", "kalajdzievski2023rslora", "jamieson2016halving"}
    assert references(sorted(keys | extra)).count("@") == len(keys | extra)


@pytest.mark.slow
def test_the_first_line_comes_within_a_second(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1, 2])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # -u is not given: a line that sits in a buffer is not printed
    process = subprocess.Popen([sys.executable, "-m", "lab.report", tmp_path], stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    process.kill()
    process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert line.startswith("Reading")
    # processor time, so that a busy machine does not decide; 0.1 s measured
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.slow
def test_a_report_needs_no_torch():
    code = (
        "import sys, lab.report.render, lab.report.pair, lab.report.card, lab.sweep.runs; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_study_whose_arms_took_no_turns_says_that_its_seconds_compare_hours(tmp_path):
    ranks = {"r4": 4, "r8": 8, "r16": 16}
    in_blocks = [(arm, seed) for arm in ranks for seed in range(1, 7)]
    orders = {"blocks": in_blocks, "turns": sorted(in_blocks, key=lambda job: job[1])}
    for name, order in orders.items():
        declare(tmp_path / name, {arm: [] for arm in ranks}, "r16", contrasts=["r4", "r8"], seeds=list(range(1, 7)))
        for turn, (arm, seed) in enumerate(order):  # tens of seconds a doubling; make_run jitters by up to 2
            make_run(
                tmp_path / name / f"{turn}_verdict_{arm}", arm=arm, seed=seed, loss=2.0, rank=ranks[arm],
                seconds=10.0 * ranks[arm],
            )  # fmt: skip
        text = markdown(report(analyse(tmp_path / name), [], []))
        assert ("seconds, and losses at equal time" in text) == (name == "blocks")
        answer = text.split("Does training time depend on the rank? ")[1]
        assert answer.startswith("Open: each doubling" if name == "blocks" else "Yes: each doubling")


@pytest.mark.parametrize(
    ("off", "launcher", "says"),
    [
        (
            None,
            "BasicLauncher",
            r"Yes: each doubling of the rank took \+\d+\.\d+ s \(.*\), \d+\.\d s from rank 4 to 16\.",
        ),
        (None, "SlurmLauncher", r"Open: .*, but jobs ran beside each other and no A/A pair says "),
        (5.0, "SlurmLauncher", r"Yes: "),
        (
            200.0,
            "BasicLauncher",
            r"Open: .* from rank 4 to 16, while the baseline against itself differed by 1[56]\d\.\d s, ",
        ),
        (
            -200.0,
            "BasicLauncher",
            r"Open: .* from rank 4 to 16, while the baseline against itself differed by 1[56]\d\.",
        ),
    ],
)
def test_seconds_depend_on_the_rank_by_more_than_the_baseline_differs_from_itself(tmp_path, off, launcher, says):
    """96 s of training from rank 4 to 16, which is 80 % of a run; make_run jitters by up to 2 s."""
    ranks, seeds = {"r4": 4, "r8": 8, "r16": 16}, list(range(1, 7))
    jobs = {"first": {"directory": "0", "launcher": launcher, "submitted": ""}}
    declare(tmp_path, {arm: [] for arm in ranks}, "r16", contrasts=["r4", "r8"], seeds=seeds, jobs=jobs)
    for turn, (seed, arm) in enumerate((seed, arm) for seed in seeds for arm in ranks):
        make_run(
            tmp_path / f"{turn}_verdict_{arm}", arm=arm, seed=seed, loss=2.0, rank=ranks[arm],
            seconds=300 + 10.0 * ranks[arm],
        )  # fmt: skip
    for seed in seeds if off is not None else []:
        make_run(
            tmp_path / f"{100 + seed}_verdict_r16", arm="r16", seed=seed + 1000, data_seed=seed, loss=2.0 + seed / 1e3,
            rank=16, seconds=460.0 + off,
        )  # fmt: skip
    text = markdown(report(analyse(tmp_path), [], []))
    assert re.match(says, text.split("Does training time depend on the rank? ")[1])


def test_an_undecided_contrast_asks_for_a_new_study_and_never_for_more_seeds_here(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.03, "c": 2.01}, noise=0.03, tuned=False)
    analysis = analyse(tmp_path)
    undecided = [row for row in analysis.contrasts if row.verdict == "inconclusive"]
    assert undecided
    for row in undecided:
        said = sentence(row)
        assert f"a new study of about {row.seeds_to_decide} seeds, declared before its first job" in said
        assert "Seeds added to this one and tested again are no such study" in said
    text = markdown(report(analysis, [], []))
    assert "would decide it." not in text
    assert "seeds that would decide" not in text


def test_two_seeds_have_no_knee_no_line_and_no_bootstrap_interval(tmp_path):
    ranks = {"r64": 2.0, "r2": 2.45, "r8": 2.1, "r16": 2.0}
    make_study(
        tmp_path, ranks, noise=0.005, tuned=False, seeds=[1, 2], per_arm={arm: {"rank": int(arm[1:])} for arm in ranks}
    )
    analysis = analyse(tmp_path)
    text = markdown(report(analysis, [], []))
    assert "Where do returns diminish? No answer: 2 seeds were completed at every rank, and a knee needs 4." in text
    information = next(b for b in report(analysis, [], []) if isinstance(b, Table) and b.name == "information")
    assert {row[list(information.columns).index("bootstrap interval")] for row in information.rows} == {"–"}
    figure = next(drawing for drawing in drawings() if drawing.name == "rank_comparison").figure(analysis)
    assert not [line for line in figure.axes[0].lines if "knee" in str(line.get_label())]


def line(text, start):
    return next(each for each in text.splitlines() if each.startswith(f"- {start}"))


@pytest.mark.parametrize("recorded", [True, False])  # older records know only what was asked
def test_conditions_name_the_precision_of_every_run(tmp_path, recorded):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1, 2, 3, 4])

    def set_precision(pattern, precision):
        for path in tmp_path.glob(f"{pattern}/result.json"):
            record = json.loads(path.read_text())
            record["config"]["hardware"] = {"precision": "auto" if recorded else precision}
            record["environment"] |= {"precision": precision} if recorded else {}
            path.write_text(json.dumps(record))

    assert (
        line(markdown(report(analyse(tmp_path), [], [])), "Precision") == "- Precision: not recorded, in all 12 runs."
    )
    set_precision("*", "32-true")
    assert line(markdown(report(analyse(tmp_path), [], [])), "Precision") == "- Precision: 32-true, in all 12 runs."
    set_precision("*_b_*seed=[34]", "bf16-mixed")
    analysis = analyse(tmp_path)
    text = markdown(report(analysis, [], []))
    mixed = "32-true for a (seeds 1, 2, 3, 4, 1001, 1002, 1003, 1004), b (seeds 1, 2); bf16-mixed for b (seeds 3, 4)."
    assert line(text, "Precision") == f"- Precision: {mixed}"
    assert f"The runs used different precisions: {mixed}" in text
    write_report(analysis, tmp_path / "report")
    with (tmp_path / "report" / "runs.csv").open() as file:
        assert [row["precision"] for row in csv.DictReader(file)].count("bf16-mixed") == 2


def test_conditions_say_where_a_bases_hash_depends_on_the_precision(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    assert "as held in their precision" in line(markdown(report(analyse(tmp_path), [], [])), "Base")
    for path in tmp_path.glob("*/result.json"):
        record = json.loads(path.read_text())
        record["model"]["stored_sha256"] = "5" * 64
        path.write_text(json.dumps(record))
    assert line(markdown(report(analyse(tmp_path), [], [])), "Base") == "- Base: tiny, weights 555555555555."


def test_limits_say_that_intervals_are_conditional_on_the_test_set(sweep):
    text = (sweep / "report" / "README.md").read_text().split("## What this cannot show")[1]
    assert "Intervals are conditional on the test set (200 examples)" in text


TEST, VAL = "the test set (200 examples)", "the validation set (100 examples)"


@pytest.mark.parametrize(
    ("metric", "texts"),
    [
        ("test_loss", TEST), ("test_accuracy", TEST), ("val_loss", VAL), ("val_bpb", VAL), ("best_val_loss", VAL),
        ("forgetting", "the retention texts"), ("retention_loss", "the retention texts"),
        ("equal_loss_forgetting", f"the retention texts and {VAL}, whose loss says where they are read"),
        ("seconds.total", None), ("peak_memory_bytes", None), ("train_loss", None),
    ],
)  # fmt: skip
def test_intervals_are_conditional_on_the_texts_that_the_metric_is_taken_on(tmp_path, metric, texts):
    extra = {"metrics": dict.fromkeys(("val_bpb", "retention_loss", "equal_loss_forgetting"), 1.0)}
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, metric=metric, margin=0.1, per_arm={"a": extra, "b": extra})
    text = " ".join(limits(analyse(tmp_path)))
    assert "pairs: the t intervals" in text
    found = re.findall(r"Intervals are conditional on (.*?): they hold", text)
    assert found == ([texts] if texts else [])


VALIDATION = "The judged metric is a validation loss, on which the learning rates were chosen too"
MEASURE = "The learning rates were chosen by the judged measure, on the same texts"


@pytest.mark.parametrize(
    ("metric", "by", "tuned", "says"),
    [
        ("val_loss", "val_loss", True, VALIDATION),
        ("best_val_loss", "val_loss", True, VALIDATION),
        ("val_loss", "val_loss", False, None),
        ("test_loss", "val_loss", True, None),
        ("forgetting", "val_loss", True, None),
        ("forgetting", "forgetting", True, MEASURE),
        ("forgetting", "forgetting", False, None),
        ("val_loss", "forgetting", True, None),
    ],
)
def test_a_metric_flatters_where_the_rates_were_chosen_by_it_and_only_there(tmp_path, metric, by, tuned, says):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=tuned, metric=metric, selection_metric=by, margin=0.1)
    text = " ".join(limits(analyse(tmp_path)))
    assert [each for each in (VALIDATION, MEASURE) if each in text] == ([says] if says else [])
    assert text.count("it flatters all") == bool(says)


def test_runs_csv_says_who_ran_when_and_how_long_and_is_the_same_wherever_the_study_lies(tmp_path):
    make_study(tmp_path / "here", {"a": 2.0, "b": 2.1})
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    folders = [
        write_report(analyse(tmp_path / where), tmp_path / where / "report").parent for where in ("here", "there")
    ]
    first, second = (folder.joinpath("runs.csv").read_bytes() for folder in folders)
    assert first == second
    assert b"\r" not in first
    rows = list(csv.DictReader(first.decode().splitlines()))
    assert len(rows) == 2 * 5 + 2 * 6 + 6
    assert len(first) < 1000 * len(rows)
    verdicts = [row for row in rows if row["stage"] == "verdict"]
    assert [(row["arm"], row["seed"], row["data_seed"]) for row in verdicts][-1] == ("a", "1006", "6")
    for row in rows:
        assert all(float(row[f"seconds.{part}"]) >= 0 for part in ("total", "init", "train", "eval"))
        assert row["learning_rate"]
    assert "runs.csv has all runs" in folders[0].joinpath("README.md").read_text()


def test_a_wide_table_of_the_page_scrolls_inside_its_own_box(sweep):
    text = (sweep / "report" / "report.html").read_text()
    assert text.count("<table>") == text.count('<div class="scroll" tabindex="0"><table>') >= 6
    assert re.search(r"\.scroll\{[^}]*overflow-x:auto[^}]*max-width:100%", text)
    assert "@media print{.scroll{overflow:visible}" in text  # paper does not scroll
