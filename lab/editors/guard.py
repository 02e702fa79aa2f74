"""Editor that guards principal directions: it takes the protected part off the update that an optimizer has applied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lab.adapter.structured import Structured
from lab.editors import Edit
from lab.layer import weight_of
from lab.model import base_of
from lab.process import heartbeat
from lab.record import RunRecord, strict
from lab.svd_policy.attack import Guarding, Protected
from lab.training.distributed import broadcast, from_rank_0

LEAST = (
    1e-3  # RMS of an update over its weight's, below which float32 rounds the weight by more than 1e-8 of its energy
)


@dataclass
class Account:
    """What a guard did to a layer, over all its steps."""

    since: int | None = None  # optimizer steps taken when the guard that stands began; None once it is released
    steps: int = 0  # guarded
    removed: float = 0.0  # sum over steps of the share of the update's energy that was protected
    leak: float = 0.0  # largest share of it left, at steps with RMS(update) ≥ LEAST · RMS(weight)
    leak_below: float = 0.0  # and at smaller steps, where rounding counts
    steps_below: int = 0


def protected(change: Tensor, U: Tensor, V: Tensor, side: Protected) -> Tensor:
    """The part of a change (out, in) on the directions U (out, k), V (in, k) with orthonormal columns.

    core U Uᵀ X V Vᵀ; left U Uᵀ X; right X V Vᵀ; bilateral left + right − core. At most 8·out·in·k FLOPs.
    """
    left = U @ (U.T @ change)
    if side == "left":
        return left
    right = (change @ V) @ V.T
    if side == "right":
        return right
    core = U @ (U.T @ right)
    return core if side == "core" else left + right - core


class GuardEditor:
    """Keeps the directions that guarded weights had when their guard began, by hooks around the optimizer's step.

    What decays or clips, and whatever the optimizer makes of a gradient, is in the update that is projected.
    """

    name = "guard"

    def __init__(self, model: Structured, policy: Guarding) -> None:
        self.net, self.policy = base_of(model.net), policy
        self.asked: Callable[[], Sequence[tuple[str, bool]]] = tuple  # layers to guard (True) or release, on rank 0
        self.bases: dict[str, tuple[Tensor, Tensor]] = {}  # U (out, k) and V (in, k), float64
        self.accounts: dict[str, Account] = {}
        self.events: list[str] = []  # of the last step, in words
        self._before: dict[str, Tensor] = {}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Act around each step of an optimizer from now on."""
        optimizer.register_step_pre_hook(lambda *_: self._keep())
        optimizer.register_step_post_hook(lambda *_: self._project())

    @torch.no_grad()
    def _keep(self) -> None:
        self._before = {name: self._weight(name).clone() for name in self.bases}

    @torch.no_grad()
    def _project(self) -> None:
        for name, before in self._before.items():
            weight, (U, V), account = self._weight(name), self.bases[name], self.accounts[name]
            start = before.double()
            change = weight.double() - start
            total = float(change.square().sum())
            taken = protected(change, U, V, self.policy.side)
            weight.copy_(start + change - self.policy.strength * taken)
            account.steps += 1
            if total > 0:
                left = protected(weight.double() - start, U, V, self.policy.side)
                account.removed += float(taken.square().sum()) / total
                small = total < LEAST**2 * float(start.square().sum())
                account.steps_below += small
                which = "leak_below" if small else "leak"
                setattr(account, which, max(getattr(account, which), float(left.square().sum()) / total))
        self._before = {}

    def loss_term(self, scale: int) -> None:
        """None: a guard adds nothing to the objective."""

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> list[Edit]:
        """Begin and end guards as the policy asks; no module takes another form by it."""
        self.events = []
        if not self.policy.decides_after(step):
            return []  # and no process need hear of it
        for name, begins in from_rank_0(lambda: list(self.asked())):
            heartbeat.beat()
            if begins:
                U, _, Vh = torch.linalg.svd(self._weight(name).double(), full_matrices=False)
                k = self.policy.k
                self.bases[name] = broadcast(U[:, :k].contiguous()), broadcast(Vh[:k].T.contiguous())
                self.accounts.setdefault(name, Account()).since = step
                self.events.append(f"step {step}: {name} is guarded, {self.policy.side}, k={k}")
            else:
                self.bases.pop(name, None)
                account = self.accounts[name]
                account.since = None
                self.events.append(f"step {step}: {name} is released after {account.steps} guarded steps")
        return []

    def guarded(self) -> set[str]:
        """The layers whose updates are projected now."""
        return set(self.bases)

    def _weight(self, name: str) -> Tensor:
        """(out, in), a view of the parameter."""
        return weight_of(self.net.get_submodule(name)).detach()

    def state_dict(self) -> dict[str, Any]:
        """The directions and what was done so far."""
        bases = {name: {"U": U.cpu(), "V": V.cpu()} for name, (U, V) in self.bases.items()}
        return {"bases": bases, "accounts": {name: asdict(account) for name, account in self.accounts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Guard on with the same directions."""
        device = {name: self._weight(name).device for name in state["bases"]}
        self.bases = {
            name: (held["U"].to(device[name]), held["V"].to(device[name])) for name, held in state["bases"].items()
        }
        self.accounts = {name: Account(**account) for name, account in state["accounts"].items()}

    def finish(self, record: RunRecord) -> None:
        """Record what each layer's guard did and let through."""
        record.spectral["guard"] = {name: strict(asdict(account)) for name, account in self.accounts.items()}
