"""A GGUF file as hyperparameters, tensors and spans, and what runs it."""
