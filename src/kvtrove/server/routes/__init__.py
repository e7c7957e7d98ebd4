"""One module per API: what goes in, what comes out. How it is answered is `respond`'s matter."""
