"""Training data of Mixture-of-Features models: LLaVA's JSON as Parquet rows, their order, their images, and batches with labels."""
