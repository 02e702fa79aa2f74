"""Card of a single run: what was asked, done and measured. No verdict."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lab.report.document import MISSING, Block, Bullets, Heading, Paragraph, Table, number
from lab.report.run import Run


def card(run: Run) -> list[Block]:
    """Card of one run: its settings, what it did as read back, and its metrics."""
    record = run.record
    ended = f"{run.status}{f' ({run.error})' if run.error else ''}"
    blocks: list[Block] = [Heading(f"{run.name}: {ended}", 1), Paragraph(str(run.path))]
    labelled = "" if record.labelled_tokens is None else f", {record.labelled_tokens:,} of them labelled"
    settings = {
        **{group: choice for group, choice in record.choices.items() if choice != "None"},
        "overrides": " ".join(record.overrides) or "none",
        "seed": record.seed,
        "data seed": record.data_seed,
        "learning rate": None if run.learning_rate is None else f"{run.learning_rate:g}",
        "learning rate from": (record.config.get("optim") or {}).get("lr_from") or "the command",
    }
    facts = {
        "base": f"{record.model.get('name_or_path') or MISSING} {run.base[:12]} {record.model.get('dtype') or ''}",
        "weights of the base": (record.model.get("origin") or {}).get("said"),
        "data": f"{record.data.get('name') or MISSING} {str(record.data.get('sha256') or MISSING)[:12]}",
        "examples (training, validation, test)": ", ".join(
            str(record.data.get(f"{side}_examples", MISSING)) for side in ("train", "val", "test")
        ),
        "truncated examples": record.data.get("truncated"),
        "held-out examples that training asks too": ", ".join(
            f"{side} {count:,}" for side, count in (record.data.get("known") or {}).items() if count
        )
        or None,
        "masked share of tokens": record.data.get("masked_fraction"),
        "initialisation": record.init.get("scheme"),
        "modules initialised of targeted": f"{_text(record.init.get('modules_initialised'))} of "
        f"{_text(record.init.get('modules_targeted'))}",
        "ranks": _distribution(record.ranks),
        "scalings": _distribution(record.scalings),
        "trainable of all parameters": f"{_text(record.trainable_params)} of {_text(record.total_params)}",
        "rank budget used of asked": f"{_text(record.budget.get('used'))} of {_text(record.budget.get('asked'))}",
        "optimizer steps": record.steps,
        "tokens": _text(record.tokens) + labelled,
        **{f"seconds, {part}": value for part, value in record.seconds.items()},
        "peak memory (bytes)": record.peak_memory_bytes,
        "layers switched": record.switches,
        "could not be measured": "; ".join(f"{name} ({why})" for name, why in record.failed_measures.items()) or None,
        "device": record.environment.get("device"),
        "commit": record.environment.get("commit"),
    }
    blocks += [_table("asked", "Asked", settings), _table("done", "Done, as read back from the run", facts)]
    if record.metrics:
        blocks.append(_table("measured", "Measured (losses in nats per token)", record.metrics))
    else:
        blocks.append(Paragraph("Nothing was measured yet."))
    if run.evaluations:
        blocks.append(_table("evaluated", "Evaluated afterwards, by lab.evaluate", run.evaluations))
    return [*blocks, Bullets(["One run gives numbers and no verdict: compare arms over seeds with a study."])]


def _table(name: str, caption: str, values: Mapping[str, Any]) -> Table:
    return Table(name, caption, ["", "value"], [[key, _text(value)] for key, value in values.items()], ("value",))


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if abs(value) >= 0.001 or value == 0 else f"{value:g}"


def _distribution(values: Mapping[str, float]) -> str:
    """`16 × 14, 8 × 7`: a value and in how many modules it is."""
    modules = Counter(values.values())
    return ", ".join(f"{value:g} × {count}" for value, count in sorted(modules.items(), reverse=True)) or MISSING
