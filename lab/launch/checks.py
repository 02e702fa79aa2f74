"""Checks of a job before anything heavy is imported: what devices, files and names can tell."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from lab.config import RunConfig
from lab.data import retention
from lab.errors import UsageError
from lab.model import hub
from lab.process import gpus


def with_limits(config: RunConfig) -> RunConfig:
    """The config with the limit that its policy finds on an observed run; others as they are.

    What is saved and resumed is the number: the observed run may go.
    """
    if config.svd_policy.get("thresholds") != "target":
        return config
    from lab.config import instantiate
    from lab.replay import target

    return replace(config, svd_policy=target.resolved(config.svd_policy, instantiate.make(config.svd_policy)))


def _checks(config: RunConfig) -> Iterator[Callable[[], object]]:
    """What model, data, teacher and the user's measures can tell before anything heavy is imported: files and names."""
    from lab.config import instantiate

    if config.method == "lora" and config.init.get("source") == "teacher" and config.init.get("teacher") is not None:
        yield partial(hub.check, str(config.init["teacher"]), None, key="init.teacher")
    yield partial(retention.check, config.data.get("retention"))
    yield partial(instantiate.make_measures, config.metrics)
    yield partial(_check_policy, config)
    yield partial(with_limits, config)
    for part, make, node, needed in (
        ("model", instantiate.make, config.model, "tokenizer"),
        ("data set", instantiate.make_data, config.data, "load"),
    ):
        made = make(node)
        if not hasattr(made, needed):
            raise UsageError(f"_target_={node['_target_']} is no {part}: it has no {needed}().")
        check = getattr(made, "check", None)
        if check is not None:
            yield check


def _check_policy(config: RunConfig) -> None:
    """Raises UsageError for a policy's settings, and for steps that it plans behind an end that the config names."""
    from lab.config import instantiate

    policy = instantiate.make(config.svd_policy)
    check, schedule = getattr(policy, "check_steps", None), config.schedule
    if check is not None and schedule.max_steps is not None and schedule.max_epochs is None:
        check(schedule.max_steps)


def of_files(config: RunConfig) -> None:
    """Raises UsageError for what model, data, policy, teacher and measures can tell from files and names."""
    for check in _checks(config):
        check()


def early(config: RunConfig) -> None:
    """Raises UsageError for devices that are not here, and for what files and names tell."""
    asked, there = config.hardware, len(gpus.visible())
    if asked.accelerator == "gpu" and asked.devices > there:
        raise UsageError(
            f"hardware asks for {asked.devices} CUDA device(s) and this machine shows {there}; use hardware=cpu or "
            f"hardware.devices={max(1, there)}, or start the job where the GPUs are (dry_run=true works without them)."
        )
    of_files(config)
