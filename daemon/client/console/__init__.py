"""The console: what people and scripts meet when they log in. Accounts, the login program, the prompt, the terminal.

Nothing here starts a program or trusts the environment: for three of the four accounts this is all that stands between
an SSH key and the device. Only the standard library is imported, and as little of it as can be, for a quick start.
"""
