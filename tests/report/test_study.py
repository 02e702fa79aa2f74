import json

import pytest
from synthetic import declare, make_run, make_study, rank_sweep

from lab.errors import UsageError
from lab.record import RunRecord, write
from lab.report.analysis import analyse
from lab.report.arms import arms
from lab.report.comparison import compare
from lab.report.findings import standings
from lab.report.judgement import judgement_of
from lab.report.run import load_run
from lab.report.sentences import aa_paragraph, sentence
from lab.report.study import load_study


def judged(path, **options):
    study = load_study(path)
    found = arms(study)
    return found, compare(found, judgement_of(study.declared, found, **options))


def contrast(rows, arm):
    return next(row for row in rows if row.arm_a == arm and row.kind == "contrast")


def test_a_whole_study_is_read_judged_and_misses_nothing(tmp_path):
    rank_sweep(tmp_path)
    study = load_study(tmp_path)
    assert len(study.runs) == 7 * 5 + 7 * 6 + 6
    assert study.missing == []
    assert not study.problems
    found, rows = judged(tmp_path)
    assert [arm.name for arm in found] == ["r64", "r2", "r4", "r8", "r16", "r32", "full"]
    assert {len(arm.runs) for arm in found} == {6}
    assert contrast(rows, "r4").verdict == "b_better"
    assert contrast(rows, "r32").verdict == "equivalent"
    assert {row.verdict for row in rows if row.kind == "described"} == {"not_judged"}
    aa = next(row for row in rows if row.kind == "aa")
    assert aa.statistics.pairs == 6
    assert aa.verdict in ("equivalent", "inconclusive")


def test_the_row_has_the_fields_of_the_contract(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1})
    _, rows = judged(tmp_path)
    assert list(rows[0].row()) == [
        "metric",
        "higher_is_better",
        "kind",
        "arm_a",
        "arm_b",
        "pairs",
        "looks",
        "horizon",
        "stopped_because",
        "mean_difference",
        "ci_level",
        "ci_low",
        "ci_high",
        "p_value",
        "p_sequential",
        "p_adjusted",
        "p_equivalence",
        "p_equivalence_sequential",
        "equivalence_margin",
        "tuning_regret",
        "verdict",
        "reason",
    ]


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"schema": 99}', '{"schema": 1, "status": "great"}', '{"schema": 1, "status": "completed", "mood": 1}',
     '{"schema": 1, "status": "completed", "metrics": {"test_loss": NaN}}',
     '{"schema": 1, "status": "completed", "metrics": {"test_loss": "1.0"}}',
     '{"schema": 1, "status": "completed", "labelled_tokens": "1"}',
     '{"schema": 1, "status": "completed", "metrics": [1]}', '{"schema": 1, "status": "completed", "seed": 1.5}',
     "\x00\xff", "[]"],
)  # fmt: skip
def test_an_unreadable_or_edited_record_is_named_and_skipped(tmp_path, text):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False)
    victim = tmp_path / "0_verdict_a_lr=0.001_seed=1" / "result.json"
    victim.write_text(text, encoding="latin-1")
    study = load_study(tmp_path)
    assert len(study.runs) == 6 + 6 + 6 - 1
    assert [problem.path for problem in study.problems] == [victim.parent]
    _, rows = judged(tmp_path)
    assert contrast(rows, "b").statistics.pairs == 5
    assert contrast(rows, "b").dropped == ("6_verdict_b_lr=0.001_seed=1",)


def test_a_broken_metrics_file_costs_its_curves_and_not_the_run(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False)
    (tmp_path / "0_verdict_a_lr=0.001_seed=1" / "metrics.csv").write_text("step,val_loss\n1,two\n")
    study = load_study(tmp_path)
    assert len(study.runs) == 18
    assert "metrics.csv" in study.problems[0].reason


