"""Pathology encoders whose weights come from the Hugging Face hub: one entry each, and what loads them."""
