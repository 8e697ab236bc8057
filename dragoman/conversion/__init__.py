"""Weights of other families and engines, in and out: one file a family."""