@pytest.mark.parametrize(("field", "word"), [("data", "data differ"), ("base", "base models differ")])
def test_other_data_or_another_base_is_refused_by_name(tmp_path, field, word):
    make_study(tmp_path, {"a": 2.0, "b": 2.1, "c": 2.1}, tuned=False, per_arm={"b": {field: "e" * 64}})
    _, rows = judged(tmp_path)
    row = contrast(rows, "b")
    assert row.verdict == "withheld"
    assert word in row.reason
    assert "e" * 64 in row.reason
    assert row.statistics.mean is None
    assert contrast(rows, "c").verdict != "withheld"


def test_a_base_that_the_seed_drew_may_differ_between_seeds_and_not_within_a_pair(tmp_path):
    study = declare(tmp_path, {"a": [], "b": []}, "a")
    for seed in study.seeds:
        make_run(tmp_path / f"{seed}_a", arm="a", seed=seed, loss=2.0 + 0.01 * seed, base=f"{seed}" * 64)
        make_run(tmp_path / f"{seed}_b", arm="b", seed=seed, loss=2.2 + 0.011 * seed, base=f"{seed}" * 64)
    assert contrast(judged(tmp_path)[1], "b").verdict == "b_better"
    make_run(tmp_path / "7_a", arm="a", seed=7, loss=2.0, base="x" * 64)
    make_run(tmp_path / "7_b", arm="b", seed=7, loss=2.0, base="y" * 64)
    assert "in 1 of 7 pairs" in contrast(judged(tmp_path)[1], "b").reason


def test_diverged_and_failed_runs_are_counted_and_never_averaged(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False)
    make_run(tmp_path / "50_verdict_b_lr=0.001_seed=9", arm="b", seed=9, loss=99.0, status="diverged")
    make_run(tmp_path / "51_verdict_b_lr=0.001_seed=8", arm="b", seed=8, loss=99.0, status="failed")
    found, _ = judged(tmp_path)
    assert len(found[1].runs) == 6
    assert [run.status for run in found[1].unfinished] == ["diverged", "failed"]
    assert max(found[1].values("test_loss")) < 3


def test_running_without_a_lock_is_interrupted(tmp_path):
    make_run(tmp_path / "0", arm="a", seed=1, loss=2.0, status="running")
    assert load_run(tmp_path / "0").status == "interrupted"


@pytest.mark.parametrize("live", [True, False])
def test_a_run_that_ends_while_it_is_read_has_the_status_of_the_record_that_was_read(tmp_path, monkeypatch, live):
    """It ends between any two looks at its folder: right after its record, or its lock, was looked at."""
    from lab import record

    run = make_run(tmp_path / "0", arm="a", seed=1, loss=2.0)
    ended = record.read(run)
    write(run, RunRecord(status="running"))
    reads, locks = record.read, record.is_live

    def ends_behind(look, answer=None):
        def looked(path):
            found = look(path)
            write(run, ended)
            return found if answer is None else answer

        return looked

    monkeypatch.setattr(record, "read", ends_behind(reads))
    monkeypatch.setattr(record, "is_live", lambda path: live and not reads(path).metrics)
    read = load_run(run)
    assert (read.status == "completed") == bool(read.record.metrics)
    assert read.status != "interrupted"
    monkeypatch.setattr(record, "read", reads)
    write(run, RunRecord(status="running"))
    monkeypatch.setattr(record, "is_live", ends_behind(locks, live))
    assert load_run(run).status == ("running" if live else "completed")


def test_a_half_finished_study_says_what_is_missing(tmp_path):
    declare(tmp_path, {"a": [], "b": []}, "a")
    make_run(tmp_path / "0_verdict_a_lr=0.001_seed=1", arm="a", seed=1, loss=2.0)
    study = load_study(tmp_path)
    assert len(study.missing) == 6 + 6 + 6 - 1
    _, rows = judged(tmp_path)
    assert contrast(rows, "b").verdict == "withheld"


