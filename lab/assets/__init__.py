"""What the package carries: the shipped base model with its tokenizer, and how each was made."""
