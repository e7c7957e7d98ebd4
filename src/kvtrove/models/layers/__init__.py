"""The parts of a decoder: frozen weight containers that can be called."""
