"""The embedded checkpoint: small, honest about what it is, an ordinary Hugging Face directory, and it remembers."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir, greeting
from kvtrove.models.config_reader import read_spec
from kvtrove.text.tokenizer import Tokenizer

CONVERSATION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe? 🙂"}]
MOST_BYTES = 30 * 10**6


def test_it_is_small_and_says_what_it_is() -> None:
    assert sum(path.stat().st_size for path in demo_model_dir().iterdir()) < MOST_BYTES
    card = (demo_model_dir() / "MODEL_CARD.md").read_text()
    for text in (card, greeting()):
        assert "small" in text
        assert "remembers facts" in text
        assert "knows little" in text.replace("\n", " ")
    assert "Apache-2.0" in card


def test_transformers_loads_it() -> None:
    theirs = AutoModelForCausalLM.from_pretrained(demo_model_dir())
    spec = read_spec(demo_model_dir())
    assert theirs.dtype == torch.bfloat16
    assert theirs.config.vocab_size == spec.vocab_size == Tokenizer.load(demo_model_dir()).vocab_size
    assert theirs.config.max_position_embeddings == spec.max_position >= 4096
    assert torch.isfinite(theirs(torch.arange(512)[None]).logits).all()


def test_its_tokenizer_and_template_are_those_that_transformers_reads() -> None:
    ours, theirs = Tokenizer.load(demo_model_dir()), AutoTokenizer.from_pretrained(demo_model_dir())
    rendered = theirs.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert ours.chat_template is not None
    assert ours.chat_template.render(CONVERSATION) == rendered
    ids = ours.encode(rendered, add_special_tokens=False)
    assert ids == theirs.encode(rendered, add_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=False) == rendered
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.token_text(theirs.eos_token_id) == "<|im_end|>"


def test_it_answers_from_the_conversation_and_ends_its_turn() -> None:
    llm = LLM(demo_model_dir(), max_model_len=512, use_tqdm_on_load=False)
    talk = [
        {"role": "user", "content": "The owner of the red box is Clara."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "I am fine, thank you."},
        {"role": "user", "content": "Who owns the red box?"},
    ]
    [result] = llm.chat([talk], SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    [answer] = result.outputs
    assert "Clara" in answer.text
    assert answer.finish_reason == "stop"
