"""Reading less: which blocks of a sequence a query reads, when all of them stay in the cache."""
