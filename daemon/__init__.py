"""What runs on the device: `mixosd`, `mixctl`, first boot, preseed. Never imports `buildsys`.

Modules import only what they need at once: start-up time and memory on a small device are part of the contract.
"""
