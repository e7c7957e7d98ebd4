"""How K and V are encoded: one file per codec, each a frozen dataclass that satisfies `kvtrove.kv.spec.Codec`."""
