"""The settings of a device: their model, and the files below /etc that follow from them."""
