"""What fits into memory, computed before anything is loaded. Imports no torch."""
