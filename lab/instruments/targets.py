"""What a policy with ticks looks at in a model, known from shapes before any weight is loaded."""

import math
from dataclasses import dataclass
from typing import Any

from lab.config import RunConfig
from lab.errors import UsageError
from lab.layer import Target, find_targets, is_linear, shape_of
from lab.svd_policy import SvdPolicy
from lab.svd_policy.observing import Observing
from lab.svd_policy.reachability import Bound, amdahl


@dataclass(frozen=True)
class Watched:
    """What a policy with ticks looks at, from shapes alone."""

    policy: Observing
    targets: list[Target]
    bound: Bound  # on what low rank in the targets could bring
    matmul_parameters: int  # weights that multiply activations, the output head among them

    def step_flops(self, config: RunConfig, tokens: float) -> float:
        """Training FLOPs of an optimizer step over so many tokens.

        2 FLOPs a weight and token forward; backward as much for the inputs, and with method=full for the weights.
        """
        return (6 if config.method == "full" else 4) * self.matmul_parameters * tokens


def watched(model: Any, policy: SvdPolicy, config: RunConfig) -> Watched | None:
    """What the policy looks at in a model that need not be loaded yet; None where it has no ticks.

    With method=lora only layers that are adapted: the others never change. Raises UsageError for a policy that does not
    say how to measure or decides about layers that do not train, a pattern that matches nothing, and a k that is larger
    than a layer.
    """
    if policy.every_n_steps is None:
        return None
    if not isinstance(policy, Observing):
        raise UsageError(
            f"svd_policy {type(policy).__name__} has ticks and no settings to measure by; let it inherit from "
            f"lab.svd_policy.observing.Observing."
        )
    if policy.rules and config.method == "lora":
        raise UsageError(
            f"svd_policy {type(policy).__name__} decides when a layer that trains in full may go low-rank, and "
            f"method=lora has none; use svd_policy=observe, or method=full."
        )
    skeleton = model.skeleton()
    targets = find_targets(skeleton, policy.target_modules, key="svd_policy.target_modules")
    if config.method == "lora":
        adapter = config.adapter
        adapted = {target.name for target in find_targets(skeleton, adapter.target_modules, adapter.exclude_modules)}
        named, targets = targets, [target for target in targets if target.name in adapted]
        if not targets:
            raise UsageError(
                f"svd_policy.target_modules={policy.target_modules!r} names {named[0].name} and no layer that is "
                f"adapted, so nothing it names would change; widen it or adapter.target_modules."
            )
    shapes = {target.name: target.shape for target in targets}
    policy.check_run(shapes)
    matmul = sum(math.prod(shape_of(module)) for module in skeleton.modules() if is_linear(module))
    return Watched(policy, targets, amdahl(shapes, matmul, skeleton.num_parameters()), matmul)
