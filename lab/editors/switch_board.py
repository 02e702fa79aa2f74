"""Board of a run's switches: a line for each on the console, and markers on the dashboard."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from rich.text import Text

from lab.editors.guard import GuardEditor
from lab.editors.switch import Row, Switcher
from lab.training.module import CausalLM
from lab.training.progress import console
from lab.training.step import Instrument

log = logging.getLogger(__name__)
FEW = 4  # switches of one event that the console tells one by one; the log has them all


class SwitchBoard(Instrument):
    """Shows each switch where it happens; the file of switches is the editor's own."""

    def __init__(self, editor: Switcher) -> None:
        self.editor = editor

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """What switched before the first step."""
        if pl_module.run.progress.step == 0:
            self._show(trainer, pl_module, 0)
            self._log(trainer, self._forms(pl_module), 0)  # where the lines start

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """What switched after this step."""
        self._show(trainer, module, trainer.global_step)

    def _show(self, trainer: Trainer, module: CausalLM, step: int) -> None:
        rows, waiting = self.editor.rows, self.editor.new_waiting
        if not trainer.is_global_zero or not (rows or waiting):
            return
        for line in [*map(sentence, rows), *(f"step {step}: {name} waits: zero_matrix" for name in waiting)]:
            log.info("%s", line)
        for line in [*lines(rows), *(f"step {step}: {name} waits: zero_matrix" for name in waiting)]:
            console.print(Text(line, style="bold"))
        if not rows:
            return
        scalars = self._forms(module) if step else {}
        if rows[0]["loss_before"] is not None:
            scalars["switch/loss_jump"] = rows[0]["loss_after"] - rows[0]["loss_before"]
        self._log(trainer, scalars, step)
        for logger in trainer.loggers:
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if add_text is not None:
                add_text("switch", "\n\n".join(map(sentence, rows)), step)

    def _forms(self, module: CausalLM) -> dict[str, float]:
        forms = Counter(form.form for form in module.run.model.structure.layers.values())
        trained = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
        return {f"switch/layers_{form}": float(forms[form]) for form in ("fading", "low_rank", "delta")} | {
            "switch/trainable_params": float(trained)
        }

    def _log(self, trainer: Trainer, scalars: dict[str, float], step: int) -> None:
        if trainer.is_global_zero and scalars:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=step)


def lines(rows: Sequence[Row]) -> list[str]:
    """A line for each switch; for each kind of switch where there are more than FEW."""
    if len(rows) <= FEW:
        return [sentence(row) for row in rows]
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["from"], row["to"], row["reason"]), []).append(row)
    return [together(alike) for alike in kinds.values()]


def together(rows: Sequence[Row]) -> str:
    """Switches of one kind in words: their sum, and the span of what differs."""
    first, few = rows[0], ", ".join(row["layer"] for row in rows[:2])
    more = f" and {len(rows) - 2} more" if len(rows) > 2 else ""
    whole = {key: sum(row[key] for row in rows) for key in first if key.startswith(("para", "state"))}
    shared = {**first, **whole, "layer": f"{few}{more}"}
    for key, form in (("rank", "{:d}"), ("tail", "{:.1%}")):
        values = sorted(row[key] for row in rows if row[key] is not None)
        shared[key] = (
            None if not values else " to ".join(dict.fromkeys(form.format(v) for v in (values[0], values[-1])))
        )
    return sentence(shared)


class GuardBoard(Instrument):
    """Shows each guard where it begins and ends, and how many layers are guarded."""

    def __init__(self, editor: GuardEditor) -> None:
        self.editor = editor

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """What began or ended after this step."""
        events = self.editor.events
        if not trainer.is_global_zero or not events:
            return
        for line in events:
            console.print(Text(line, style="bold"))
        for logger in trainer.loggers:
            logger.log_metrics({"switch/layers_guarded": float(len(self.editor.guarded()))}, step=trainer.global_step)
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if add_text is not None:
                add_text("guard", "\n\n".join(events), trainer.global_step)


def sentence(row: Row) -> str:
    """A switch in words, with its numbers."""
    parts = [f"step {row['step']}: {row['layer']} {row['from']} → {row['to']} ({row['reason']})"]
    if row["rank"] is not None:
        parts.append(f"rank {row['rank']}")
    if row["tail"] is not None:
        tail = row["tail"] if isinstance(row["tail"], str) else f"{row['tail']:.1%}"
        parts.append(f"{'freezes' if row['to'] == 'delta' else 'leaves'} {tail} of the weight's norm")
    parts.append(f"{row['parameters_before']:,} → {row['parameters_after']:,} parameters")
    parts.append(f"state {row['state_bytes_before'] / 1e6:.2f} → {row['state_bytes_after'] / 1e6:.2f} MB")
    if row["loss_before"] is not None:
        shared = f" ({row['layers_at_once']} layers at once)" if row["layers_at_once"] > 1 else ""
        parts.append(f"loss on the step's batch {row['loss_before']:.4f} → {row['loss_after']:.4f}{shared}")
    return ", ".join(parts)
