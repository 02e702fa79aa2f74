"""Assets of the package: the shipped base model with its tokenizer, and how each was made."""
