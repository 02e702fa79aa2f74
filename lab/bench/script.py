"""One fine-tuning as a script of its own would do it: transformers.Trainer and peft, from start to saved adapter.

python -m lab.bench.script FOLDER [--bf16], with `base/` and `rows.json` in it; prints one JSON line. Imports nothing of
the lab.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments


def main() -> None:
    """Train, evaluate the validation and the test side once, save the adapter; TensorBoard logs as by default."""
    folder, bf16 = Path(sys.argv[1]), "--bf16" in sys.argv[2:]
    began, ends = time.perf_counter(), {}
    given: dict[str, Any] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    net = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    lora = LoraConfig(r=given["rank"], lora_alpha=given["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=given["batch_size"],
        num_train_epochs=1,
        max_steps=given.get("steps", -1),  # -1: as many as the epoch has
        learning_rate=given["lr"],
        lr_scheduler_type="linear",
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        report_to=["tensorboard"],
        save_strategy="no",
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    fed: list[int] = []  # real tokens of each batch

    def collate_and_count(features: Any) -> Any:
        fed.append(sum(len(feature["input_ids"]) for feature in features))
        return collator(features)

    trainer = Trainer(
        model=get_peft_model(net, lora), args=arguments, train_dataset=given["train"], data_collator=collate_and_count
    )
    ends["init"] = time.perf_counter()
    trainer.train()
    ends["train"] = time.perf_counter()
    steps = trainer.state.global_step
    tokens = sum(fed[:steps])
    told = {side: trainer.evaluate(given[side])["eval_loss"] for side in ("val", "test")}
    ends["eval"] = time.perf_counter()
    trainer.save_model(str(folder / "adapter"))
    ends["save"] = time.perf_counter()
    seconds = {part: end - start for (part, end), start in zip(ends.items(), [began, *ends.values()], strict=False)}
    print(json.dumps({**told, "seconds": seconds, "tokens": tokens, "steps": steps, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Of the first GPU's allocator where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
