"""Cases of the init bench: layers of known spectrum, with our schemes and peft's counterparts to fill them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import peft
import torch
from omegaconf import OmegaConf
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from scipy.fft import dct
from torch import Generator, Tensor, nn

from lab.config import CONF, instantiate, plain_of
from lab.init import InitScheme
from lab.layer import Evidence, Target

RANK, ALPHA, TOKENS = 16, 32, 1024
SCALING = ALPHA / RANK


@dataclass(frozen=True)
class Case:
    """One layer: its weight, a gradient of the same spectrum, and inputs that reach it."""

    spectrum: str  # decaying: σᵢ ∝ i^-½, as trained weights have roughly; gaussian: independent normal entries
    weight: Tensor  # (out, in)
    gradient: Tensor  # (out, in)
    inputs: Tensor  # (TOKENS, in), standard deviation of direction i falling as i^-½

    @property
    def layer(self) -> str:
        """`4096x11008`: out x in."""
        return f"{self.weight.shape[0]}x{self.weight.shape[1]}"

    def to(self, device: torch.device) -> "Case":
        """The same layer on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("weight", "gradient", "inputs")}
        return replace(self, **moved)


def make_case(shape: tuple[int, int], spectrum: str, seed: int = 0) -> Case:
    """A case whose weight and gradient have norm √out and 1."""
    generator = Generator().manual_seed(seed)
    make = _gaussian if spectrum == "gaussian" else _decaying
    weight, gradient = make(shape, generator), make(shape, generator)
    inputs = torch.randn(TOKENS, shape[1], generator=generator) * torch.arange(1, shape[1] + 1) ** -0.5
    return Case(spectrum, weight / weight.norm() * shape[0] ** 0.5, gradient / gradient.norm(), inputs)


def _gaussian(shape: tuple[int, int], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _decaying(shape: tuple[int, int], generator: Generator) -> Tensor:
    """σᵢ = i^-½ between cosine bases with random signs, which fast transforms make without a dense factorisation."""
    k = min(shape)
    matrix = torch.zeros(shape)
    matrix[torch.randperm(k, generator=generator), torch.arange(k)] = torch.arange(1, k + 1) ** -0.5
    for axis in (0, 1):
        matrix = torch.from_numpy(dct(matrix.numpy(), axis=axis, norm="ortho"))
        signs = torch.randint(0, 2, (shape[axis],), generator=generator).float() * 2 - 1
        matrix = matrix * (signs[:, None] if axis == 0 else signs)
    return matrix


def our_schemes() -> dict[str, InitScheme]:
    """Every conf/init/*.yaml as it stands, but `svd` sources that need a training run."""
    paths = sorted((CONF / "init").glob("*.yaml"))
    return {path.stem: instantiate.make(plain_of(OmegaConf.load(path))) for path in paths}


def our_fill(scheme: InitScheme, case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    """Our scheme on a case, the inputs' second moment included where it is needed."""
    target = Target("layer", "other", 0, (case.weight.shape[0], case.weight.shape[1]), False)

    def fill() -> tuple[Tensor, Tensor]:
        moment = case.inputs.T @ case.inputs / TOKENS if "activations" in scheme.needs else None
        evidence = Evidence(gradient=case.gradient, activations=moment, delta=case.gradient, num_tokens=TOKENS)
        made = scheme.factors(target, case.weight, RANK, SCALING, evidence, Generator().manual_seed(0))
        return made.A, made.B

    return fill


# Our scheme -> peft's init_lora_weights; loftq is absent because peft's needs CUDA and bitsandbytes.
COUNTERPARTS: dict[str, Any] = {
    "random": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": "pissa",
    "olora": "olora",
    "corda": "corda",
    "corda_kpm": "corda",
    "lora_ga": "lora_ga",
    "eva": "eva",
}


def peft_fill(name: str, kind: Any, case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    """peft's counterpart on a case, making its adapter and whatever it must run first included.

    For one call only: it folds into its copy of the weight.
    """
    net: Any = nn.Sequential(nn.Linear(case.weight.shape[1], case.weight.shape[0], bias=False))
    net.to(case.weight.device)[0].weight.data.copy_(case.weight)
    options: dict[str, Any] = {}
    if kind == "corda":
        options["corda_config"] = CordaConfig(corda_method="kpm" if name == "corda_kpm" else "ipm")
    elif kind == "lora_ga":
        options["lora_ga_config"] = peft.LoraGAConfig(stable_gamma=16)
    elif kind == "eva":
        options["eva_config"] = peft.EvaConfig(rho=1.0)

    def fill() -> tuple[Tensor, Tensor]:
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], init_lora_weights=kind, **options)
        if kind == "corda":
            preprocess_corda(net, config, run_model=lambda: net(case.inputs))
        elif kind == "lora_ga":
            preprocess_loraga(net, config, lambda: (net[0].weight * case.gradient).sum().backward())
        model: Any = peft.get_peft_model(net, config)
        if kind == "eva":
            initialize_lora_eva_weights(
                model,
                list(case.inputs.split(TOKENS // 4)),
                forward_fn=lambda model, chunk: model(chunk),
                prepare_model_inputs_fn=None,
                prepare_layer_inputs_fn=lambda inputs, *_: inputs[0] if isinstance(inputs, tuple) else inputs,
                show_progress_bar=False,
            )
        layer = model.base_model.model[0]
        return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()

    return fill


@torch.no_grad()
def captured_energy(name: str, pair: tuple[Tensor, Tensor], case: Case) -> float | None:
    """The share, 0 to 1, of what the scheme is after that its pair holds; None where it is after nothing.

    cos² between the product and the weight (pissa, milora, middle, random_components, olora) or the gradient (svd,
    lora_one, gora); between W C's part and W C (corda); between the first step and the gradient (lora_ga); the share
    of the inputs' energy in A's rows (eva).
    """
    A, B = pair
    if name in ("random", "gaussian", "init_b", "orthogonal", "loftq"):
        return None
    if name == "eva":
        return float((case.inputs @ torch.linalg.qr(A.T).Q).square().sum() / case.inputs.square().sum())
    if name.startswith("corda"):
        seen = case.inputs.T @ case.inputs
        return _cosine(B @ (A @ seen), case.weight @ seen) ** 2
    if name == "lora_ga":
        G = case.gradient
        return _cosine(B @ (B.T @ G) + (G @ A.T) @ A, G) ** 2
    return _cosine(B @ A, case.gradient if name in ("svd", "lora_one", "gora") else case.weight) ** 2


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))
