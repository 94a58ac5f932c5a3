"""Parts of predicting: what a prediction consists of, streaming into a store, and finer than spots."""
