"""Models and their configurations. torch only: never a tokenizer, never a statistic."""
