"""Corpora, tokenizers, packing, the global order, and loading.

The path of a text: `catalogue` and `files` find it, `corpora` yields its documents, `tokenizer`
and `tokens` turn them into one memory-mapped file, `packing` cuts that file into samples,
`text.open_text` does all of this in one call, and `loader` prepares batches ahead of the step.
"""
