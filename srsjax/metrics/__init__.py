"""Exact metrics in float64 numpy; no device is needed."""
