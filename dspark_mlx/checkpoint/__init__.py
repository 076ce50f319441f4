"""Reading and writing checkpoint folders: configurations, tensors, quantisation, the Hub."""
