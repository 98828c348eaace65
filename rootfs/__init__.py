"""The root file system: skeleton and templates (`basefiles`), composition from packages, packing into an image."""
