"""Measurements of ``python -m rotnet_fast.benchmark``: how fast, and how far from what hardware could do."""
