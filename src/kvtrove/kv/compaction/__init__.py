"""Keeping less: which tokens of a sequence stay in the cache, when others are dropped, and how the rest moves."""
