"""Rivals that are written out here because nobody publishes them."""
