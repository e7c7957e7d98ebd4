"""How K/V are encoded: one file per format, each a frozen dataclass that satisfies `kvtrove.kv.spec.KVFormat`."""
