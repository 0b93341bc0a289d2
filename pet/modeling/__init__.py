"""Language models as cloze models and classifiers, in torch: tokenizers, prompts, batches, attention, LoRA, loading.
Knows no run, no device policy and no training loop.
"""
