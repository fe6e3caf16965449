"""Corpora made into shards: LAION downloads through img2dataset, ImageNet from its official archives."""