def test_a_job_that_failed_at_once_is_not_also_missing(tmp_path):
    declare(tmp_path, {"a": [], "b": []}, "a", seeds=[1])
    run = make_run(tmp_path / "0", arm="b", seed=1, loss=2.0, status="failed")
    write(run, RunRecord(status="failed", stage="verdict", arm="b", overrides=["seed=1", "data_seed=1"]))
    assert load_study(tmp_path).missing == ["a, seed 1", "a, seed 1001 on the data order of 1 (A/A)"]


def test_one_seed_gives_numbers_and_no_verdict(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, seeds=[1])
    row = contrast(judged(tmp_path)[1], "b")
    assert row.verdict == "withheld"
    assert row.statistics.mean == pytest.approx(0.1, abs=0.05)
    assert row.statistics.ci_low is None


def test_verdicts_are_withheld_when_the_baseline_differs_from_itself(tmp_path):
    study = declare(tmp_path, {"a": [], "b": []}, "a")
    for i, seed in enumerate(study.seeds):
        make_run(tmp_path / f"{i}_a", arm="a", seed=seed, loss=2.0 + 0.01 * i)
        make_run(tmp_path / f"{i}_twin", arm="a", seed=seed + 1000, data_seed=seed, loss=2.2 + 0.011 * i)
        make_run(tmp_path / f"{i}_b", arm="b", seed=seed, loss=1.5 + 0.012 * i)
    row = contrast(judged(tmp_path)[1], "b")
    assert row.verdict == "withheld"
    assert "itself" in row.reason


def test_an_arm_that_mixes_settings_is_split_and_labelled(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False)
    make_run(tmp_path / "80_verdict_a_lr=0.001_seed=7", arm="a", seed=7, loss=2.0, rank=8)
    assert [arm.name for arm in judged(tmp_path)[0]] == ["a [rank=16]", "a [rank=8]", "b"]


def test_a_run_that_went_wrong_never_costs_its_arm_the_name(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False)
    early = make_run(tmp_path / "90", arm="b", seed=7, loss=2.0, status="failed")
    write(early, RunRecord(status="failed", stage="verdict", arm="b", choices={"init": "b"}, overrides=["rank=16"]))
    make_run(tmp_path / "91", arm="b", seed=8, loss=2.0, rank=8, status="diverged")
    found, rows = judged(tmp_path)
    assert [arm.name for arm in found] == ["a", "b", "b [rank=8]"]
    assert len(found[1].unfinished) + len(found[2].unfinished) == 2
    assert contrast(rows, "b").statistics.pairs == 6


def rewrite(folder, change):
    for path in folder.glob("*/result.json"):
        record = json.loads(path.read_text())
        change(record, int(path.parent.name.split("_")[0]))
        path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda record, number: record["config"].update({"new": None} if number % 2 else {}),
        lambda record, number: record["config"]["optim"].update({"new": {"of": 1}} if number % 2 else {}),
        lambda record, number: record["choices"].update({"guard": "None"} if number % 2 else {}),
    ],
    ids=["a setting", "one of a group", "a group"],
)
@pytest.mark.parametrize("declared", [True, False])
def test_a_key_that_only_one_version_of_the_lab_has_splits_no_arm(tmp_path, change, declared):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, per_arm={arm: {"choices": {"init": arm}} for arm in "ab"})
    rewrite(tmp_path, change)
    if not declared:
        (tmp_path / "study.json").unlink()
    assert [arm.name for arm in judged(tmp_path)[0]] == (["a", "b"] if declared else ["init=a", "init=b"])


@pytest.mark.parametrize(
    ("group", "key", "hashed"),
    [
        ("data", "path", "sha256"), ("data", "val_path", "sha256"), ("data", "folder", "sha256"),
        ("data", "retention", "retention_sha256"), ("model", "name_or_path", "weights_sha256"),
    ],
)  # fmt: skip
def test_a_place_that_moved_splits_no_arm_while_what_lies_there_is_the_same(tmp_path, group, key, hashed):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False)

    def moved(record, number):
        record["config"][group] = {key: f"/{'new' if number % 2 else 'old'}/place"}
        record[group][hashed] = "c" * 64

    def replaced(record, number):
        moved(record, number)
        record[group][hashed] = ("c" if number % 2 else "d") * 64

    rewrite(tmp_path, moved)
    assert [arm.name for arm in judged(tmp_path)[0]] == ["a", "b"]
    assert contrast(judged(tmp_path)[1], "b").statistics.pairs == 6
    rewrite(tmp_path, replaced)
    assert f"a [{group}.{key}=/old/place]" in [arm.name for arm in judged(tmp_path)[0]]


