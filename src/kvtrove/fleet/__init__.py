"""Several models behind one address: a process for each that is in use, one budget of memory, one set of keys."""
