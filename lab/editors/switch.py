"""Editor that switches layers between full and low rank: rank 0 decides and factors, the optimizer goes on."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.adapter.read import form_at
from lab.adapter.structured import Structured
from lab.adapter.switched import SwitchedLinear, install, install_full, switched_layers
from lab.editors import Edit
from lab.editors.factoring import split_for
from lab.editors.moments import Adam, Factors, State, joined, joined_adam, scaling_for_adam, split_adam, step_for_muon
from lab.errors import Mismatch
from lab.model import base_of
from lab.record import RunRecord, strict
from lab.structure import LayerForm
from lab.svd_policy.switching import Move, Shapes, Switching
from lab.training.compile import allow_graphs
from lab.training.distributed import broadcast, from_rank_0, rank
from lab.training.optim import set_pairs, verify_trained

FILE = "switches.jsonl"
Row = dict[str, Any]  # of switches.jsonl


@dataclass(frozen=True)
class Factored:
    """A layer's new form, made on rank 0."""

    form: LayerForm
    tensors: Mapping[str, Tensor]  # A, B, and E where it stays
    states: tuple[State, State]  # of A and of B; empty before the first step
    tail: float  # ‖W − s B A‖_F / ‖W‖_F


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
        after = self.loss()
        for row in self.rows:
            row |= {"loss_before": before, "loss_after": after, "layers_at_once": len(self.rows)}
        if rank() == 0:
            with open(self.run_dir / FILE, "a") as file:
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
                layer.fade.fill_(max(0.0, left))
                if left <= 0:
                    ended.append(name)
        return ended

    def _drop(self, name: str, step: int, optimizer: torch.optim.Optimizer) -> None:
        layer = _switched(self.net, name)
        assert layer.E is not None, "nothing is left to drop"
        cost = self._cost(name, optimizer)
        tail = _share(layer.E, layer.weight_now() + layer.E)
        layer.drop_residual()
        self._note(step, name, "fading", layer.form, "faded", tail, cost, optimizer)

    def _carry_out(self, move: Move, step: int, optimizer: torch.optim.Optimizer) -> None:
        before = form_at(self.net, move.layer)
        if before.form == "full" and move.to == "full":
            raise Mismatch(f"{move.layer} is {before.form} at step {step}, and is asked to become {move.to}.")
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
        return sum(p.numel() for p in held), sum(_bytes(optimizer.state.get(p, {})) for p in held)

    def _to_low_rank(self, move: Move, step: int, optimizer: torch.optim.Optimizer) -> float:
        """Factor on rank 0, give the pair to every process, and put it in the optimizer where the weight was."""
        old: Any = self.net.get_submodule(move.layer)
        group, place = _place(optimizer, old.weight)
        state = optimizer.state.get(old.weight, {})
        made = self._factor(move, old.weight.detach(), group, state, step) if rank() == 0 else None
        shared: list[Any] = from_rank_0(lambda: [vars(made.form), made.tail] if made is not None else [])
        form, tail = shared
        layer = install(self.net, move.layer, LayerForm(**form))
        layer.train(old.training)
        with torch.no_grad():
            for key in ("A", "B", "E"):
                if (parameter := getattr(layer, key)) is not None:
                    parameter.copy_(broadcast(made.tensors[key] if made is not None else parameter.detach()))
        of_A, of_B = (
            _state_from_0(state, parameter, None if made is None else made.states[i])
            for i, parameter in enumerate((layer.A, layer.B))
        )
        _replace(optimizer, group, place, [old.weight], {layer.A: of_A, layer.B: of_B}, ("A", "B"))
        return float(tail)

    def _factor(self, move: Move, W: Tensor, group: dict[str, Any], state: State, step: int) -> Factored:
        """The pair, its optimizer states and what it leaves, from a weight and the state of that."""
        assert move.rank is not None, "a low-rank move without a rank"
        split, kind = split_for(move.to, self.policy.start, W, state, move.rank, move.layer), move.to
        pair = Factors(split.A.float(), split.B.float())
        states: tuple[State, State] = ({}, {})
        if group.get("kind") == "muon":
            momentum = state.get("momentum")
            pair.step = step_for_muon(momentum, pair, self.dtype)
            if momentum is not None:
                states = ({"momentum": pair.B.T @ momentum}, {"momentum": momentum @ pair.A.T})
        else:
            adam = Adam.of(state, group) if state else None
            s = scaling_for_adam(adam, pair)
            pair = Factors((split.A / math.sqrt(s)).float(), (split.B / math.sqrt(s)).float(), s)
            if adam is not None:
                of_B, of_A = split_adam(adam, pair)
                states = (of_A.state(state["step"], group), of_B.state(state["step"], group))
        fades = kind == "compress" and self.policy.residual == "fade"
        form = LayerForm(
            "delta" if kind == "delta" else "fading" if fades else "low_rank",
            rank=move.rank,
            scaling=pair.scaling,
            step=pair.step,
            since=step,
        )
        tensors = {"A": pair.A, "B": pair.B}
        if form.form != "low_rank":
            tensors["E"] = W - (pair.scaling * (pair.B.double() @ pair.A.double())).float()
        return Factored(form, tensors, states, split.tail)

    def _to_full(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        layer = _switched(self.net, name)
        group, place = _place(optimizer, layer.A)
        of_A, of_B = optimizer.state.get(layer.A, {}), optimizer.state.get(layer.B, {})
        made: State = {}
        if rank() == 0 and "momentum" in of_B:
            made = {"momentum": joined(layer, of_B["momentum"], of_A["momentum"])}
        elif rank() == 0 and of_B:
            made = joined_adam(layer, Adam.of(of_B, group), Adam.of(of_A, group)).state(of_B["step"], group)
        weight: Any = install_full(self.net, name).weight
        with torch.no_grad():
            weight.copy_(broadcast(weight.detach().clone()))
        state = _state_from_0(of_B, weight, made if rank() == 0 else None)
        _replace(optimizer, group, place, [layer.A, layer.B], {weight: state}, ("weight",))

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


def _place(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[dict[str, Any], int]:
    """The group of a parameter and its place there."""
    for group in optimizer.param_groups:
        for place, held in enumerate(group["params"]):
            if held is parameter:
                return group, place
    raise Mismatch(f"a weight of shape {tuple(parameter.shape)} is to switch, and the optimizer does not hold it.")


def _replace(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    place: int,
    old: Sequence[nn.Parameter],
    new: Mapping[nn.Parameter, State],
    leaves: Sequence[str],
) -> None:
    """Parameters in the place of others, which lie side by side, with their states; all else stays as it is."""
    for i, parameter in enumerate(old):
        assert group["params"][place + i] is parameter, "the factors of a layer lie side by side"
        optimizer.state.pop(parameter, None)
    group["params"][place : place + len(old)] = list(new)
    if "param_names" in group:
        stem = group["param_names"][place].rpartition(".")[0]
        group["param_names"][place : place + len(old)] = [f"{stem}.{leaf}" for leaf in leaves]
    for parameter, state in new.items():
        if state:
            optimizer.state[parameter] = dict(state)


def _state_from_0(before: State, parameter: nn.Parameter, made: State | None) -> State:
    """Rank 0's state of a new parameter, on every rank: of the kinds that the one before had."""
    empty = {key: torch.zeros_like(parameter) if value.ndim else value.clone() for key, value in before.items()}
    return {key: broadcast(value if made is None else made[key]) for key, value in sorted(empty.items())}


def _share(part: Tensor, whole: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(whole.double()))
    return float(torch.linalg.vector_norm(part.double())) / norm if norm > 0 else 0.0


def _bytes(state: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor) and value.ndim > 0)