def test_a_mapping_in_place_of_nothing_and_a_setting_beside_no_config_still_tell_runs_apart(tmp_path):
    make_study(tmp_path / "mapping", {"a": 2.0}, tuned=False, contrasts=[])
    rewrite(tmp_path / "mapping", lambda record, n: record["config"].update({"svd": {"k": 3} if n % 2 else None}))
    assert [arm.name for arm in judged(tmp_path / "mapping")[0]] == ["a [svd=None]", "a [as declared]"]
    for n, overrides in enumerate([["rank=8"], []]):
        run = make_run(tmp_path / "plain" / f"{n}", arm=None, stage=None, seed=1, loss=2.0)
        write(run, RunRecord(status="completed", seed=1, data_seed=1, overrides=overrides))
    assert len(judged(tmp_path / "plain")[0]) == 2


def test_a_run_that_failed_before_its_config_was_resolved_has_the_rate_of_its_overrides(tmp_path):
    for text, rate in (("1e-3", 1e-3), ("${other}", None)):
        run = make_run(tmp_path / text, arm="a", seed=1, loss=2.0)
        write(run, RunRecord(status="failed", overrides=[f"optim.lr={text}"]))
        assert load_run(run).learning_rate == rate


def plain(path, *, inits=("random", "svd"), ranks=(16,), lrs=(1e-3,), seeds=(0, 1, 2, 3, 4)):
    n = 0
    for init in inits:
        for rank in ranks:
            for lr in lrs:
                for seed in seeds:
                    loss = (
                        {"random": 2.1, "svd": 2.0}.get(init, 2.05)
                        + 0.013 * (seed + 0.3 * n % 3)
                        + 100 * abs(lr - 1e-3)
                    )
                    make_run(
                        path / str(n), arm=None, stage=None, study=None, seed=seed, loss=loss, rank=rank, lr=lr,
                        choices={"init": init}, overrides=(f"init={init}", f"rank={rank}", f"seed={seed}"),
                        config={"init": {"_target_": f"lab.init.{init}"}, "rank": rank, "optim": {"lr": lr}},
                    )  # fmt: skip
                    n += 1


def test_a_plain_multirun_is_judged_against_the_arm_of_defaults(tmp_path):
    plain(tmp_path, ranks=(16, 8))
    found, rows = judged(tmp_path)
    assert [arm.name for arm in found] == [
        "init=random rank=16", "init=random rank=8", "init=svd rank=16", "init=svd rank=8",
    ]  # fmt: skip
    assert {row.arm_b for row in rows} == {"init=random rank=16"}
    assert sum(row.kind == "contrast" for row in rows) == 3
    values = found[0].values("test_loss")
    assert contrast(rows, "init=svd rank=16").statistics.margin == pytest.approx(0.01 * sum(values) / 5)


def test_a_plain_multirun_chooses_its_learning_rate_on_validation(tmp_path):
    plain(tmp_path, lrs=(3e-4, 1e-3, 3e-3))
    found, _ = judged(tmp_path)
    assert {arm.learning_rate for arm in found} == {1e-3}
    assert {len(arm.runs) for arm in found} == {5}
    assert list(found[0].outcomes) == [3e-4, 1e-3, 3e-3]
    assert not found[0].at_edge


def test_the_command_line_names_baseline_and_margin(tmp_path):
    plain(tmp_path)
    _, rows = judged(tmp_path, baseline="init=svd", margin="0.5")
    assert {row.arm_b for row in rows} == {"init=svd"}
    assert contrast(rows, "init=random").statistics.margin == 0.5
    with pytest.raises(UsageError, match="no arm"):
        judged(tmp_path, baseline="init=sdv")
    with pytest.raises(UsageError, match="margin"):
        judged(tmp_path, margin="-1")


