from tests.checkpoints import checkpoints
from tests.golden.harness import naive

__all__ = ["checkpoints", "naive"]
