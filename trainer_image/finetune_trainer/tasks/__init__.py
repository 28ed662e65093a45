"""What a model is tuned for: how rows become batches, what is minimised, and by what the sum is divided.

The loop, the engines and the evaluation know tasks only by the protocol in `base`.
"""
