"""The token store: memory-mapped arrays, tokenizer and manifest."""
