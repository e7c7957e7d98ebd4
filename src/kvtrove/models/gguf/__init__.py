"""GGUF files: the header, the model that it describes, and tensors out of their blocks."""
