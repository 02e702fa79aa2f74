"""Pairs of choices that make no sense, in one place, each with the reason it is refused. Plain data."""

from typing import Any

# Inits whose product is not zero at step 0, which DoRA needs (a user's own is judged by the pair it returns).
MOVING_INITS = (
    *("components.Components", "olora.Olora", "corda.Corda", "loftq.Loftq"),
    *("lora_ga.LoraGa", "lora_one.LoraOne", "gora.Gora", "svd.Svd"),
)

ADALORA = {"rank_strategy._target_": "lab.rank_strategy.adalora.Adalora"}
RANDOM = {"init._target_": "lab.init.random.Random"}
# Inits that AdaLoRA cannot use: all but `random`, which stands for its own.
UNUSED_INITS: tuple[dict[str, Any], ...] = (
    *({"init._target_": f"lab.init.{name}"} for name in (*MOVING_INITS, "orthogonal.Orthogonal", "eva.Eva")),
    {**RANDOM, "init.distribution": "gaussian"},
    {**RANDOM, "init.filled": "B"},
)

# Rank strategies other than uniform.
SPREADING = (
    *("adalora.Adalora", "components.Eva", "components.Posthoc", "custom.Custom", "depth.Linear", "depth.Thirds"),
    *("role.ByRole", "sensitivity.Fisher", "sensitivity.Gora", "shuffled.Shuffled"),
    *("spectrum.GradientRank", "spectrum.WeightSpectrum"),
)

# Dotted keys and the values that are refused together, and why.
INCOMPATIBLE: tuple[tuple[dict[str, Any], str], ...] = (
    (
        {"method": "full", "adapter.use_dora": True},
        "adapter.use_dora decomposes an adapter, and method=full has none",
    ),
    *(
        (
            {"method": "full", **init},
            "method=full trains every weight and fills no adapter, so this init would do nothing; use method=lora, or "
            "init=random",
        )
        for init in UNUSED_INITS
    ),
    *(
        (
            {"method": "full", "rank_strategy._target_": f"lab.rank_strategy.{name}"},
            "method=full has no ranks to spread; use method=lora, or rank_strategy=uniform",
        )
        for name in SPREADING
    ),
    *(
        (
            {"adapter.use_dora": True, "init._target_": f"lab.init.{name}"},
            "DoRA rescales the whole weight, so it starts from B A = 0, and this init's product is not zero; "
            "use init=random, gaussian, init_b, orthogonal or eva",
        )
        for name in MOVING_INITS
    ),
    *(
        (
            {**ADALORA, **init},
            "AdaLoRA fills its triplets P Λ Q itself, with Λ = 0, so a pair or an offset from this init would have no "
            "place; use init=random",
        )
        for init in UNUSED_INITS
    ),
    (
        {**ADALORA, "adapter.use_dora": True},
        "DoRA rescales the whole weight and peft's AdaLoRA knows no magnitude; use adapter.use_dora=false",
    ),
    (
        {**ADALORA, "select": "best"},
        "AdaLoRA meets its budget only near its end, so weights from before may cost more than was asked; "
        "use select=last",
    ),
)
