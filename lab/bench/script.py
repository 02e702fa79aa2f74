"""One fine-tuning as a script of its own would do it: transformers.Trainer and peft, from start to saved adapter.

python -m lab.bench.script FOLDER, with `base/` and `rows.json` in it; prints one JSON line. Imports nothing of the lab.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments


def main() -> None:
    """Train, evaluate the validation and the test side once, save the adapter; TensorBoard logs as by default."""
    folder = Path(sys.argv[1])
    given: dict[str, Any] = json.loads((folder / "rows.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    net = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    lora = LoraConfig(r=given["rank"], lora_alpha=given["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=given["batch_size"],
        num_train_epochs=1,
        learning_rate=given["lr"],
        lr_scheduler_type="linear",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        report_to=["tensorboard"],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=get_peft_model(net, lora),
        args=arguments,
        train_dataset=given["train"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    trainer.train()
    losses = {side: trainer.evaluate(given[side])["eval_loss"] for side in ("val", "test")}
    trainer.save_model(str(folder / "adapter"))
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