@pytest.mark.parametrize(
    ("declared", "given", "same"),
    [
        (0.03, "0.03", True), (0.03, "0.030", True), (0.03, "3e-2", True), (0.03, "0.04", False), (0.03, "3%", False),
        ("1%", "1%", True), ("1%", "1.0 %", True), ("1%", "2%", False), ("5% of gain", "5 % of gain", True),
        ("5% of gain", "5%", False),
    ],
)  # fmt: skip
def test_a_margin_given_as_it_was_declared_is_no_other(tmp_path, declared, given, same):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False, margin=declared, margin_value=0.0625)
    study = load_study(tmp_path)
    judgement = judgement_of(study.declared, arms(study), margin=given)
    assert judgement.declared == same
    assert (judgement.margin == 0.0625) == same, "as it was written down before the verdicts"
    assert [note for note in judgement.notes if "chosen after the runs" in note] == (
        [] if same else [f"the margin was chosen after the runs; the study declared {declared}"]
    )


def test_without_an_arm_of_defaults_nothing_is_judged_and_it_says_so(tmp_path):
    plain(tmp_path, inits=("svd", "pissa"))
    study = load_study(tmp_path)
    judgement = judgement_of(None, arms(study))
    assert judgement.baseline is None
    assert "--baseline" in judgement.notes[0]


def test_runs_that_share_the_data_order_are_a_plain_multiruns_aa_pairs(tmp_path):
    for seed in range(8):
        make_run(tmp_path / str(seed), arm=None, stage=None, seed=seed, data_seed=0, loss=2.0 + 0.01 * (seed % 3))
    _, rows = judged(tmp_path)
    aa = next(row for row in rows if row.kind == "aa")
    assert aa.statistics.pairs == 4


def test_at_most_four_contrasts_are_judged(tmp_path):
    plain(tmp_path, inits=("random", "svd", "pissa", "milora", "lora_one", "eva", "corda"))
    _, rows = judged(tmp_path)
    assert sum(row.kind == "contrast" for row in rows) == 4
    assert sum(row.kind == "described" and row.metric == "test_loss" for row in rows) == 2


def test_equal_time_compares_on_one_device_at_the_faster_runs_end(tmp_path):
    make_study(tmp_path, {"a": 2.0, "b": 2.0}, tuned=False, noise=0.0, per_arm={"b": {"seconds": 80.0}})
    _, rows = judged(tmp_path)
    row = next(row for row in rows if row.metric == "val_loss_at_equal_time")
    assert row.statistics.pairs == 6
    # b is half as fast: at the time a ends b is at step 30 of 60, exp(−30/12) of the way from 3.0
    assert row.statistics.mean == pytest.approx(0.082 - 0.007, abs=0.02)
    for path in tmp_path.glob("*_b_*/result.json"):
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(raw | {"environment": {"device": "NVIDIA"}}))
    assert not [row for row in judged(tmp_path)[1] if row.metric == "val_loss_at_equal_time"]


def test_no_directory_and_no_run_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="no directory"):
        load_study(tmp_path / "none")
    with pytest.raises(UsageError, match="no run directory"):
        load_run(tmp_path)
    assert load_study(tmp_path).runs == ()


@pytest.mark.parametrize(("accelerator", "described"), [("cpu", False), ("gpu", True)])
def test_memory_is_compared_only_where_it_is_a_jobs_own(tmp_path, accelerator, described):
    make_study(tmp_path, {"a": 2.0, "b": 2.1}, tuned=False)
    for path in tmp_path.glob("*/result.json"):
        record = json.loads(path.read_text())
        record["environment"]["accelerator"] = accelerator
        path.write_text(json.dumps(record))
    _, rows = judged(tmp_path)
    assert any(row.metric == "peak_memory_bytes" for row in rows) == described


