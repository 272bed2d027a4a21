"""The token store to packed batches: layout, packing plan, assembly and loader."""
