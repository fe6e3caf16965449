"""From mined pairs to a benchmark: people write what differs, others verify it blind, studies measure what people reach; one folder, one web app."""
