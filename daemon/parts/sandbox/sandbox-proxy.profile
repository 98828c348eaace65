# The proxy of a sandbox: bytes of whatever runs in there, and of whom it talks to.
include <include/variables>

profile sandbox-proxy {
  include <include/part>
  include <include/names>
}