def test_a_baseline_that_lies_slightly_off_itself_is_reported(tmp_path):
    study = declare(tmp_path, {"a": [], "b": []}, "a", seeds=[1, 2, 3, 4], margin=0.001)
    for i, seed in enumerate(study.seeds):
        make_run(tmp_path / f"{i}_a", arm="a", seed=seed, loss=2.0)
        make_run(tmp_path / f"{i}_twin", arm="a", seed=seed + 1000, data_seed=seed, loss=2.02 + 0.02 * (i % 3))
        make_run(tmp_path / f"{i}_b", arm="b", seed=seed, loss=1.5 + 0.012 * i)
    aa = next(row for row in judged(tmp_path)[1] if row.kind == "aa")
    assert 0.01 < aa.statistics.p_value < 0.05
    assert aa.verdict == "inconclusive"
    assert contrast(judged(tmp_path)[1], "b").verdict == "a_better"


def test_equivalences_are_one_family_of_the_contrasts_that_test_one(tmp_path):
    # one contrast of four has no partner and one is refused: neither tests anything, so the family is of two
    make_study(
        tmp_path, {"a": 2.0, "b": 2.004, "c": 2.004, "d": 2.0, "e": 2.0}, noise=0.008, tuned=False,
        per_arm={"d": {"data": "e" * 64}, "e": {"status": "failed"}},
    )  # fmt: skip
    rows = [row for row in judged(tmp_path)[1] if row.kind == "contrast"]
    raw = sorted(row.statistics.p_equivalence for row in rows[:2])
    adjusted = sorted(row.p_equivalence_adjusted for row in rows[:2])
    assert adjusted == pytest.approx([min(1, 2 * raw[0]), max(2 * raw[0], raw[1])])
    assert [row.p_equivalence_adjusted for row in rows[2:]] == [None, None]
    assert rows[0].row()["p_equivalence"] == rows[0].statistics.p_equivalence  # the contract's column stays the test's


def test_an_equivalence_that_only_one_test_alone_would_show_is_not_claimed(tmp_path):
    shift = [-0.011, 0.004, 0.014, -0.009, 0.012, 0.001]
    study = declare(tmp_path, {arm: [] for arm in "abcde"}, "a", margin=0.012, twin_seeds=[])
    for arm in study.arms:
        for i, seed in enumerate(study.seeds):
            own = 0.0 if arm == "a" else shift[i]
            make_run(tmp_path / f"{seed}_{arm}", arm=arm, seed=seed, loss=2.0 + 0.01 * i + own)
    rows = [row for row in judged(tmp_path)[1] if row.kind == "contrast"]
    assert {row.statistics.p_equivalence < 0.05 for row in rows} == {True}
    assert {row.verdict for row in rows} == {"inconclusive"}


def survivors(path, *, arm_loss, diverged="b", seeds=8, lost=4, status="diverged", metrics=None):
    """Two arms on eight seeds; `diverged` lost the last four of them."""
    study = declare(path, {"a": [], "b": []}, "a", seeds=list(range(1, seeds + 1)), twin_seeds=[])
    for arm, level in (("a", 2.0), ("b", arm_loss)):
        for seed in study.seeds:
            gone = arm == diverged and seed > seeds - lost
            own = 0.001 * (seed % 3) if arm == "b" else 0.0
            make_run(
                path / f"{seed}_{arm}", arm=arm, seed=seed, loss=level + 0.01 * seed + own,
                status=status if gone else "completed", metrics=metrics if gone else None,
            )  # fmt: skip
    return contrast(judged(path)[1], "b")


