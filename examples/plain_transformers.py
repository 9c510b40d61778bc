"""Decide about a prompt and answer it with transformers alone: plain_transformers.py MODEL PROMPT.

MODEL is the `model` folder of a run with `model.head: token`.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (
    kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer)
)
asked = [{"role": "user", "content": sys.argv[2]}]
text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
tokens = tokenizer.convert_tokens_to_ids(["<ALLOW>", "<ESCALATION>", "<DENY>", "<REFUSE>"])
with torch.no_grad():
    chances = model(ids).logits[0, -1, tokens].softmax(-1)
print(tokenizer.convert_ids_to_tokens(tokens[int(chances.argmax())]).strip("<>"))
print(" ".join(f"{chance:.4f}" for chance in chances.tolist()))
if chances.argmax() == 0:
    ids = torch.cat([ids, torch.tensor([tokens[:1]])], dim=1)
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=160)
    ends = model.generation_config.eos_token_id  # the tags of the protocol, too
    answer = [token for token in said[0, ids.shape[1] :].tolist() if token not in ends]
    print(tokenizer.decode(answer, skip_special_tokens=True).strip())
