"""Ablations: one base recipe, named rows of overrides, several seeds, and the paper's numbers beside ours.

A file is read and checked without torch (`usdcore.ablate.loading`); each row and seed is an ordinary run.
"""
