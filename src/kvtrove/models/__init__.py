"""Checkpoints: config.json -> ModelSpec -> running model."""
