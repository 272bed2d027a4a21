"""From tables to packed batches: the only code that sees strings is `prepare` and what it calls."""
