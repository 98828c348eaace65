"""The kernel of the image: which source, which configuration, how it is checked and built.

Data lives beside the code: `fragments/*.config` (what is asked for, by theme), `waivers.toml` (where a kernel version
may differ, and until when), `hardening.toml` (what a build must never lose), `cmdline.txt` (boot parameters), and
`symbols-6.6-x86.txt` (every symbol name that Linux 6.6.y has for x86).
"""
