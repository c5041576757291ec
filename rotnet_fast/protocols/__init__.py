"""Evaluation protocols: how good pretrained features are, and what to compare them with."""
