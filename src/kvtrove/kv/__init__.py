"""The KV cache. `spec` says what a block is made of, `manager` who holds which block, `arena` keeps the bytes.

Importing this package loads neither torch nor numpy; take what you need from its modules.
"""
