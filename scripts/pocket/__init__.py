"""How the built-in model is made: corpus, tokenizer, target, drafter, evaluation."""
