"""Whether a release is to be trusted: metadata of TUF, OpenPGP signatures, the floor below which nothing is taken."""
