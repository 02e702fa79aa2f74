"""Readers of an adapter's folder other than peft, and what they make of it: vLLM, llama.cpp, who knows one alpha."""

from collections.abc import Iterator, Mapping

VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank may be, from the default on
LEAST_SCALING = 0.5  # alpha / r below which a change is damped so much that it is worth a word
NOT_PORTABLE = (
    "--format portable writes plain low-rank pairs, and DoRA also rescales whole rows, which few readers but peft can "
    "do; use --format merged, or adapter for peft."
)
NOT_CUT = "--rank cuts a plain low-rank change, and DoRA's has full rank; export without --rank."


def caveats(ranks: Mapping[str, int], scaling: float) -> Iterator[str]:
    """A line for each thing to know before something else than peft reads an adapter of these ranks, as saved.

    llama.cpp scales a layer by lora_alpha / (the rank of its own B), whatever the patterns say; vLLM by lora_alpha / r.
    """
    low, high = min(ranks.values()), max(ranks.values())
    if low < high:
        yield (
            f"ranks differ by layer ({low} to {high}): peft reads them, but a reader of one alpha that divides it by "
            f"each layer's own rank, as llama.cpp does, applies layers up to {high / low:g} times too strongly; "
            "--format portable writes one rank and one alpha"
        )
    if high > VLLM_RANKS[-1]:
        yield f"vLLM serves no adapter of rank {high}; its --max-lora-rank ends at {VLLM_RANKS[-1]}"
    elif high > VLLM_RANKS[0]:
        needed = next(rank for rank in VLLM_RANKS if rank >= high)
        yield f"vLLM serves rank {high} with --max-lora-rank {needed}; its default is {VLLM_RANKS[0]}"
    yield from damping(scaling)


def damping(scaling: float) -> Iterator[str]:
    """A line where a scaling damps what is learned."""
    if scaling < LEAST_SCALING:
        yield (
            f"alpha / r is {scaling:g}, which damps what is learned, and learning it; at a high rank raise alpha, or "
            "use scaling=rslora"
        )