@pytest.mark.parametrize(
    ("arm_loss", "diverged", "verdict"),
    [
        (1.8, "b", "withheld"),  # better on the seeds that it survived
        (2.0, "b", "withheld"),  # as good on them
        (2.2, "b", "b_better"),  # worse even on them: the lost ones would not have helped
        (2.2, "a", "withheld"),  # mirrored: worse than a baseline that lost half its seeds
        (2.0, "a", "withheld"),
        (1.8, "a", "a_better"),
    ],
)
def test_an_arm_that_lost_seeds_is_called_neither_better_nor_as_good(tmp_path, arm_loss, diverged, verdict):
    row = survivors(tmp_path, arm_loss=arm_loss, diverged=diverged)
    assert row.statistics.pairs == 4
    assert row.verdict == verdict
    said = sentence(row)
    assert said.count(f"{diverged} diverged on 4 of 8 seeds (5, 6, 7, 8)") == 1


def test_a_run_without_a_finite_loss_at_its_end_is_a_lost_seed_too(tmp_path):
    row = survivors(tmp_path, arm_loss=1.8, status="completed", metrics={"test_loss": float("nan")})
    assert row.verdict == "withheld"
    assert "b has no finite test loss on 4 of 8 seeds (5, 6, 7, 8)" in row.reason


def test_seeds_that_are_merely_missing_or_lost_by_the_aa_forbid_nothing(tmp_path):
    assert survivors(tmp_path / "failed", arm_loss=1.8, status="failed").verdict == "a_better"
    make_study(tmp_path / "twin", {"a": 2.0, "b": 1.8}, tuned=False)
    for path in (tmp_path / "twin").glob("*_seed=1001/result.json"):
        path.write_text(path.read_text().replace('"completed"', '"diverged"'))
    found, rows = judged(tmp_path / "twin")
    assert contrast(rows, "b").verdict == "a_better"
    assert [run.record.seed for run in found[0].diverged_twins] == [1001]
    assert "1 more diverged" in aa_paragraph(analyse(tmp_path / "twin"))


def test_an_arm_of_which_nothing_is_left_says_that_it_diverged(tmp_path):
    row = survivors(tmp_path, arm_loss=1.8, lost=8)
    assert row.verdict == "withheld"
    assert "b diverged on 8 of 8 seeds" in sentence(row)
    assert "b diverged on 8 of 8 seeds" in " ".join(standings(analyse(tmp_path)))


def test_a_rate_chosen_on_the_judged_seeds_gives_numbers_and_no_verdict(tmp_path):
    plain(tmp_path / "one", lrs=(1e-3,))
    assert "chosen" not in contrast(judged(tmp_path / "one")[1], "init=svd").reason
    plain(tmp_path / "both", lrs=(3e-4, 1e-3))
    row = contrast(judged(tmp_path / "both")[1], "init=svd")
    assert row.verdict == "withheld"
    assert "the learning rate of init=svd and init=random was chosen on the seeds that are judged" in row.reason
    assert row.statistics.mean is not None
    # a single rate of the baseline against the best of two
    plain(tmp_path / "arm", lrs=(1e-3,))
    for seed in range(5):
        make_run(
            tmp_path / "arm" / f"9{seed}", arm=None, stage=None, study=None, seed=seed, loss=2.5, lr=1e-2,
            choices={"init": "svd"}, config={"init": {"_target_": "lab.init.svd"}, "rank": 16, "optim": {"lr": 1e-2}},
        )  # fmt: skip
    row = contrast(judged(tmp_path / "arm")[1], "init=svd")
    assert row.verdict == "withheld"
    assert "the learning rate of init=svd was chosen on the seeds that are judged" in row.reason


@pytest.mark.parametrize("how", ["verdict runs at two rates", "tuned on a judged seed"])
def test_a_study_that_looked_at_its_verdict_seeds_has_no_verdict_either(tmp_path, how):
    make_study(tmp_path, {"a": 2.0, "b": 1.8})
    assert contrast(judged(tmp_path)[1], "b").verdict == "a_better"
    stage, lr = ("verdict", 3e-3) if how.startswith("verdict") else ("tune", 1e-3)
    make_run(tmp_path / "90", arm="b", seed=1, loss=1.9, lr=lr, stage=stage)
    assert contrast(judged(tmp_path)[1], "b").verdict == "withheld"
