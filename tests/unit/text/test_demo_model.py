"""The embedded checkpoint: made by its script, small, honest about what it is, an ordinary Hugging Face directory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvtrove.demo import demo_model_dir, greeting
from kvtrove.models.config_reader import read_spec
from kvtrove.text.tokenizer import Tokenizer

SCRIPT = Path(__file__).parents[3] / "training" / "make_placeholder.py"
CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe? 🙂"}]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_its_script_makes_it_again_byte_for_byte(tmp_path):
    spec = importlib.util.spec_from_file_location("make_placeholder", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    assert files(tmp_path) == files(demo_model_dir())


def test_it_is_small_and_says_what_it_is():
    assert sum(map(len, files(demo_model_dir()).values())) < 2**20
    card = (demo_model_dir() / "MODEL_CARD.md").read_text()
    for text in (card, greeting()):
        assert "random weights" in text
        assert "gibberish" in text


def test_transformers_loads_it():
    theirs = AutoModelForCausalLM.from_pretrained(demo_model_dir())
    spec = read_spec(demo_model_dir())
    assert theirs.dtype == torch.bfloat16
    assert theirs.config.vocab_size == spec.vocab_size == Tokenizer.load(demo_model_dir()).vocab_size
    assert theirs.config.max_position_embeddings == spec.max_position == 4096
    assert torch.isfinite(theirs(torch.arange(512)[None]).logits).all()


def test_its_tokenizer_and_template_are_those_that_transformers_reads():
    ours, theirs = Tokenizer.load(demo_model_dir()), AutoTokenizer.from_pretrained(demo_model_dir())
    rendered = theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert ours.chat_template is not None
    assert ours.chat_template.render(CONVERSATION) == rendered
    ids = ours.encode(rendered, add_special_tokens=False)
    assert ids == theirs.encode(rendered, add_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=False) == rendered
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.token_text(theirs.eos_token_id) == "<|im_end|>"
