"""The click model: a BERT encoder, its visibility, its read-out and its heads."""
