# Figures over HTTP, for whoever the firewall lets in. It accepts on a socket that mixosd has made.
include <include/variables>

profile metrics-endpoint {
  include <include/part>

  network inet stream,
  network inet6 stream,
}
