"""Attention over the paged cache: one contract, several backends."""
