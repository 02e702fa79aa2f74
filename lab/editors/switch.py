"""Editor that switches layers between full and low rank: rank 0 decides and factors, the optimizer goes on."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.adapter.read import form_at
from lab.adapter.structured import Structured
from lab.adapter.switched import SwitchedLinear, install, install_full, switched_layers
from lab.editors import Edit
from lab.editors.factoring import factored
from lab.editors.moments import Adam, State, joined, joined_adam
from lab.editors.places import bytes_of, place_of, put_in_place, state_from_0
from lab.errors import Mismatch
from lab.model import base_of
from lab.process import heartbeat
from lab.record import RunRecord, strict
from lab.structure import LayerForm
from lab.svd_policy.switching import Move, Shapes, Switching
from lab.training.compile import allow_graphs
from lab.training.distributed import broadcast, from_rank_0, rank
from lab.training.optim import set_pairs, verify_trained

FILE = "switches.jsonl"
Row = dict[str, Any]  # of switches.jsonl


class Switcher:
    """Carries out a policy's moves after a step, on weights and optimizer, and lets residuals fade."""

    name = "switches"

    def __init__(
        self,
        model: Structured,
        policy: Switching,
        shapes: Shapes,
        total_steps: int,
        run_dir: Path,
        dtype: torch.dtype,
    ) -> None:
        self.layouts: set[frozenset[tuple[str, str, int | None]]] = set()  # that blocks have had, each a graph or two
        self.model, self.net, self.policy, self.shapes = model, base_of(model.net), policy, shapes
        self.total_steps = total_steps  # of the run
        self.run_dir, self.dtype = run_dir, dtype  # of Muon's products
        self.asked: Callable[[], Sequence[Move]] = tuple  # the moves that the last tick's decisions ask for, on rank 0
        self.loss: Callable[[], float | None] = lambda: None  # of the step's last micro-batches, as the weights are
        self.rows: list[Row] = []  # of the last event
        self.waiting: list[Move] = []  # of layers of zeros: carried out as soon as they have directions
        self.new_waiting: list[str] = []  # layers that have begun to wait after this step

    def loss_term(self, scale: int) -> None:
        """None: a switch adds nothing to the objective."""

    def before_first_step(self, optimizer: torch.optim.Optimizer) -> list[Edit]:
        """Begin the file, and carry out what the policy asks for at step 0."""
        if rank() == 0:
            (self.run_dir / FILE).unlink(missing_ok=True)
        return self.after_step(0, optimizer)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> list[Edit]:
        """Fade, then carry out what the policy asks for, as one event; raises Mismatch for a move that cannot be."""
        self.rows, self.new_waiting, faded = [], [], self._fade(step)
        moves = self._moves(step)
        if not faded and not moves:
            return []
        before = self.loss()
        for name in faded:
            self._drop(name, step, optimizer)
        for move in moves:
            self._carry_out(move, step, optimizer)
        self._allow_graphs()
        set_pairs(optimizer, list(switched_layers(self.net).values()))
        verify_trained(self.net, optimizer)
        after, layers = self.loss(), len({row["layer"] for row in self.rows})
        for row in self.rows:
            row |= {"loss_before": before, "loss_after": after, "layers_at_once": layers}
        if rank() == 0:
            with open(self.run_dir / FILE, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in self.rows))
        return [Edit(row["layer"], form_at(self.net, row["layer"])) for row in self.rows]

    def _allow_graphs(self) -> None:
        """Where blocks are compiled, each layout of a block is compiled anew."""
        blocks: dict[str, set[tuple[str, str, int | None]]] = {}
        for name in self.shapes:
            block, _, leaf = re.sub(r"^(.*?\.\d+)\.", r"\1|", name).rpartition("|")
            form = form_at(self.net, name)
            blocks.setdefault(block, set()).add((leaf, form.form, form.rank))
        self.layouts |= {frozenset(block) for block in blocks.values()}
        allow_graphs(len(self.layouts))

    def _moves(self, step: int) -> list[Move]:
        """What is to be carried out now: what is due, what was asked for, and what need not wait any longer."""
        due = self.policy.due(step, self.total_steps, self.shapes)
        if not (due or self.waiting or self.policy.decides_after(step)):
            return []  # and no process need hear of it
        waited = {move.layer for move in self.waiting}
        now, waiting = from_rank_0(lambda: [[asdict(move) for move in moves] for moves in self._sorted(due, step)])
        self.waiting = [Move(**move) for move in waiting]
        self.new_waiting = [move.layer for move in self.waiting if move.layer not in waited]
        return [Move(**move) for move in now]

    def _sorted(self, due: Sequence[Move], step: int) -> tuple[list[Move], list[Move]]:
        """The moves for now, and those that wait; one that was to undo a move that waited has nothing to undo."""
        new = [*due, *self.asked()]
        named, waited = {move.layer for move in new}, {move.layer for move in self.waiting}
        moves = [*(move for move in self.waiting if move.layer not in named), *new]
        waiting = [move for move in moves if self._waits(move, step)]
        now = [move for move in moves if move not in waiting and not (move.layer in waited and move.to == "full")]
        return now, waiting

    def _waits(self, move: Move, step: int) -> bool:
        """True for a weight of zeros after the first step: it has no directions, and will have some."""
        module: Any = self.net.get_submodule(move.layer)
        return move.to != "full" and step > 0 and isinstance(module, nn.Linear) and not bool(module.weight.any())

    def _fade(self, step: int) -> list[str]:
        """Let each residual fade one step further; the layers whose residual has come to its end."""
        ended = []
        for name in self.model.structure.switched:
            layer = _switched(self.net, name)
            if layer.fade is not None:
                assert layer.since is not None, "a fading layer that never switched"
                left = 1 - (step - layer.since) / self.policy.fade_steps
                if left > 0:
                    layer.fade.fill_(left)
                else:
                    ended.append(name)  # its last part goes with the residual, once the loss before is known
        return ended

    def _drop(self, name: str, step: int, optimizer: torch.optim.Optimizer) -> None:
        layer = _switched(self.net, name)
        assert layer.E is not None, "nothing is left to drop"
        assert layer.fade is not None, "it does not fade"
        layer.fade.zero_()
        cost = self._cost(name, optimizer)
        tail = _share(layer.E, layer.weight_now() + layer.E)
        layer.drop_residual()
        self._note(step, name, "fading", layer.form, "faded", tail, cost, optimizer)

    def _carry_out(self, move: Move, step: int, optimizer: torch.optim.Optimizer) -> None:
        before = form_at(self.net, move.layer)
        if before.form == "full" and move.to == "full":
            raise Mismatch(f"{move.layer} is {before.form} at step {step}, and is asked to become {move.to}.")
        heartbeat.beat()
        cost = self._cost(move.layer, optimizer)
        tail = None
        if before.form != "full":  # to another rank, by way of the weight that the layer acts with
            self._to_full(move.layer, optimizer)
        if move.to != "full":
            tail = self._to_low_rank(move, step, optimizer)
        self._note(step, move.layer, before.form, form_at(self.net, move.layer), move.reason, tail, cost, optimizer)

    def _note(
        self,
        step: int,
        name: str,
        before: str,
        form: LayerForm,
        reason: str,
        tail: float | None,
        cost: tuple[int, int],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        after = self._cost(name, optimizer)
        self.rows.append(
            {
                **{"step": step, "layer": name, "from": before, "to": form.form, "reason": reason, "rank": form.rank},
                **{"scaling": form.scaling, "muon_step": form.step, "tail": tail},
                **{"parameters_before": cost[0], "parameters_after": after[0]},
                **{"state_bytes_before": cost[1], "state_bytes_after": after[1]},
            }
        )

    def _cost(self, name: str, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
        """Trained entries of a layer's matrices, and the bytes of the optimizer's state of them."""
        held = [p for p in self.net.get_submodule(name).parameters(recurse=False) if p.requires_grad and p.ndim == 2]
        return sum(p.numel() for p in held), sum(bytes_of(optimizer.state.get(p, {})) for p in held)

    def _to_low_rank(self, move: Move, step: int, optimizer: torch.optim.Optimizer) -> float:
        """Factor on rank 0, give the pair to every process, and put it in the optimizer where the weight was."""
        old: Any = self.net.get_submodule(move.layer)
        group, place = place_of(optimizer, old.weight)
        state = optimizer.state.get(old.weight, {})
        made = None
        if rank() == 0:
            made = factored(move, old.weight.detach(), group, state, step, self.policy, self.dtype)
        shared: list[Any] = from_rank_0(lambda: [vars(made.form), made.tail] if made is not None else [])
        form, tail = shared
        layer = install(self.net, move.layer, LayerForm(**form))
        layer.train(old.training)
        with torch.no_grad():
            for key in ("A", "B", "E"):
                if (parameter := getattr(layer, key)) is not None:
                    parameter.copy_(broadcast(made.tensors[key] if made is not None else parameter.detach()))
        of_A, of_B = (
            state_from_0(state, parameter, None if made is None else made.states[i])
            for i, parameter in enumerate((layer.A, layer.B))
        )
        put_in_place(optimizer, group, place, [old.weight], {layer.A: of_A, layer.B: of_B}, ("A", "B"))
        return float(tail)

    def _to_full(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        layer = _switched(self.net, name)
        group, place = place_of(optimizer, layer.A)
        of_A, of_B = optimizer.state.get(layer.A, {}), optimizer.state.get(layer.B, {})
        made: State = {}
        if rank() == 0 and "momentum" in of_B:
            made = {"momentum": joined(layer, of_B["momentum"], of_A["momentum"])}
        elif rank() == 0 and of_B:
            made = joined_adam(layer, Adam.of(of_B, group), Adam.of(of_A, group)).state(of_B["step"], group)
        weight: Any = install_full(self.net, name).weight
        with torch.no_grad():
            weight.copy_(broadcast(weight.detach().clone()))
        state = state_from_0(of_B, weight, made if rank() == 0 else None)
        put_in_place(optimizer, group, place, [layer.A, layer.B], {weight: state}, ("weight",))

    def state_dict(self) -> dict[str, Any]:
        """The moves that wait; what a fade needs is in the structure."""
        return {"waiting": [asdict(move) for move in self.waiting]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the moves that waited."""
        self.waiting = [Move(**move) for move in state["waiting"]]

    def finish(self, record: RunRecord) -> None:
        """Record the ranks that are left, read back, and how many parameters train now."""
        record.ranks = {name: layer.A.shape[0] for name, layer in switched_layers(self.net).items()}
        record.scalings = {name: layer.scaling for name, layer in switched_layers(self.net).items()}
        record.trainable_params = sum(p.numel() for p in self.net.parameters() if p.requires_grad)


def _switched(net: nn.Module, name: str) -> SwitchedLinear:
    layer = net.get_submodule(name)
    assert isinstance(layer, SwitchedLinear), f"{name} was not switched"
    return layer


def _share(part: Tensor, whole: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(whole.double()))
    return float(torch.linalg.vector_norm(part.double())) / norm if norm > 0 else 0.0
