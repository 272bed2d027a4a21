"""Checked columns to the token store: joined, cleaned, split, fitted and encoded."""
