"""Targets of spectral measurement: the layers that a policy with ticks measures, known from shapes alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lab.errors import UsageError
from lab.layer import Target, find_targets, is_linear, shape_of
from lab.model import Model
from lab.svd_policy import SvdPolicy
from lab.svd_policy.observing import Observing


@dataclass(frozen=True)
class SpectralTargets:
    """The layers a policy measures, and the arithmetic of the model they are in."""

    policy: Observing
    targets: list[Target]
    matmul_parameters: int  # weights that multiply activations, the output head among them
    trains_base: bool  # every weight trains, and not adapters on a frozen base

    def step_flops(self, tokens: float) -> float:
        """Training FLOPs of an optimizer step over so many tokens, in all weights that multiply."""
        return self.flops_of(self.matmul_parameters, tokens)

    def flops_of(self, weights: int, tokens: float) -> float:
        """Training FLOPs of so many weights that multiply so many tokens.

        2 FLOPs a weight and token forward; backward as much for the inputs, and for the weights where they train.
        """
        return (6 if self.trains_base else 4) * weights * tokens


def spectral_targets(model: Model, policy: SvdPolicy, adapted: Sequence[Target] | None) -> SpectralTargets | None:
    """What the policy measures in a model that need not be loaded yet; None where it has no ticks.

    Where only adapters train, of the layers `adapted` alone: the others never change. Raises UsageError for a policy
    that does not say how to measure or decides about layers that do not train, a pattern that matches nothing, and a k
    that is larger than a layer.
    """
    if policy.every_n_steps is None:
        return None
    if not isinstance(policy, Observing):
        raise UsageError(
            f"svd_policy {type(policy).__name__} has ticks and no settings to measure by; let it inherit from "
            f"lab.svd_policy.observing.Observing."
        )
    if policy.rules and adapted is not None:
        raise UsageError(
            f"svd_policy {type(policy).__name__} decides when a layer that trains in full may go low-rank, and "
            f"method=lora has none; use svd_policy=observe, or method=full."
        )
    skeleton = model.skeleton()
    targets = find_targets(skeleton, policy.target_modules, key="svd_policy.target_modules")
    if adapted is not None:
        names = {target.name for target in adapted}
        named, targets = targets, [target for target in targets if target.name in names]
        if not targets:
            raise UsageError(
                f"svd_policy.target_modules={policy.target_modules!r} names {named[0].name} and no layer that is "
                f"adapted, so nothing it names would change; widen it or adapter.target_modules."
            )
    shapes = {target.name: target.shape for target in targets}
    policy.check_run(shapes)
    matmul = sum(math.prod(shape_of(module)) for module in skeleton.modules() if is_linear(module))
    return SpectralTargets(policy, targets, matmul, trains_base=adapted is None)
