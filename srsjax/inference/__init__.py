"""Scoring: batches of pairs, ranking one context, files of scores."""
