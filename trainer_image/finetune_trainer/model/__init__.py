"""The model to be tuned: loading it, making trainable what the method says, making it fast, and saving the result."""
