"""The device's firewall: one file that people write, one nftables table that the kernel holds, and nothing in between.

`model` reads the file, `policy` resolves names (services, lists), `rules` compiles a policy to libnftables' JSON,
`kernel` is the only user of `nft`, `decide` says what a policy does with a packet, `store` keeps what was last good,
`part` changes things safely. Units have a table of their own (`units`).
"""
