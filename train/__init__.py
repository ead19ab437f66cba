"""Trains wide residual networks with one bit for each weight; see ``python -m train --help``.

Method: M. D. McDonnell, "Training wide residual networks for deployment using a single bit for
each weight", ICLR 2018 (arXiv 1802.08530), with activations of 2 to 8 bits in the loop.
"""
