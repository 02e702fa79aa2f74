"""A run under lm-evaluation-harness.      python -m lab.evaluate RUN --tasks gsm8k,my_task.yaml"""

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lab import command, record
from lab.config import trust
from lab.errors import UsageError, nearest
from lab.launch.worker import quiet_not_ours
from lab.run import selected

YAML = (".yaml", ".yml")
NO_MEASURES = ("sample_len", "sample_count")  # which the harness puts among them
RESAMPLES = 1000  # for the standard error of a measure that has no formula
OF_A_YAML = (TypeError, ValueError, LookupError, AttributeError)  # what the harness raises for one that is none


def evaluate(
    run_dir: Path,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
) -> dict[str, dict[str, Any]]:
    """Evaluate a run's selected weights on tasks of the harness, and keep what was measured in its record.

    A task is a name that the harness knows, or the path of a YAML file. `num_fewshot` None is the task's own; `chat`
    puts the model's chat template around each question. Returns task -> its measures, and how they were taken. Raises
    UsageError for a run without weights, a task that is none, and where the harness is not installed.
    """
    check_installed()
    _check_asked(tasks, num_fewshot, limit, batch_size)
    if record.is_live(run_dir):
        raise UsageError(f"{run_dir} is still live; evaluate it when it has ended.")
    manager = tasks_of(tasks)
    chosen = selected.load(run_dir)
    found = _measured(
        chosen.net,
        chosen.model.tokenizer(),
        batch_size,
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
    )
    how = {"harness": version("lm-eval"), "limit": limit, "chat": chat, "step": chosen.step}
    evaluations = {task: of_task | how for task, of_task in found.items()}
    with record.lock(run_dir):
        result = record.read(run_dir)
        result.evaluations |= evaluations
        record.write(run_dir, result)
    return evaluations


def check_installed() -> None:
    """Raises UsageError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise UsageError(
            "lab.evaluate needs lm-evaluation-harness, which is not installed; pip install 'lowrank-lab[lm-eval]'."
        )


def _check_asked(tasks: Sequence[str], num_fewshot: int | None, limit: int | None, batch_size: int) -> None:
    if not tasks:
        raise UsageError("--tasks names no task; give names that the harness knows or YAML files, commas between.")
    for name, value, least in (("num-fewshot", num_fewshot, 0), ("limit", limit, 1), ("batch-size", batch_size, 1)):
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}; got {value}.")
    for task in tasks:
        if task.endswith(YAML) and not Path(task).is_file():
            raise UsageError(f"--tasks {task}: there is no such file.")


def tasks_of(tasks: Sequence[str]) -> Any:
    """The harness's manager that knows the tasks.

    Raises UsageError for a name that it does not know, for a YAML file that is no task and for data that cannot be
    read; what a function of the task itself raises, or the harness on a task of its own, is let through.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=not all(task.endswith(YAML) for task in tasks))  # its own take seconds
    for task in tasks:
        if not task.endswith(YAML) and task not in manager.all_tasks:
            raise UsageError(
                f"--tasks {task} is no task of lm-eval {version('lm-eval')}{nearest(task, manager.all_tasks) or '.'} "
                f"One of your own is the path of its YAML file."
            )
        try:
            manager.load([task])
        except Exception as error:
            if not _is_a_mistake(error, task):
                raise
            raise UsageError(
                f"--tasks {task} cannot be read ({_reason(error)}); mend it, or bring its data here."
            ) from error
    return manager


def _is_a_mistake(error: Exception, task: str) -> bool:
    """True for what is missing or cannot be read, and for a YAML file of the user's own that the harness refuses.

    An error in a function beside the YAML needs its traceback.
    """
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    if task.endswith(YAML):
        own = Path(task).resolve().parent
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        if any(file.is_relative_to(own) and not file.is_relative_to(sys.prefix) for file in files):
            return False
        if isinstance(error, OF_A_YAML):
            return True
    return isinstance(error, OSError | ImportError | YAMLError | TemplateError | DatasetsError)


def _reason(error: BaseException) -> str:
    """What an error says, or its cause where it has one: on one line, with its kind where its text is a key alone."""
    error = error.__cause__ or error
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text}".strip() if isinstance(error, LookupError) or not text else text


def _measured(net: Any, tokenizer: Any, batch_size: int, **how: Any) -> dict[str, dict[str, Any]]:
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    net.to("cuda" if torch.cuda.is_available() else "cpu")
    model = HFLM(pretrained=net, tokenizer=tokenizer, batch_size=batch_size)
    results = simple_evaluate(model=model, log_samples=False, bootstrap_iters=RESAMPLES, **how)
    return {task: _account(task, of_task, results) for task, of_task in results["results"].items()}


def _account(task: str, of_task: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Measures of a task with the names that its tables have, their standard errors apart."""
    numbers = {
        name.removesuffix(",none"): value
        for name, value in of_task.items()
        if isinstance(value, float | int) and name not in NO_MEASURES
    }
    return {
        "measures": {name: float(value) for name, value in numbers.items() if "_stderr" not in name},
        "standard_errors": {name.replace("_stderr", ""): value for name, value in numbers.items() if "_stderr" in name},
        "examples": results["n-samples"].get(task, {}).get("effective"),
        "num_fewshot": results["n-shot"].get(task),
        "version": results["versions"].get(task),
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command.Parser(prog="lab-evaluate", description=__doc__)
    parser.add_argument("run", type=command.path, metavar="RUN", help="a run directory")
    parser.add_argument("--tasks", required=True, metavar="NAME,…", help="names that the harness knows, or YAML files")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples before a question; the task's own")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task alone")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--chat", action="store_true", help="put the chat template around each question")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=command.TRUST)
    given = parser.parse_args(arguments)
    sys.path.append(str(Path.cwd()))  # a class of the user's own
    quiet_not_ours()
    try:
        trust.allow_each(given.trust)
        found = evaluate(
            given.run,
            [task for task in given.tasks.split(",") if task],
            num_fewshot=given.num_fewshot,
            limit=given.limit,
            batch_size=given.batch_size,
            chat=given.chat,
        )
    except UsageError as error:
        sys.exit(str(error))
    for task, of_task in found.items():
        measures = ", ".join(f"{name} {value:.4f}" for name, value in of_task["measures"].items())
        print(f"{task}: {measures} over {of_task['examples']} examples")
    print(f"kept in {given.run / record.RESULT}")


if __name__ == "__main__":
    main()
