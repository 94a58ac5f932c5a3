"""Neural networks on embeddings: layers, losses, training and its checkpoints."""
