"""The shipped base, from the runs that trained it, in order.      python -m lab.assets.base RUN [RUN …]"""

import argparse
import datetime
import gzip
import lzma
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab import record
from lab.data import Text
from lab.data.encode import encode
from lab.data.stdlib import corpus
from lab.errors import UsageError
from lab.training.evaluate import evaluate
from lab.training.loss import Scorer

HOME = Path(__file__).resolve().parent / "base"
XZ_SHARE = 0.8  # the base must need at most this share of xz's bits
LAST_GAIN = 0.01  # the last tenth of the steps may lower validation bits per byte by at most this share
BLOCK = 256  # tokens


def bits_per_byte(sides: tuple[str, ...]) -> tuple[dict[str, float], int]:
    """Bits per byte of the shipped files, xz -9e and gzip -9 on held-out sides of stdlib_docs, and their bytes."""
    net = AutoModelForCausalLM.from_pretrained(HOME, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(HOME)
    texts = [text for side in sides for [text] in corpus("docs")[side]]
    samples = encode(
        [Text(text) for text in texts], tokenizer, template=None, max_length=BLOCK, side_name="held-out"
    ).samples
    loss = evaluate(Scorer(net, torch.device("cpu"), autocast=False), samples, tokenizer.pad_token_id)
    raw = "".join(texts).encode()
    assert loss.num_bytes == len(raw), "the loss must be over the same bytes that xz reads"
    assert loss.bpb is not None
    return {
        "base": loss.bpb,
        "xz -9e": 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw),
        "gzip -9": 8 * len(gzip.compress(raw, 9)) / len(raw),
    }, len(raw)


def last_gain(run_dir: Path) -> float:
    """Share by which validation bits per byte fell over the last tenth of the steps, from metrics.csv."""
    lines = (run_dir / "metrics.csv").read_text(encoding="utf-8").splitlines()
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    bpb = {int(row["step"]): float(row["val_bpb"]) for row in rows if row["val_bpb"]}
    end = max(bpb)
    before = max((step for step in bpb if step <= 0.9 * end), default=None)
    if before is None:
        raise UsageError(f"{run_dir} has no evaluation before its last tenth; lower schedule.eval_every_n_steps.")
    return 1 - bpb[end] / bpb[before]


def install(runs: list[Path]) -> None:
    """Write the last run's weights in bfloat16 and a card of all; raises UsageError where they are not good enough."""
    results = [record.read(run_dir) for run_dir in runs]
    for run_dir, result in zip(runs, results, strict=True):
        if result.status != "completed":
            raise UsageError(f"{run_dir} is {result.status}; only completed runs can be shipped.")
    run_dir = runs[-1]
    gain = last_gain(run_dir)
    if gain >= LAST_GAIN:
        raise UsageError(f"the last tenth of the steps still gained {gain:.1%}; raise schedule.max_steps.")
    net = AutoModelForCausalLM.from_pretrained(run_dir / "model", dtype=torch.bfloat16)
    net.generation_config.max_length = None
    net.save_pretrained(HOME)
    measured = {" + ".join(sides): bits_per_byte(sides) for sides in (("val",), ("test",), ("val", "test"))}
    (HOME / "README.md").write_text(card(results, gain, measured), encoding="utf-8")
    for side, (bits, _) in measured.items():
        if bits["base"] > XZ_SHARE * bits["xz -9e"]:
            raise UsageError(
                f"on {side} the base needs {bits['base']:.3f} bits per byte and xz {bits['xz -9e']:.3f}: "
                f"more than {XZ_SHARE} times as many; train longer."
            )
    print((HOME / "README.md").read_text(encoding="utf-8"))


def card(results: list[record.RunRecord], gain: float, measured: dict[str, tuple[dict[str, float], int]]) -> str:
    """The model card."""
    first, last = results[0], results[-1]
    size = sum(path.stat().st_size for path in HOME.glob("*.safetensors"))
    environment = last.environment
    minutes = sum(result.seconds["total"] for result in results) / 60
    rows = "\n".join(
        f"| {side}, {count:,} bytes | {bits['base']:.3f} | {bits['xz -9e']:.3f} | {bits['gzip -9']:.3f} "
        f"| {bits['base'] / bits['xz -9e']:.2f} |"
        for side, (bits, count) in measured.items()
    )
    runs = "\n".join(
        f"| {result.choices['experiment']} | {', '.join(result.config['data']['corpora'])} "
        f"| `{result.data['sha256'][:16]}…` | {result.tokens:,} | {result.steps:,} | {result.metrics['val_bpb']:.3f} |"
        for result in results
    )
    architecture = first.config["model"]["architecture"]
    return f"""# The shipped base

A Llama-shaped causal language model of {last.total_params:,} parameters ({architecture["num_hidden_layers"]} blocks,
hidden size {architecture["hidden_size"]}), {size / 1e6:.1f} MB in bfloat16, with its own byte-level BPE tokenizer of
4,096 tokens. It knows Python's documentation and code a little, and nothing else; it is a base for experiments, not
for use.

| held-out stdlib_docs | base, bits per byte | xz -9e | gzip -9 | base / xz |
|---|---|---|---|---|
{rows}

| part | text, training side | sha256 of the text | tokens | steps | bits per byte on its own validation side |
|---|---|---|---|---|---|
{runs}

| what | value |
|---|---|
| command | `make base` |
| tokens | {sum(result.tokens or 0 for result in results):,} |
| end | the last tenth of the steps of the last part gained {gain:.2%} of validation bits per byte |
| date | {datetime.date.today().isoformat()} |
| made with | Python {environment["python"]}, torch {environment["torch"]}, transformers {environment["transformers"]} |
| on | {environment["device"]}, {environment["threads"]} thread(s), {environment["precision"]}, {minutes:.0f} minutes |

The text is read from the running interpreter and is not part of the package; its licence is Python's own.
"""


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.assets.base", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the runs of experiment=base, base_docs")
    try:
        install(parser.parse_args(arguments).runs)
    except UsageError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
