"""Triton kernels for the blocks of the Network in Network, until a GPU has run them.

They are checked on CPUs against float64 (`tests/ops/test_ops_nin_block.py`) and compiled for several GPUs,
but their speed has not been measured. ``python -m rotnet_fast.pretrain`` uses them with ``--kernels triton``
and ``triton-bn``.
"""
