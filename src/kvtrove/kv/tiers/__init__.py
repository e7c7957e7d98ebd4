"""Places below the pool where sealed rows are kept: host memory, disk, Redis. Rows are bytes here: no torch."""
