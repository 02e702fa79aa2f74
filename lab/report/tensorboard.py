"""TensorBoard of a study: a row per run in the hparams tab, the report in the text tab. No torch, no tensorflow."""

import shutil
from pathlib import Path
from types import ModuleType

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.scalar import metadata as scalar
from tensorboard.plugins.text import metadata as text
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

from lab.report.analysis import Analysis
from lab.report.run import Run

METRICS = ("val_loss", "test_loss", "test_accuracy", "base_test_accuracy", "forgetting")


def write_events(analysis: Analysis, report: str, folder: Path) -> None:
    """One log directory per run below `folder`, and the report's Markdown at its top; replaces an older one."""
    shutil.rmtree(folder, ignore_errors=True)
    arms = {run.path: arm.name for arm in analysis.arms for run in (*arm.runs, *arm.twins)}
    runs = [run for run in analysis.study.runs if run.path in arms]
    measured = [name for name in METRICS if any(run.value(name) is not None for run in runs)]
    _write(folder, [_summary("report", [report], text), *_experiment(measured)])
    unique = len({run.name for run in runs}) == len(runs)
    for run in runs:
        values = {name: value for name in measured if (value := run.value(name)) is not None}
        session = hparams.hparams_pb(_hparams(run, arms[run.path]), trial_id=run.name)
        place = folder / (run.name if unique else f"{run.path.parent.name}_{run.name}")
        _write(place, [session, *(_summary(name, value, scalar) for name, value in values.items())])


def _hparams(run: Run, arm: str) -> dict[str, str | float | int]:
    values = {
        "arm": arm,
        "seed": run.record.seed,
        "data_seed": run.record.data_seed,
        "learning_rate": run.learning_rate,
        "rank": run.rank,
        "trainable_params": run.record.trainable_params,
    }
    return {key: value for key, value in values.items() if value is not None}


def _experiment(metrics: list[str]) -> list[Summary]:
    names = ("arm", "seed", "data_seed", "learning_rate", "rank", "trainable_params")
    columns = [hparams.HParam(name) for name in names]
    return [hparams.hparams_config_pb(columns, [hparams.Metric(name) for name in metrics])]


def _summary(name: str, value: float | list[str], plugin: ModuleType) -> Summary:
    summary, tensor = Summary(), tensor_util.make_tensor_proto(value)
    summary.value.add(tag=name, metadata=plugin.create_summary_metadata(name, ""), tensor=tensor)
    return summary


def _write(folder: Path, summaries: list[Summary]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    for summary in summaries:
        writer.add_event(Event(summary=summary, step=0))
    writer.close()
