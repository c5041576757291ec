"""Figures of the numbers and arrays that `rotnet_fast.analysis` and a study keep; nothing is computed.

Every function takes plain dictionaries or numbers and returns a matplotlib Figure; neither torch nor any
data set is needed. `rotnet_fast.plots.style.save` writes a figure.
"""
