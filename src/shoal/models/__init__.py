"""Small, readable models; Hugging Face models come in through `hugging_face`."""
