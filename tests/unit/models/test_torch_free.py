"""Reading a config must stay quick: the planner does it too, and torch takes seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from kvtrove.kv.recipe import recipe
from kvtrove.models.cache import cache_spec
from kvtrove.models.config_reader import read_spec
recipe("int8+edges=1:int4r")(cache_spec(read_spec(Path(sys.argv[1])), "bfloat16", 16))
print(sorted({"torch", "safetensors", "transformers"} & set(sys.modules)))
"""


def test_config_to_cache_spec_imports_no_torch(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 8, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
